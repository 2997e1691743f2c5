"""Control connections between daemons: mutual TLS from the cluster key, several warm paths for each peer.

Dials what discovery, the configuration and the mesh point at, greets with this node's card, and carries messages
over the best connection there is. A message may be lost with its connection: whoever sends what matters repeats
it. Decides nothing about links or plans.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

import msgspec
import structlog

from exod.core.engine_messages import EngineMessage
from exod.core.messages import MeshMessage
from exod.errors import StartError, TrustError
from exod.model import NodeCard, NodeId
from exod.platform import Platform
from exod.reports import PreflightCheck
from exod.trust import peer_id

log = structlog.get_logger()

CONTROL_PROTOCOL: Final = 1

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The longest message is a request with its prompt; the HTTP API takes bodies below this."""

MAX_BACKLOG_BYTES: Final = 32 * 1024 * 1024
"""Two of the longest messages. A peer that lets more pile up does not read: the connection is closed."""

HANDSHAKE_S: Final = 5.0
"""TLS takes two round trips; 5 s pass even over a VPN at its worst, and bound a half-open connection."""

MAX_HANDSHAKES: Final = 64
MAX_HANDSHAKES_PER_ADDRESS: Final = 8
"""Half-open connections that are borne at a time: all peers of 8 nodes at once, and no more from one address."""

KEEP_ALIVE_S: Final = 2.0
SILENCE_S: Final = 10.0
"""Probes notice a dead path in a fraction of a second and its connections are closed then; this is for a
connection that died while its path lives (a restarted peer behind a lost reset)."""

RETRY_FIRST_S: Final = 0.2
RETRY_LIMIT_S: Final = 3.0
"""A daemon that was restarted is found again within the limit; a peer that is off costs 20 dials a minute."""

MAX_CONNECTIONS_PER_PEER: Final = 8
STRANGER_LOG_INTERVAL_S: Final = 60.0
MAX_STRANGERS: Final = 64


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    protocol: int
    card: NodeCard


class CardUpdate(msgspec.Struct, frozen=True, tag="card"):
    card: NodeCard


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The sender's daemon ends on purpose."""

    incarnation: int
    text: str


class StillThere(msgspec.Struct, frozen=True, tag="still_there"):
    pass


class NodeReport(msgspec.Struct, frozen=True, tag="node_report"):
    """What a node says of itself for whoever watches the cluster from another node."""

    sender: NodeId
    health: str
    reasons: tuple[tuple[str, str, str, float], ...]
    """(code, subject, text, since) each."""
    uptime_s: float
    memory_mib: int


class TransferProbe(msgspec.Struct, frozen=True, tag="transfer_probe"):
    """Preflight's short transfer: answered with a TransferReply of the same serial."""

    serial: int
    payload: bytes


class TransferReply(msgspec.Struct, frozen=True, tag="transfer_reply"):
    serial: int
    received_bytes: int


class PreflightWish(msgspec.Struct, frozen=True, tag="preflight_wish"):
    serial: int


class PreflightAnswer(msgspec.Struct, frozen=True, tag="preflight_answer"):
    serial: int
    checks: tuple[PreflightCheck, ...]


PeerMessage = (
    MeshMessage
    | EngineMessage
    | Goodbye
    | NodeReport
    | TransferProbe
    | TransferReply
    | PreflightWish
    | PreflightAnswer
)
ControlMessage = PeerMessage | Greeting | CardUpdate | StillThere

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)


class Target(msgspec.Struct, frozen=True):
    """Where to dial: `local` and `interface` are empty where the route table may choose."""

    address: str
    port: int
    local: str = ""
    interface: str = ""


class Connection(asyncio.Protocol):
    """One TLS connection: frames of a 4-byte big-endian length and MessagePack. Created by ControlPlane only."""

    def __init__(self, plane: ControlPlane, dialled: bool) -> None:
        self._plane = plane
        self.dialled = dialled
        self.peer: NodeId | None = None
        self.greeted = False
        self.card: NodeCard | None = None
        self.local = ""
        self.remote = ""
        self.heard_at = time.monotonic()
        self.opened_at = self.heard_at
        self.closed = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is none of asyncio's
        self.local = transport.get_extra_info("sockname")[0]
        self.remote = transport.get_extra_info("peername")[0]
        try:
            self.peer = peer_id(transport.get_extra_info("ssl_object"))
        except TrustError as error:
            log.warning("peer_refused", address=self.remote, text=str(error))
            self._transport.abort()
            return
        self._plane.opened(self)

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > MAX_FRAME_BYTES:
                self.refuse(f"a message of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
                return
            if len(self._buffer) < 4 + length:
                return
            frame = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            try:
                message = _decoder.decode(frame)
            except msgspec.DecodeError as error:
                self.refuse(f"not a control message: {error}")
                return
            self._plane.received(self, message)
            if self.closed.done():
                return

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self._plane.lost(self)

    def send(self, frame: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            self.refuse("it does not read what it is sent")
            return False
        self._transport.write(frame)
        return True

    def send_message(self, message: PeerMessage) -> bool:
        """Over this very connection: preflight measures one path."""
        return self.send(_frame(message))

    def refuse(self, text: str) -> None:
        log.warning("control_connection_refused", peer=self.peer, address=self.remote, text=text)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class ControlPlane:
    """All control connections of this node.

    `on_card`, `on_message`, `on_connected` (the first connection of a peer), `on_disconnected` (the last one
    went) are called from the loop and must not block.
    """

    def __init__(
        self,
        node_id: NodeId,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        platform: Platform,
        on_card: Callable[[NodeCard], None],
        on_message: Callable[[NodeId, PeerMessage], None],
        on_connected: Callable[[NodeId], None],
        on_disconnected: Callable[[NodeId], None],
    ) -> None:
        self._node_id = node_id
        self._server_context, self._client_context = contexts
        self._platform = platform
        self._on_card, self._on_message = on_card, on_message
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._card: NodeCard | None = None
        self._listener: socket.socket | None = None
        self._connections: dict[NodeId, list[Connection]] = {}
        self._handshakes: dict[str, int] = {}
        self._contacts: dict[Target, str] = {}
        self._paths: dict[NodeId, tuple[Target, ...]] = {}
        self._dials: dict[Target, asyncio.Task[None]] = {}
        self._pools_changed = asyncio.Event()
        """Set, and replaced, whenever a connection came or went: dials that wait for that look again."""
        self._tasks: asyncio.TaskGroup | None = None
        self._strangers: dict[str, tuple[float, str]] = {}
        self.messages_sent = 0
        self.messages_received = 0

    # --- life -----------------------------------------------------------------------------------------------

    def listen(self, port: int) -> None:
        """Raises StartError where the port is taken."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(("0.0.0.0", port))
            listener.listen(MAX_HANDSHAKES)
        except OSError as error:
            listener.close()
            raise StartError(
                f"port {port} (mesh.port) cannot be used: {error.strerror}; is another exod running?"
            ) from None
        self._listener = listener

    async def run(self) -> None:
        """Accepts and dials until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._accept(), name="control accept")
            tasks.create_task(self._keep_alive(), name="control keep-alive")
            self._reconcile()

    async def goodbye(self, incarnation: int, text: str) -> None:
        """Says goodbye to every peer and closes all connections in order."""
        for peer in list(self._connections):
            self.send(peer, Goodbye(incarnation, text))
        connections = [connection for pool in self._connections.values() for connection in pool]
        for connection in connections:
            connection.close()
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=1.0)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- whom to reach --------------------------------------------------------------------------------------

    def set_card(self, card: NodeCard) -> None:
        """This node's card, told to every peer at once and to each new one."""
        changed = self._card is not None and self._card != card
        self._card = card
        if changed:
            frame = _frame(CardUpdate(card))
            for pool in self._connections.values():
                for connection in pool:
                    connection.send(frame)

    def contact(self, address: str, port: int, name: str) -> None:
        """A peer may be reached here: dial until there is a connection, and again when it is lost."""
        self._contacts[Target(address, port)] = name
        self._reconcile()

    def forget_contact(self, address: str, port: int) -> None:
        self._contacts.pop(Target(address, port), None)
        self._reconcile()

    def set_paths(self, peer: NodeId, targets: tuple[Target, ...]) -> None:
        """The usable paths to `peer`, best first: a connection is kept warm on each, dialled by the lower id."""
        if self._paths.get(peer, ()) != targets:
            self._paths[peer] = targets
            self._reconcile()

    def path_died(self, peer: NodeId, local: str, remote: str) -> None:
        """Closes the connections that run over a dead path: what is sent from now on takes another."""
        for connection in list(self._connections.get(peer, ())):
            if (connection.local, connection.remote) == (local, remote):
                connection.abort()

    def _reconcile(self) -> None:
        """Starts the dials that are wanted and ends those that are not."""
        if self._tasks is None:
            return
        wanted = set(self._contacts)
        for peer, targets in self._paths.items():
            if self._node_id < peer:
                wanted.update(targets[:MAX_CONNECTIONS_PER_PEER])
        for target in [known for known in self._dials if known not in wanted]:
            self._dials.pop(target).cancel()
        for target in wanted:
            if target not in self._dials:
                task = self._tasks.create_task(self._dial_for_ever(target), name=f"dial {target.address}")
                self._dials[target] = task

    # --- messages -------------------------------------------------------------------------------------------

    def send(self, peer: NodeId, message: PeerMessage) -> bool:
        """Sends over the best connection; False where there is none. True is no promise that it arrives."""
        frame = _frame(message)
        for connection in self._by_preference(peer):
            if connection.send(frame):
                self.messages_sent += 1
                return True
        return False

    def broadcast(self, message: PeerMessage) -> None:
        for peer in list(self._connections):
            self.send(peer, message)

    def peers(self) -> list[NodeId]:
        return list(self._connections)

    def connection_on(self, peer: NodeId, local: str, remote: str) -> Connection | None:
        """The connection that runs over this path, if there is one."""
        for connection in self._connections.get(peer, ()):
            if (connection.local, connection.remote) == (local, remote) and connection.greeted:
                return connection
        return None

    def strangers(self) -> tuple[str, ...]:
        """Who was refused for another key lately, in words."""
        return tuple(text for _, text in self._strangers.values())

    def _by_preference(self, peer: NodeId) -> list[Connection]:
        order = {(target.local, target.address): place for place, target in enumerate(self._paths.get(peer, ()))}
        usable = [connection for connection in self._connections.get(peer, ()) if connection.greeted]
        return sorted(usable, key=lambda c: order.get((c.local, c.remote), len(order)))

    # --- dialling and accepting -----------------------------------------------------------------------------

    async def _dial_for_ever(self, target: Target) -> None:
        delay = RETRY_FIRST_S
        while True:
            while not self._is_needed(target):
                await self._pools_changed.wait()
            connection = await self._dial(target)
            if connection is not None:
                opened = time.monotonic()
                await asyncio.shield(connection.closed)
                if time.monotonic() - opened > RETRY_LIMIT_S:
                    delay = RETRY_FIRST_S
            await asyncio.sleep(delay)
            delay = min(RETRY_LIMIT_S, delay * 2)

    def _is_needed(self, target: Target) -> bool:
        """A contact is dialled only while nothing leads to that address; a path while nothing runs over it."""
        for pool in self._connections.values():
            for connection in pool:
                if connection.remote == target.address and target.local in ("", connection.local):
                    return False
        if target.local:
            return True
        return not any(target.address in _addresses(card) for card in self._cards())

    def _cards(self) -> list[NodeCard]:
        """Cards of peers that are connected: their other addresses need no contact."""
        return [pool[0].card for pool in self._connections.values() if pool and pool[0].card is not None]

    async def _dial(self, target: Target) -> Connection | None:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                if target.local:
                    self._platform.bind_to_interface(sock, target.interface)
                    sock.bind((target.local, 0))
                address = await self._resolve(target)
                if address is None:
                    return None
                await loop.sock_connect(sock, (address, target.port))
                _, connection = await loop.create_connection(
                    lambda: Connection(self, dialled=True),
                    sock=sock,
                    ssl=self._client_context,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_S,
                )
                return connection
        except ssl.SSLError as error:
            self._note_stranger(target.address, self._contacts.get(target, ""), error)
        except (OSError, TimeoutError) as error:
            log.debug("dial_failed", address=f"{target.address}:{target.port}", error=str(error))
        sock.close()
        return None

    async def _resolve(self, target: Target) -> str | None:
        """Static peers may be host names: looked up again at each dial."""
        if target.local:
            return target.address
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.address, target.port, family=socket.AF_INET, type=socket.SOCK_STREAM)
        return str(found[0][4][0]) if found else None

    async def _accept(self) -> None:
        assert self._listener is not None, "listen() comes first"
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    sock, source = await loop.sock_accept(self._listener)
                except OSError as error:
                    # Out of descriptors, or a connection that was reset before it was taken: neither ends us.
                    log.warning("accept_failed", error=error.strerror)
                    await asyncio.sleep(RETRY_FIRST_S)
                    continue
                pending = self._handshakes.get(source[0], 0)
                if pending >= MAX_HANDSHAKES_PER_ADDRESS or sum(self._handshakes.values()) >= MAX_HANDSHAKES:
                    sock.close()
                    continue
                self._handshakes[source[0]] = pending + 1
                tasks.create_task(self._greet_stranger(sock, source[0]), name=f"handshake {source[0]}")

    async def _greet_stranger(self, sock: socket.socket, address: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self, dialled=False),
                sock,
                ssl=self._server_context,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except ssl.SSLError as error:
            sock.close()
            self._note_stranger(address, "", error)
        except (OSError, TimeoutError):
            sock.close()
        finally:
            self._handshakes[address] -= 1
            if not self._handshakes[address]:
                del self._handshakes[address]

    def _note_stranger(self, address: str, name: str, error: ssl.SSLError) -> None:
        """Logs a peer whose key is not ours, once a minute for each."""
        now = time.monotonic()
        who = f"{name} ({address})" if name else address
        last, _ = self._strangers.get(who, (-STRANGER_LOG_INTERVAL_S, ""))
        if now - last < STRANGER_LOG_INTERVAL_S:
            return
        self._strangers.pop(who, None)
        self._strangers[who] = (now, f"{who} was refused: it has another cluster key, or none")
        while len(self._strangers) > MAX_STRANGERS:
            self._strangers.pop(next(iter(self._strangers)))
        log.warning("stranger_refused", who=who, text="it has another cluster key, or none", error=error.reason)

    # --- what connections report ----------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        if self._card is None or connection.peer == self._node_id:
            connection.abort()  # not ready yet, or one of our own addresses
            return
        connection.send(_frame(Greeting(CONTROL_PROTOCOL, self._card)))

    def received(self, connection: Connection, message: ControlMessage) -> None:
        match message:
            case Greeting(protocol=protocol, card=card):
                if protocol != CONTROL_PROTOCOL:
                    connection.refuse(
                        f"it speaks control protocol {protocol}, this node {CONTROL_PROTOCOL}: upgrade"
                    )
                elif card.id != connection.peer:
                    connection.refuse(f"its certificate names {connection.peer}, its card {card.id}")
                else:
                    self._greeted(connection, card)
            case _ if not connection.greeted or connection.peer is None:
                connection.refuse("it sent something else before its greeting")
            case CardUpdate(card=card):
                if card.id == connection.peer:
                    connection.card = card
                    self._note_pools_changed()
                    self._on_card(card)
            case StillThere():
                pass
            case _:
                self.messages_received += 1
                self._on_message(connection.peer, message)

    def _greeted(self, connection: Connection, card: NodeCard) -> None:
        assert connection.peer is not None
        connection.greeted = True
        connection.card = card
        pool = self._connections.setdefault(connection.peer, [])
        first = not pool
        pool.append(connection)
        self._prune(pool)
        self._note_pools_changed()
        self._on_card(card)
        if first:
            self._on_connected(connection.peer)

    def _prune(self, pool: list[Connection]) -> None:
        """One connection for each pair of addresses: the lower id's dial stays, else the older one."""
        by_pair: dict[tuple[str, str], list[Connection]] = {}
        for connection in pool:
            by_pair.setdefault((connection.local, connection.remote), []).append(connection)
        for same in by_pair.values():
            lower_dials = self._node_id < (same[0].peer or "")
            same.sort(key=lambda c: (c.dialled != lower_dials, c.opened_at))
            for surplus in same[1:]:
                surplus.close()
        for surplus in pool[MAX_CONNECTIONS_PER_PEER:]:
            surplus.close()

    def lost(self, connection: Connection) -> None:
        peer = connection.peer
        pool = self._connections.get(peer, []) if peer is not None else []
        if peer is None or connection not in pool:
            return
        pool.remove(connection)
        self._note_pools_changed()
        if not pool:
            del self._connections[peer]
            self._on_disconnected(peer)

    def _note_pools_changed(self) -> None:
        self._pools_changed.set()
        self._pools_changed = asyncio.Event()

    async def _keep_alive(self) -> None:
        frame = _frame(StillThere())
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            now = time.monotonic()
            for pool in list(self._connections.values()):
                for connection in list(pool):
                    if now - connection.heard_at > SILENCE_S:
                        connection.refuse(f"nothing was heard for {SILENCE_S:.0f} s")
                    else:
                        connection.send(frame)


def _addresses(card: NodeCard) -> list[str]:
    return [address.address for address in card.addresses]


def _frame(message: ControlMessage) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body
