"""The broker inside the daemon, for hosts where nothing better is installed: amqtt, with its faults corrected.

amqtt 0.12.1 has two faults that break promises of ours, and three limits that a daemon cannot live without:

- Retained messages leak. When a client connects, `_handle_client_session` sends it the retained messages of every
  filter that *anybody* subscribed to. Corrected in `_publish_retained_messages_for_subscription`: only a filter
  that this very session subscribed to. (The message that a subscription itself brings is sent after it was noted,
  so it passes.)
- Keepalive is not enforced. The read of a packet has a timeout of 1.0 × keepalive whose handler does nothing, so
  a silent client's will never fires; acting there would be wrong too, because a healthy client may ping as late as
  its keepalive, and because the timeout can tear a packet that is half read. Corrected by a clock of our own on
  each connection (`_Connection`), moved by every byte that comes in: at 1.5 × keepalive (MQTT 3.1.1, 3.1.2.10) it
  cuts the connection, and amqtt publishes the will as for any lost one.
- A client that never sends CONNECT, that takes a packet of any size, or that never reads, costs amqtt a task and
  memory without end: bounded here. A connection whose client id connects again is cut at once (3.1.4-2).

Corrections are subclasses of what one version does: any other version is refused with a clear error
(`CORRECTED_VERSION`). amqtt is imported when a broker is started, in a thread: it costs 0.1 s and some megabytes
that most nodes never need.
"""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import structlog

from exod.errors import StartError
from exod.mqtt.broker_address import LOOPBACK, BrokerAddress

if TYPE_CHECKING:
    from exod.mqtt.embedded_broker_amqtt import CorrectedBroker

CORRECTED_VERSION: Final = "0.12.1"
"""The amqtt that the corrections were written and tested against."""

STOP_S: Final = 1.0
"""amqtt waits for each client in turn when it closes; after this its connections are cut."""

_log = structlog.get_logger()


class EmbeddedBroker:
    """A running embedded broker. Made by `start`; ended by `stop`."""

    def __init__(self, broker: CorrectedBroker, port: int) -> None:
        self._broker = broker
        self.alive = True
        self.address = BrokerAddress(LOOPBACK, port, "embedded")

    @classmethod
    async def start(cls, port: int) -> EmbeddedBroker:
        """Listens on loopback. Raises StartError: the port is in use, or amqtt is of another version."""
        check_version(version("amqtt"))
        broker_class = await asyncio.to_thread(_load)
        broker = broker_class(LOOPBACK, port)
        try:
            await broker.start()
        except Exception as error:
            raise StartError(f"the embedded broker cannot listen on {LOOPBACK}:{port}: {error}") from None
        return cls(broker, port)

    async def stop(self) -> None:
        """Closes all connections and the port, within about STOP_S."""
        self.alive = False
        self._broker.cut_strangers()
        try:
            async with asyncio.timeout(STOP_S):
                await self._broker.shutdown()
        except TimeoutError:
            _log.warning("mqtt_embedded_broker_cut", after_s=STOP_S)
            self._broker.cut_all()


def check_version(found: str) -> None:
    """Raises StartError for an amqtt that the corrections were not made for."""
    if found != CORRECTED_VERSION:
        raise StartError(
            f"amqtt {found} is installed and exod knows how to correct {CORRECTED_VERSION}: "
            "install mosquitto, or exod again from its checkout: make setup, or uv tool install --force ."
        )


def _load() -> type[CorrectedBroker]:
    from exod.mqtt.embedded_broker_amqtt import CorrectedBroker

    logger = logging.getLogger("amqtt")
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_ToStructlog())
    return CorrectedBroker


class _ToStructlog(logging.Handler):
    """amqtt logs a client's mishaps as errors with tracebacks; what matters to us comes back as an exception."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.debug("amqtt_says", text=record.getMessage()[:500])
