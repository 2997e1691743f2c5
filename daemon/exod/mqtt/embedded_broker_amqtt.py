"""The corrected amqtt: why and what is in `embedded_broker`, which alone imports this file (it imports amqtt)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig
from amqtt.errors import AMQTTError, MQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import OutgoingApplicationMessage, Session

KEEPALIVE_FACTOR: Final = 1.5
"""MQTT 3.1.1, 3.1.2.10."""

CONNECT_S: Final = 5.0
"""From the TCP connection to the end of its CONNECT packet."""

MAX_CONNECTIONS: Final = 128
MAX_PACKET_BYTES: Final = 256 * 1024
MAX_PENDING_BYTES: Final = 4 * 1024 * 1024
"""What waits for one subscriber, as mosquitto has it; a subscriber that lets more pile up is cut."""

MESSAGE_COST_BYTES: Final = 1024
"""What amqtt keeps for a message that waits, its payload aside (a task and some objects)."""

MAX_RETAINED: Final = 4096
"""Retained topics: far more than a cluster has."""

MAX_RETAINED_BYTES: Final = 16 * 1024 * 1024
"""Of their names and payloads: a cluster of 16 nodes retains less than one MiB."""

MAX_FILTERS: Final = 2048
MAX_ALL_FILTERS: Final = 8192
MAX_FILTER_CHARS: Final = 512
"""Of one client's subscriptions and of all: Home Assistant subscribes to each topic of each device, some hundreds
for a large cluster. All of them together have 4 MiB; each costs time for each message that is published."""

REFUSED: Final = 0x80
"""The return code of a subscription that is not made (MQTT 3.1.1, 3.9.3)."""

MAX_BROADCASTS: Final = 256
"""Messages that wait to be handed to subscribers; who publishes faster than that waits, too."""


class _Connection:
    """One TCP connection: when it was last heard, and the clock that cuts it when it stays silent too long."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._transport = writer.transport
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._limit_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.attached = False

    def heard(self) -> None:
        self._heard_at = self._loop.time()

    def enforce(self, keepalive_s: float) -> None:
        """From now on silence of 1.5 × `keepalive_s` cuts it; 0 never does."""
        self.attached = True
        self._limit_s = keepalive_s * KEEPALIVE_FACTOR
        if self._limit_s > 0:
            self._look()

    def _look(self) -> None:
        left_s = self._heard_at + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self.cut()

    def cut(self) -> None:
        self.forget()
        self._transport.abort()

    def forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _Reader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt has no types
    """Tells its connection of all that comes in, and takes no packet of any size."""

    def __init__(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        super().__init__(reader)
        self.connection = connection
        self._stream = reader

    async def read(self, n: int = -1) -> bytes:
        """`n` bytes; each arrival counts as a sign of life, so that a large packet may take its time."""
        if n > MAX_PACKET_BYTES:
            raise ConnectionError(f"a packet of {n} bytes")
        parts: list[bytes] = []
        while n > 0:
            part = await self._stream.read(n)
            if not part:
                raise asyncio.IncompleteReadError(b"".join(parts), n)
            self.connection.heard()
            parts.append(part)
            n -= len(part)
        return b"".join(parts)


class _Handler(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt has no types
    """One client's protocol, with the connection's own clock in place of amqtt's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connection: _Connection | None = None
        self._pending_bytes = 0

    def attach(self, session: Session, reader: _Reader, writer: StreamWriterAdapter) -> None:
        keepalive_s, session.keep_alive = session.keep_alive, 0
        super().attach(session, reader, writer)
        self.connection = reader.connection
        self.connection.enforce(keepalive_s)

    async def mqtt_publish(
        self, topic: str, data: bytes, qos: int | None, retain: bool, ack_timeout: int | None = None
    ) -> OutgoingApplicationMessage:
        """Never raises: amqtt calls it in tasks that nobody looks at. A message that is not acknowledged is lost
        to that subscriber, as amqtt means it.
        """
        lost = OutgoingApplicationMessage(None, topic, qos, data, retain)
        cost = len(data) + MESSAGE_COST_BYTES
        if self._pending_bytes + cost > MAX_PENDING_BYTES:
            self.cut()
            return lost
        self._pending_bytes += cost
        try:
            return await super().mqtt_publish(topic, data, qos, retain, ack_timeout)
        except (TimeoutError, OSError, AMQTTError, MQTTError):
            return lost
        finally:
            self._pending_bytes -= cost

    def cut(self) -> None:
        if self.connection is not None:
            self.connection.cut()


class CorrectedBroker(Broker):  # type: ignore[misc]  # amqtt has no types
    """amqtt's broker on `host:port`, anonymous, without its `$SYS` topics."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            BrokerConfig.from_dict(
                {
                    "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": -1}},
                    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
                }
            )
        )
        self._connections: set[_Connection] = set()
        self._retained_bytes = 0
        self._filters: Counter[str] = Counter()
        """How many each client has."""
        self._broadcast_queue: asyncio.Queue[Any] = asyncio.Queue(MAX_BROADCASTS)

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """One connection from its start to its end, as amqtt's own, on our reader."""
        connection = _Connection(writer)
        if len(self._connections) >= MAX_CONNECTIONS:
            connection.cut()
            return
        self._connections.add(connection)
        try:
            await self._client_connected(listener_name, _Reader(reader, connection), StreamWriterAdapter(writer))
        finally:
            self._connections.discard(connection)
            connection.cut()

    async def _initialize_client_session(
        self, reader: _Reader, writer: StreamWriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[_Handler, Session]:
        """Reads CONNECT within CONNECT_S, and puts our handler in the place of amqtt's."""
        try:
            async with asyncio.timeout(CONNECT_S):
                _, session = await super()._initialize_client_session(reader, writer, remote_address, remote_port)
        except (TimeoutError, OSError) as error:
            raise AMQTTError(f"no CONNECT: {error}") from None
        session.clean_session = True  # nothing is kept for a client that is away: nobody would bound it
        return _Handler(self.plugins_manager, loop=self._loop), session

    async def _delete_session(self, client_id: str) -> None:
        """A client id connects anew: the old connection ends, and its will comes before the new one's birth."""
        _, handler = self._sessions.get(client_id, (None, None))
        if handler is not None:
            handler.cut()
        await super()._delete_session(client_id)

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Within the bounds; the client is told of those that are not made."""
        name, client = subscription[0], session.client_id
        if any(one.client_id == client for one, _ in self._subscriptions.get(name, ())):
            return int(await super().add_subscription(subscription, session))
        full = self._filters[client] >= MAX_FILTERS or self._filters.total() >= MAX_ALL_FILTERS
        if full or len(name) > MAX_FILTER_CHARS:
            return REFUSED
        code = int(await super().add_subscription(subscription, session))
        self._filters[client] += code != REFUSED
        return code

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        removed = int(super()._del_subscription(a_filter, session))
        if removed:
            self._filters[session.client_id] -= 1
            self._filters += Counter()  # without the names of those that have none
        return removed

    async def _handle_unsubscription(
        self, client_session: Session, handler: BrokerProtocolHandler, unsubscribe_waiter: asyncio.Future[Any]
    ) -> None:
        """amqtt keeps the name of a filter that nobody has any more."""
        names = unsubscribe_waiter.result().topics
        await super()._handle_unsubscription(client_session, handler, unsubscribe_waiter)
        for name in names:
            if not self._subscriptions.get(name, [name]):
                del self._subscriptions[name]

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Each filter is compared with all that is retained: others have their turns between two of them."""
        subscribers = self._subscriptions.get(subscription[0], [])
        if any(subscriber is session for subscriber, _ in subscribers):
            await asyncio.sleep(0)
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """No plugin filters topics here. Not waiting matters: amqtt walks its subscriptions meanwhile."""
        return True

    async def retain_message(
        self, source_session: Session | None, topic_name: str | None, data: bytes | None, qos: int | None = None
    ) -> None:
        """Within the bounds; a topic that passes them keeps what it had."""
        before = self._retained_messages.get(topic_name)
        added = _kept_bytes(topic_name, data) - (_kept_bytes(topic_name, before.data) if before else 0)
        full = added > 0 and self._retained_bytes + added > MAX_RETAINED_BYTES
        if data and (full or (before is None and len(self._retained_messages) >= MAX_RETAINED)):
            return
        self._retained_bytes += added
        await super().retain_message(source_session, topic_name, data, qos)

    def cut_strangers(self) -> None:
        """Ends connections that never became a client."""
        for connection in tuple(self._connections):
            if not connection.attached:
                connection.cut()

    def cut_all(self) -> None:
        for connection in tuple(self._connections):
            connection.cut()


def _kept_bytes(topic: str | None, data: bytes | None) -> int:
    return len(topic or "") + len(data) if data else 0
