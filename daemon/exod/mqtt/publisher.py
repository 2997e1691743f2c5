"""The MQTT publisher: keeps one connection to the broker and puts on it what the ledger says is due.

Moves bytes only: `broker_choice.py` decides where, `topics.py` what, `publish_schedule.py` when and for whom. A
lost broker is tried again with growing pauses, for ever, and everything is published anew after each connection.
Nothing here can hold up or end the daemon: without a broker, states wait one a topic and events in a bounded queue.

On a clean close (`run` is cancelled) it says `offline` and disconnects; on any other end the broker publishes the
last will. All of it takes less than 2 s.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiomqtt
import structlog

from exod.config.settings import Config
from exod.daemon_api.mqtt_view import MqttView
from exod.daemon_api.shapes import MqttSummary
from exod.daemon_api.shared_tick import until_next
from exod.errors import StartError
from exod.model import Event, NodeId
from exod.mqtt.broker_address import PORT, BrokerAddress
from exod.mqtt.broker_choice import BrokerHost, sweep_leftovers
from exod.mqtt.broker_probe import Listener, who_listens
from exod.mqtt.client import Client
from exod.mqtt.home_assistant import RENEGOTIATE
from exod.mqtt.publish_schedule import MqttLedger
from exod.mqtt.tls_files import TlsFiles
from exod.mqtt.topic_tree import TopicTree
from exod.mqtt.topics import OFFLINE, Publication, event_publication

KEEPALIVE_S: Final = 5
"""A daemon that is cut off shows `offline` by its will after 1.5 × this, where no peer is left to say it sooner."""

REACH_S: Final = 3.0
"""For the TCP connection, name resolution included: a broker that needs longer is tried again."""

CALL_S: Final = 5.0
"""For the broker's answer to one CONNECT, SUBSCRIBE or PUBLISH."""

GOODBYE_S: Final = 0.5
"""For `offline` at a clean close, and again for DISCONNECT: with the hosted broker's end (1 s) it is 2 s."""

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_CAP_S: Final = 10.0
"""A broker that comes back is found within 10 s, and one that is gone for a year costs a connection each 10 s."""

STABLE_S: Final = 10.0
"""A connection that lasted this long resets the backoff: one that is cut at once, again and again, does not."""

TICK_S: Final = 1.0
"""The ledger's times (30 s, 5 s, …) are looked at this often."""

PACE_S: Final = 0.05
"""Between two looks at the ledger: views that come faster are published as one."""

IN_FLIGHT: Final = 8
"""Messages sent before the first is acknowledged: a full set takes a few round trips, not one for each."""

COMMAND_EVERY_S: Final = 1.0
"""A person presses a button; pressing faster than this still gives one plan a second."""

MAX_INCOMING: Final = 2000
"""Messages of other nodes that wait to be looked at; beyond, they are dropped (and come again within 30 s)."""

CLOSED_TEXTS: Final = ("not currently connected", "Unexpected disconnection", "Disconnected during", "code:128")
"""By these texts the library means that the other end closed the connection."""

_log = structlog.get_logger()


class MqttService:
    """One node's publisher. `run` it once; `update` and `emit` at any time, before and during."""

    def __init__(
        self,
        *,
        broker: str,
        prefix: str,
        cluster: str,
        node_id: NodeId,
        incarnation: int,
        data_dir: Path,
        discovery_prefix: str = "homeassistant",
        tls_files: TlsFiles | None = None,
        renegotiate: Callable[[], None] | None = None,
        port: int = PORT,
        search_path: str | None = None,
    ) -> None:
        """`broker`, `prefix`, `discovery_prefix` and `tls_files` are the configuration's; `port` and `search_path`
        concern a hosted broker. `renegotiate` is what a command asks for; None: no message may command.
        """
        self._broker = broker
        self._tree = TopicTree(prefix, cluster, discovery_prefix)
        self._tls_files = tls_files or TlsFiles()
        self._renegotiate = renegotiate
        self._commanded_at = float("-inf")
        self._node_id = node_id
        self._event_ids = f"{node_id}-{incarnation}"
        self._data_dir = data_dir
        self._port = port
        self._search_path = search_path
        self._ledger = MqttLedger(self._tree, node_id, commands=renegotiate is not None)
        self._view: MqttView | None = None
        self._wake = asyncio.Event()
        self._events = 0
        self.messages_sent = 0
        self._summary = MqttSummary("off" if broker == "off" else "connecting", None)

    @classmethod
    def from_config(
        cls, config: Config, node_id: NodeId, incarnation: int, renegotiate: Callable[[], None]
    ) -> MqttService:
        mqtt = config.mqtt
        return cls(
            broker=mqtt.broker,
            prefix=mqtt.prefix,
            cluster=config.cluster.name,
            node_id=node_id,
            incarnation=incarnation,
            data_dir=config.node.data_dir,
            discovery_prefix=mqtt.discovery_prefix,
            tls_files=TlsFiles(mqtt.ca_file, mqtt.cert_file, mqtt.key_file),
            renegotiate=renegotiate if mqtt.commands else None,
        )

    @property
    def status(self) -> MqttSummary:
        return self._summary

    def update(self, view: MqttView) -> None:
        """The cluster as this node knows it now. Call it at every change, and every few seconds for the figures."""
        self._view = view
        self._wake.set()

    def emit(self, event: Event) -> None:
        """One event, to be published once; `event.ts` is stamped already."""
        self._events += 1
        event_id = f"{self._event_ids}-{self._events}"
        self._ledger.event(event_publication(event, event_id, self._tree, self._node_id))
        self._wake.set()

    async def run(self) -> None:
        """Publishes until it is cancelled; returns at once where MQTT is off."""
        await sweep_leftovers(self._data_dir)
        if self._broker == "off":
            return
        async with asyncio.TaskGroup() as tasks:
            host = BrokerHost(self._broker, self._data_dir, tasks, port=self._port, search_path=self._search_path)
            try:
                await self._keep_connected(host, tasks)
            finally:
                await host.close()
                self._set(MqttSummary("off", None))

    # --- the connection's life ------------------------------------------------------------------------------

    async def _keep_connected(self, host: BrokerHost, tasks: asyncio.TaskGroup) -> None:
        """One attempt after the other, each in a task of its own: so a cancellation of this one arrives here, and
        cannot be taken for the end of a connection, or the other way round (`asyncio.TaskGroup` before Python 3.13
        leaves its parent marked as cancelled when a child fails).
        """
        pause_s = BACKOFF_FIRST_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            attempt = tasks.create_task(self._attempt(host), name="mqtt-connection")
            try:
                await asyncio.wait([attempt])
            finally:
                attempt.cancel()
                await asyncio.wait([attempt])
            if loop.time() - started > STABLE_S:
                pause_s = BACKOFF_FIRST_S
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
            pause_s = min(pause_s * 2, BACKOFF_CAP_S)

    async def _attempt(self, host: BrokerHost) -> None:
        """Finds a broker and stays connected to it as long as that lasts. Raises nothing but cancellation."""
        address: BrokerAddress | None = None
        try:
            address = await host.locate()
            await self._session(address)
        except* (aiomqtt.MqttError, StartError, OSError) as group:
            self._lost(address, _first(group), await self._what_listens(address))
        except* Exception as group:  # a fault of ours or a library's: said in full, and no reason to end
            _log.exception("mqtt_failed", broker=str(address))
            self._lost(address, _first(group))

    async def _what_listens(self, address: BrokerAddress | None) -> str:
        """Where a broker that a person configured answers with something else: the client only says that its time
        is over.
        """
        if address is None or address.tls or self._summary.state == "connected":
            return ""
        listener = await who_listens(address.host, address.port)
        return f"what listens on {address} is no MQTT broker: set mqtt.broker" * (listener is Listener.STRANGER)

    def _lost(self, address: BrokerAddress | None, error: BaseException, known: str = "") -> None:
        text = known or said_by(error)
        self._set(MqttSummary("connecting", None if address is None else str(address), text))

    def _set(self, summary: MqttSummary) -> None:
        """The one place where the state changes; a reason is logged once, not at each attempt."""
        if summary == self._summary:
            return
        self._summary = summary
        if summary.state == "connected":
            _log.info("mqtt_connected", broker=summary.broker)
        elif summary.state == "connecting":
            _log.warning("mqtt_not_connected", broker=summary.broker, text=summary.text)

    async def _session(self, address: BrokerAddress) -> None:
        """One connection, from its birth to its end. Raises what ended it."""
        await _reach(address)
        async with self._client(address, await _tls(address, self._tls_files)) as client:
            client.timeout = GOODBYE_S  # from here on it bounds nothing but the end of the connection
            try:
                await self._publish_and_listen(client, address)
            except asyncio.CancelledError:
                await self._say_goodbye(client)
                raise

    def _client(self, address: BrokerAddress, tls: ssl.SSLContext | None) -> Client:
        return Client(
            address.host,
            address.port,
            identifier=f"exod-{self._node_id}",  # one a node: a new life takes the place of what is left of an old
            username=address.username,
            password=address.password,
            will=aiomqtt.Will(self._tree.availability(self._node_id), OFFLINE, qos=1, retain=True),
            clean_session=True,
            keepalive=KEEPALIVE_S,
            timeout=CALL_S,
            tls_context=tls,
            max_queued_incoming_messages=MAX_INCOMING,
        )

    async def _publish_and_listen(self, client: Client, address: BrokerAddress) -> None:
        self._ledger.connected(asyncio.get_running_loop().time())
        wanted = list(self._tree.subscriptions())
        if self._renegotiate is not None:
            wanted.append((self._tree.command(self._node_id), 1))
        granted = await client.subscribe(wanted, timeout=CALL_S)
        if any(int(code) >= 0x80 for code in granted if isinstance(code, int)):
            _log.warning("mqtt_subscribe_refused", broker=str(address))
        self._set(MqttSummary("connected", str(address)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(client), name="mqtt-listen")
            tasks.create_task(self._publish(client), name="mqtt-publish")

    async def _listen(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            if str(message.topic) == self._tree.command(self._node_id):
                self._command(payload, message.retain, loop.time())
                continue
            self._ledger.heard(str(message.topic), payload, message.retain, loop.time())
            self._wake.set()

    def _command(self, payload: bytes, retained: bool, now: float) -> None:
        """A retained one was meant for another time: it would come again with each connection."""
        if self._renegotiate is None or retained or payload.strip() != RENEGOTIATE.encode():
            _log.warning("mqtt_command_ignored", payload=payload[:40].decode("ascii", "replace"), retained=retained)
        elif now - self._commanded_at >= COMMAND_EVERY_S:
            self._commanded_at = now
            self._renegotiate()

    async def _publish(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if self._view is not None:
                self._ledger.view(self._view, loop.time())
                self._view = None
            due = self._ledger.due(loop.time())
            for start in range(0, len(due), IN_FLIGHT):
                async with asyncio.TaskGroup() as tasks:
                    for publication in due[start : start + IN_FLIGHT]:
                        tasks.create_task(self._send(client, publication), name="mqtt-send")
            if due:
                await asyncio.sleep(PACE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(until_next(TICK_S)):
                    await self._wake.wait()

    async def _send(self, client: Client, publication: Publication) -> None:
        await client.publish(
            publication.topic, publication.payload, publication.qos, publication.retain, timeout=CALL_S
        )
        self.messages_sent += 1
        self._ledger.published(publication, asyncio.get_running_loop().time())

    async def _say_goodbye(self, client: Client) -> None:
        """`offline`, retained, before the connection is closed properly. Best effort, bounded."""
        with suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                for publication in self._ledger.goodbyes(asyncio.get_running_loop().time()):
                    await client.publish(
                        publication.topic, publication.payload, publication.qos, publication.retain
                    )


async def _reach(address: BrokerAddress) -> None:
    """A TCP connection that can be cancelled, before the client's own, which holds a thread until it is through."""
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        raise StartError(f"{address} does not answer within {REACH_S:g} s") from None
    except OSError as error:
        raise StartError(f"{address} cannot be reached: {error.strerror or error}") from None
    writer.close()


async def _tls(address: BrokerAddress, files: TlsFiles) -> ssl.SSLContext | None:
    """For `mqtts`, host name checked. Loading certificates blocks: in a thread. Raises StartError."""
    return await asyncio.to_thread(files.context) if address.tls else None


def said_by(error: BaseException) -> str:
    """What the client's library says of a connection that ended is about its own calls, and names no cure."""
    text = str(error) or type(error).__name__
    if isinstance(error, aiomqtt.MqttError):
        if any(part in text for part in CLOSED_TEXTS):
            return "the broker closes the connection and gives no reason: look into its log, and set mqtt.broker"
        if "timed out" in text:
            return f"the broker takes the connection and does not answer within {CALL_S:g} s: look into its log"
    return text


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception of a group: what a person wants to read."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
