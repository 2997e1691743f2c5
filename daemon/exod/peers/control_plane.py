"""Control connections between daemons: mutual TLS from the cluster key, several warm paths for each peer.

Dials what discovery, the configuration and the mesh point at, greets with this node's card, and carries messages
over the best connection there is. A message may be lost with its connection: the sender repeats it if it matters.
Decides nothing about links or plans.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

import structlog

from exod.core.base.facts import Fact
from exod.daemon_api.shared_tick import until_next
from exod.model import MAX_SHOWN, NodeCard, NodeId
from exod.peers.connection import MAX_CONNECTIONS_PER_PEER, CardOrder, Connection, surplus
from exod.peers.dial_targets import Target, contact_targets
from exod.peers.handshakes import HANDSHAKE_S, MAX_HANDSHAKES, Handshakes
from exod.peers.listeners import Listeners
from exod.peers.membership_driver import MembershipDriver
from exod.peers.newcomers import Newcomers
from exod.peers.peer_messages import (
    CONTROL_PROTOCOL,
    Admission,
    CardUpdate,
    ControlMessage,
    ForeignGreeting,
    Goodbye,
    Greeting,
    KeyHeld,
    KeyOffer,
    KeyRefused,
    PeerMessage,
    StillThere,
    TwinSeen,
    UnknownMessage,
    encode,
)
from exod.peers.rejected_peers import ForeignVersions, Strangers
from exod.peers.rumours import Rumours
from exod.peers.static_peers import lookup_ipv4
from exod.plain_text import printable
from exod.platform.system import Platform
from exoengine.framing import FrameError

log = structlog.get_logger()

KEEP_ALIVE_S: Final = 2.0
SILENCE_S: Final = 10.0
"""Probes notice a dead path in a fraction of a second and its connections are closed then; this is for a
connection that died while its path lives (a restarted peer behind a lost reset)."""

UNACKNOWLEDGED_S: Final = 1.5
"""A connection can be dead while its path lives (one end gave it up, and the packet that said so was lost): what is
sent over it waits for retransmissions that grow to many seconds. Kernels acknowledge in milliseconds, over a VPN in
fifty, so some retransmissions went unanswered: the connection ends, and what is repeated takes another."""

DOUBTED_UNACKNOWLEDGED_S: Final = 0.7
"""Of a peer that is silent on all paths. A power cut shows within 2 s (contract, MQTT): 0.3 s until the silence is
noticed, this, and some for telling it."""

LAG_S: Final = 1.0
"""A loop that ran later than this has not read yet what peers said meanwhile: nobody is judged this time."""

RETRY_FIRST_S: Final = 0.2
RETRY_LIMIT_S: Final = 3.0
"""A daemon that was restarted is found again within the limit; a peer that is off costs 20 dials a minute."""


class ControlPlane:
    """All control connections of this node.

    `on_card`, `on_message`, `on_connected` (the first connection of a peer), `on_disconnected` (the last one
    went) are called from the loop and must not block.
    """

    def __init__(
        self,
        node_id: NodeId,
        membership: MembershipDriver,
        platform: Platform,
        on_card: Callable[[NodeCard], None],
        on_message: Callable[[NodeId, PeerMessage], None],
        on_connected: Callable[[NodeId], None],
        on_disconnected: Callable[[NodeId], None],
    ) -> None:
        self._node_id = node_id
        self._membership = membership
        membership.connections = self._all
        self._platform = platform
        self._on_card, self._on_message = on_card, on_message
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._card: NodeCard | None = None
        self._revision = 1
        self._card_order = CardOrder()
        self._listeners = Listeners(platform, MAX_HANDSHAKES, self._accepted)
        self._connections: dict[NodeId, list[Connection]] = {}
        self._handshakes = Handshakes(
            lambda: Connection(self, dialled=False), lambda address, error: self._strangers.note(address, "", error)
        )
        self._own: set[str] = set()
        """Addresses that turned out to be this node's own."""
        self._contacts: dict[tuple[str, int], str] = {}
        """(address or host name, port) -> what it is called."""
        self._rumours = Rumours()
        self._paths: dict[NodeId, tuple[Target, ...]] = {}
        self._doubted: set[NodeId] = set()
        self._dials: dict[Target, asyncio.Task[None]] = {}
        self._refusals: dict[Target, int] = {}
        """How often in a row the node there refused this node's key."""
        self._pools_changed = asyncio.Event()
        """Set, and replaced, whenever a connection came or went: dials that wait for that look again."""
        self._tasks: asyncio.TaskGroup | None = None
        self._strangers = Strangers()
        self._versions = ForeignVersions(CONTROL_PROTOCOL)
        self.newcomers = Newcomers(node_id, self, self._spawn, self._own)
        self.on_yield: Callable[[], None] = lambda: None  # its twin was there first
        self.on_refused: Callable[[str, int], None] = lambda address, number: None
        """Told the local address and the errno of each dial from one of this host's addresses that failed."""
        self.messages_sent = 0
        self.messages_received = 0

    # --- life -----------------------------------------------------------------------------------------------

    def listen(self, port: int) -> None:
        """Raises StartError where the port is taken."""
        self._listeners.listen(port)

    async def run(self) -> None:
        """Accepts and dials until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._listeners.accept()
            tasks.create_task(self._keep_alive(), name="control keep-alive")
            self._reconcile()

    async def goodbye(self, incarnation: int, text: str) -> None:
        """Says goodbye to every peer and closes all connections in order; none is made any more."""
        self._tasks = None
        self._listeners.close()
        ending = [*self._handshakes.under_way(), *self._dials.values()]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        for peer in list(self._connections):
            self.send(peer, Goodbye(incarnation, text))
        connections = [connection for pool in self._connections.values() for connection in pool]
        for connection in connections:
            connection.close()
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=1.0)

    # --- whom to reach --------------------------------------------------------------------------------------

    def set_card(self, card: NodeCard) -> None:
        """This node's card, told to every peer at once and to each new one."""
        changed = self._card is not None and self._card != card
        self._card = card
        self._listeners.follow(card.addresses)
        if changed:
            self._own.clear()
            self._revision += 1
            data = encode(CardUpdate(card, self._revision))
            for connection in self._all():
                connection.send(data)
            self._reconcile()

    def contact(self, address: str, port: int, name: str, *, rumour: bool = False) -> None:
        """A peer may be reached here: dial until there is a connection, and again when it is lost."""
        if not rumour:
            self._rumours.drop([(address, port)])
        elif (address, port) not in self._contacts:
            self._rumours.add((address, port))
        self._contacts[address, port] = name
        self._start_dials(self._targets_of(address, port))

    def forget_contact(self, address: str, port: int) -> None:
        """No path shares a contact's targets: they are ended with it, without a look at all others."""
        self._contacts.pop((address, port), None)
        self._rumours.drop([(address, port)])
        for target in self._targets_of(address, port):
            if target in self._dials:
                self._dials.pop(target).cancel()

    def _targets_of(self, address: str, port: int) -> tuple[Target, ...]:
        return contact_targets(address, port, self._card.addresses if self._card is not None else ())

    def set_paths(self, peer: NodeId, targets: tuple[Target, ...]) -> None:
        """The usable paths to `peer`, best first: a connection is kept warm on each, dialled by the lower id."""
        if self._paths.get(peer, ()) != targets:
            self._paths[peer] = targets
            self._reconcile()

    def doubt(self, peer: NodeId, silent: bool) -> None:
        """A peer that is silent on all paths: its daemon stands still, or its host is gone. A living host's kernel
        acknowledges what a connection carries; one that does not loses its connections, which tells the two apart.
        """
        if silent == (peer in self._doubted):
            return
        self._doubted ^= {peer}
        for connection in list(self._connections.get(peer, ())):
            self._set_patience(connection)
            if silent:
                connection.send(encode(StillThere()))

    def _set_patience(self, connection: Connection) -> None:
        doubted = connection.peer in self._doubted
        connection.give_up_after(self._platform, DOUBTED_UNACKNOWLEDGED_S if doubted else UNACKNOWLEDGED_S)

    def path_died(self, peer: NodeId, local: str, remote: str) -> None:
        """Closes the connections that run over a dead path: what is sent from now on takes another."""
        for connection in list(self._connections.get(peer, ())):
            if (connection.local, connection.remote) == (local, remote):
                connection.reset()

    def _reconcile(self) -> None:
        """Starts the dials that are wanted and ends those that are not."""
        if self._tasks is None:
            return
        wanted = {target for contact in self._contacts for target in self._targets_of(*contact)}
        for peer, targets in self._paths.items():
            if self._node_id < peer:
                wanted.update(targets[:MAX_CONNECTIONS_PER_PEER])
        for target in [known for known in self._dials if known not in wanted]:
            self._dials.pop(target).cancel()
        self._refusals = {target: number for target, number in self._refusals.items() if target in wanted}
        self._start_dials(wanted)

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        if self._tasks is None:
            work.close()
        else:
            self._tasks.create_task(work, name=name)

    def _start_dials(self, wanted: Iterable[Target]) -> None:
        for target in wanted:
            if self._tasks is not None and target not in self._dials:
                task = self._tasks.create_task(self._dial_for_ever(target), name=f"dial {target.address}")
                self._dials[target] = task

    # --- messages -------------------------------------------------------------------------------------------

    def send(self, peer: NodeId, message: PeerMessage) -> bool:
        """Sends over the best connection; False where there is none. True is no promise that it arrives."""
        try:
            data = encode(message)
        except FrameError as error:
            log.error("message_too_long", peer=peer, kind=type(message).__name__, text=str(error))
            return False
        for connection in self._by_preference(peer):
            if connection.send(data):
                self.messages_sent += 1
                return True
        return False

    def broadcast(self, message: PeerMessage) -> None:
        for peer in list(self._connections):
            self.send(peer, message)

    def peers(self) -> list[NodeId]:
        return list(self._connections)

    def pool(self, peer: NodeId) -> list[Connection]:
        return self._connections.get(peer, [])

    def leave_peers(self) -> None:
        """This node's twin is in the mesh: no connection is kept, and contacts are only asked after it."""
        self._paths.clear()
        for connection in self._all():
            connection.reset()
        self.on_yield()

    def facts(self, cluster: str) -> tuple[Fact, ...]:
        """What is wrong with those that try to join."""
        me = self._card.name if self._card is not None else self._node_id
        return (*self.newcomers.facts(), *self._versions.facts(me), *self._strangers.facts(cluster))

    def connection_on(self, peer: NodeId, local: str, remote: str) -> Connection | None:
        """The connection that runs over this path, if there is one."""
        for connection in self._connections.get(peer, ()):
            if (connection.local, connection.remote) == (local, remote) and connection.is_open:
                return connection
        return None

    def strangers(self) -> tuple[str, ...]:
        """Who was refused for another key lately, as text."""
        return self._strangers.texts()

    def _all(self) -> list[Connection]:
        return [connection for pool in self._connections.values() for connection in pool]

    def _by_preference(self, peer: NodeId) -> list[Connection]:
        order = {(target.local, target.address): place for place, target in enumerate(self._paths.get(peer, ()))}
        usable = [connection for connection in self._connections.get(peer, ()) if connection.is_open]
        return sorted(usable, key=lambda c: order.get((c.local, c.remote), len(order)))

    # --- dialling and accepting -----------------------------------------------------------------------------

    async def _dial_for_ever(self, target: Target) -> None:
        delay = RETRY_FIRST_S
        while True:
            while not self._is_needed(target):
                await self._pools_changed.wait()
            async with self._rumours.turn((target.address, target.port)):
                connection = await self._dial(target)
            if connection is not None:
                opened = time.monotonic()
                await asyncio.shield(connection.closed)
                if time.monotonic() - opened > RETRY_LIMIT_S:
                    delay = RETRY_FIRST_S
            pause, delay = self._rumours.pause_s((target.address, target.port), delay, RETRY_LIMIT_S)
            await asyncio.sleep(pause)

    def _is_needed(self, target: Target) -> bool:
        """A contact is dialled only while nothing leads to that address; a path while nothing runs over it."""
        for connection in self._all():
            if connection.remote == target.address and (target.contact or target.local == connection.local):
                return False
        if not target.contact:
            return True
        return target.address not in self._own and not any(
            target.address in _addresses(card) for card in self._cards()
        )

    def _cards(self) -> list[NodeCard]:
        """Cards of peers that are connected: their other addresses need no contact."""
        return [pool[0].card for pool in self._connections.values() if pool and pool[0].card is not None]

    async def _dial(self, target: Target) -> Connection | None:
        """One try. Where the key was refused, the next one uses an older one: a node that was away has no other."""
        loop = asyncio.get_running_loop()
        ways = self._membership.ring.dials()
        refusals = self._refusals.get(target, 0)
        context, name = ways[refusals % len(ways)]
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor is left
            log.warning("dial_failed", address=f"{target.address}:{target.port}", error=error.strerror)
            return None
        sock.setblocking(False)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                if target.local:
                    with contextlib.suppress(PermissionError):  # then the route table decides (routes.py asks it)
                        self._platform.bind_to_interface(sock, target.interface)
                    sock.bind((target.local, 0))
                # Static peers may be host names: looked up again at each dial.
                known = [target.address] if target.local else await lookup_ipv4(target.address)
                await loop.sock_connect(sock, (known[0], target.port))
                _, connection = await loop.create_connection(
                    lambda: Connection(self, dialled=True),
                    sock=sock,
                    ssl=context,
                    server_hostname=name,
                    ssl_handshake_timeout=HANDSHAKE_S,
                )
                self._refusals.pop(target, None)
                return connection
        except ssl.SSLError as error:
            self._refusals[target] = refusals + 1
            if (refusals + 1) % len(ways) == 0:
                self._rumours.refused((target.address, target.port))
            called = self._contacts.get((target.address, target.port), "")
            self._strangers.note(target.address, called, error)
        except (OSError, TimeoutError) as error:
            log.debug("dial_failed", address=f"{target.address}:{target.port}", error=str(error))
            if target.local and error.errno:
                self.on_refused(target.local, error.errno)
        except asyncio.CancelledError:
            sock.close()
            raise
        sock.close()
        return None

    def _accepted(self, sock: socket.socket, source: str) -> None:
        if self._tasks is None:
            sock.close()
        else:
            self._handshakes.begin(self._tasks, sock, source, self._membership.ring.server)

    # --- what connections report ----------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        if self._card is None:
            connection.abort()  # not ready yet
            return
        if self._membership.opened(connection):
            self._set_patience(connection)
            number = self._membership.core.current.number
            connection.send(encode(self.newcomers.greeting(self._card, number, self._revision)))

    def received(self, connection: Connection, message: ControlMessage | UnknownMessage | ForeignGreeting) -> None:
        match message:
            case KeyOffer() | KeyHeld() | KeyRefused():
                self._membership.received(connection, message)
            case _ if self._awaits_key(connection):
                pass  # it is still to be given the key, or has just been
            case ForeignGreeting(protocol=protocol, card=foreign):
                self._refuse_version(connection, foreign.name, protocol)
            case Greeting(protocol=protocol, card=card) if protocol != CONTROL_PROTOCOL:
                self._refuse_version(connection, card.name, protocol)
            case Greeting(card=card):
                if card.id != connection.peer:
                    connection.refuse(f"its certificate names {connection.peer}, its card {card.id}")
                elif not self.newcomers.takes(connection, message):
                    self.admit(connection, message)
            case _ if not connection.greeted or connection.peer is None:
                connection.refuse("it sent something else before its greeting")
            case TwinSeen():
                self.newcomers.told(message)
            case UnknownMessage(tag=tag):
                log.debug("message_unknown", peer=connection.peer, kind=printable(tag, 64))
            case _ if connection.on_trial:
                pass
            case CardUpdate(card=card, revision=revision):
                if card.id == connection.peer and self._card_order.is_news(card, revision):
                    for other in self._connections.get(connection.peer, ()):
                        other.card = card
                    self._note_pools_changed()
                    self._on_card(card)
            case StillThere() | Admission():
                pass
            case _:
                self.messages_received += 1
                self._on_message(connection.peer, message)

    def _refuse_version(self, connection: Connection, name: str, protocol: int) -> None:
        if connection.peer is not None:
            self._versions.note(connection.peer, printable(name, MAX_SHOWN), protocol)
        connection.abort()

    def _awaits_key(self, connection: Connection) -> bool:
        return not connection.greeted and connection.proven_by != self._membership.core.current.key

    def admit(self, connection: Connection, greeting: Greeting) -> None:
        """Takes a connection of the peer's present process into the peer's pool."""
        assert connection.peer is not None
        is_news = self._card_order.is_news(greeting.card, greeting.revision)
        known = self._connections.get(connection.peer)
        connection.card = card = greeting.card if is_news or not known else known[0].card or greeting.card
        self._rumours.drop((address, card.mesh_port) for address in _addresses(card))
        self._end_earlier_life(connection.peer, card.incarnation)
        pool = self._connections.setdefault(connection.peer, [])
        first = not pool
        pool.append(connection)
        for one in surplus(pool, self._node_id):
            one.close()
        self._note_pools_changed()
        self._on_card(card)
        if first:
            self._on_connected(connection.peer)
        self._membership.greeted(connection, greeting.key_number)

    def _end_earlier_life(self, peer: NodeId, incarnation: int) -> None:
        """The peer's daemon is a new process: connections of the earlier one that still seem open are dead."""
        for connection in list(self._connections.get(peer, ())):
            if connection.card is not None and connection.card.incarnation < incarnation:
                connection.reset()
                self.lost(connection)

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
        data = encode(StillThere())
        while True:
            pause_s = until_next(KEEP_ALIVE_S)
            due = time.monotonic() + pause_s
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            for connection in self._all():
                if now - connection.heard_at > SILENCE_S and now - due < LAG_S:
                    connection.refuse(f"nothing was heard for {SILENCE_S:.0f} s")
                else:
                    connection.send(data)


def _addresses(card: NodeCard) -> list[str]:
    return [address.address for address in card.addresses]
