"""Decides which broker this node publishes to, and hosts one where there is none.

`[mqtt] broker` says it: a URL is used as it stands and nothing is hosted. `auto` uses a broker that answers on
loopback; else it starts mosquitto where that is installed; else the embedded one. `embedded` skips mosquitto. A
broker that answers on the port goes before hosting a second one in either case: so a second daemon of one host
finds the first one's broker and uses it, and whichever goes, the other hosts one then.

A broker of a user that wants a password, or something on the port that is no broker, is never displaced: the error
says what to configure. `locate` runs before each connection: there a hosted broker that died, or that answers no
more, is noticed and replaced. It never connects to anything but for its probe, and restarts are paced by its
caller's backoff.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import structlog

from exod.errors import StartError
from exod.mqtt.broker_address import LOOPBACK, PORT, BrokerAddress, configured_broker
from exod.mqtt.broker_probe import Listener, who_listens
from exod.mqtt.embedded_broker import EmbeddedBroker
from exod.mqtt.mosquitto import Mosquitto, find_mosquitto, sweep

FOLDER_NAME: Final = "broker"

_log = structlog.get_logger()


class BrokerHost:
    """Finds or hosts the broker. One at a time calls `locate`; `close` ends what is hosted."""

    def __init__(
        self,
        setting: str,
        data_dir: Path,
        tasks: asyncio.TaskGroup,
        *,
        port: int = PORT,
        search_path: str | None = None,
    ) -> None:
        """`setting` is `auto`, `embedded` or a URL (ValueError where it is none of them); `tasks` gets the tasks
        of what is hosted; `search_path` is where mosquitto is looked for (default: $PATH).
        """
        self._configured = None if setting in ("auto", "embedded") else configured_broker(setting)
        self._embedded_only = setting == "embedded"
        self._folder = data_dir / FOLDER_NAME
        self._tasks = tasks
        self._port = port
        self._search_path = os.environ.get("PATH", os.defpath) if search_path is None else search_path
        self._hosted: Mosquitto | EmbeddedBroker | None = None

    async def locate(self) -> BrokerAddress:
        """The broker to connect to now. Raises StartError with what to do where there is none."""
        if self._configured is not None:
            return self._configured
        listener = await who_listens(LOOPBACK, self._port)
        if self._hosted is not None:
            if listener is Listener.BROKER and self._hosted.alive:
                return self._hosted.address
            _log.warning("mqtt_broker_replaced", broker=str(self._hosted.address), answers=listener.value)
            await self.close()
            listener = await who_listens(LOOPBACK, self._port)
        if listener is Listener.NOBODY:
            return await self._host()
        return self._found(listener)

    def _found(self, listener: Listener) -> BrokerAddress:
        place = f"{LOOPBACK}:{self._port}"
        if listener is Listener.REFUSING_BROKER:
            raise StartError(
                f"the broker on {place} takes no anonymous clients: configure [mqtt] broker = mqtt://user:pass@{place}"
            )
        if listener is Listener.STRANGER:
            raise StartError(
                f"what listens on {place} is no MQTT broker: stop it, or configure [mqtt] broker = mqtt://host:port"
            )
        return BrokerAddress(LOOPBACK, self._port, "found")

    async def _host(self) -> BrokerAddress:
        program = None if self._embedded_only else find_mosquitto(self._search_path)
        try:
            if program is not None:
                try:
                    return self._adopt(await Mosquitto.start(program, self._folder, self._port, self._tasks))
                except (StartError, OSError) as error:
                    if await who_listens(LOOPBACK, self._port) is not Listener.NOBODY:
                        raise
                    _log.warning("mosquitto_did_not_start", program=program, text=str(error))
            return self._adopt(await EmbeddedBroker.start(self._port))
        except (StartError, OSError) as error:
            listener = await who_listens(LOOPBACK, self._port)
            if listener is Listener.NOBODY:
                raise StartError(str(error)) from None
            return self._found(listener)  # another daemon of this host was faster

    def _adopt(self, hosted: Mosquitto | EmbeddedBroker) -> BrokerAddress:
        self._hosted = hosted
        _log.info("mqtt_broker_hosted", broker=str(hosted.address))
        return hosted.address

    async def close(self) -> None:
        """Ends what is hosted here, within 2 s."""
        hosted, self._hosted = self._hosted, None
        if hosted is not None:
            await hosted.stop()


async def sweep_leftovers(data_dir: Path) -> None:
    """Ends a broker that an earlier life of this daemon, killed, left running. Called once at start."""
    pid = await asyncio.to_thread(sweep, data_dir / FOLDER_NAME)
    if pid is not None:
        _log.info("mqtt_broker_swept", pid=pid)
