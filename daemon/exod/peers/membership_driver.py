"""Carries out what the membership's core decides: keys over connections, on disk and into TLS.

Decides nothing about who gets a key (core/membership/membership.py). Draws the random bytes and knows the clock.
The daemon hears of it by `on_keys`, `on_holder`, `on_expelled` and `on_event`: called from the loop, they must not
block.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from exod.core.membership.membership import (
    AdmitGuest,
    AdoptKey,
    ClusterKey,
    Commands,
    Membership,
    MembershipRecord,
    OfferKey,
    RefusePeer,
    RemoveAgain,
    SaveRecord,
)
from exod.errors import RequestError
from exod.model import Event, NodeId
from exod.peers.connection import Connection
from exod.peers.invitation import invitation_token
from exod.peers.key_ring import KeyRing
from exod.peers.peer_messages import Admission, KeyHeld, KeyMessage, KeyOffer, KeyRefused
from exod.peers.trust import KEY_BYTES, key_fingerprint, peer_pin
from exod.plain_text import printable

log = structlog.get_logger()

OVERLAP_S: Final = 60.0
"""Members that are connected take a new key over within a second. So long each of them is still understood by the
old one; who has not said then that it holds the new one is not a member that is merely slow."""

SETTLED_S: Final = 5.0
"""How long a person waits for the others: what is not there after it is away."""

SECRET_BYTES: Final = 16
MAX_TEXT: Final = 300


class RecordStore(Protocol):
    """Where the record is kept (membership_file.py)."""

    def write(self, record: MembershipRecord) -> None: ...

    def write_key(self, record: MembershipRecord) -> MembershipRecord: ...


class MembershipDriver:
    """`name` is this node's, `cluster` the cluster's; without `store` nothing is kept."""

    def __init__(
        self,
        me: NodeId,
        name: str,
        cluster: str,
        record: MembershipRecord,
        own_key: bytes | None = None,
        store: RecordStore | None = None,
    ) -> None:
        self._name, self._cluster, self._store = name, cluster, store
        self.core = Membership(me, record)
        self.ring = KeyRing(me, own_key)
        self._follow()
        self.connections: Callable[[], Iterable[Connection]] = tuple
        """Every connection whose peer has greeted."""
        self.on_keys: Callable[[tuple[bytes, ...]], None] = lambda keys: None
        """Told the keys that peers may use now, the current one first."""
        self.on_holder: Callable[[NodeId], None] = lambda peer: None
        """Told each peer that turns out to hold the current key."""
        self.on_expelled: Callable[[NodeId], None] = lambda peer: None
        self.on_event: Callable[[str, dict[str, object]], None] = lambda kind, data: None
        self._settled = asyncio.Event()
        self._in_overlap: tuple[bytes, ...] = ()

    @property
    def fingerprint(self) -> str:
        return key_fingerprint(self.core.current.key)

    def _follow(self) -> None:
        now = time.time()
        keys = [self.core.current, *self.core.retired(now)]
        self.ring.follow((one.key for one in keys), (one.secret for one in self.core.open_invitations(now)))

    # --- what connections report ----------------------------------------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """Whether this connection is a member's, who is greeted now. Others are answered here, and end."""
        proof = self.ring.proof(connection.ssl_object)
        connection.proven_by, connection.pin = proof.key, peer_pin(connection.ssl_object)
        assert connection.peer is not None
        if proof.secret is not None:
            commands = self.core.redeemed(connection.peer, proof.secret, connection.pin, time.time())
        elif proof.key != self.core.current.key:
            commands = self.core.asks(connection.peer, connection.pin, proof.key, time.time())
        else:
            return True
        self._carry_out(commands, connection)
        return False

    def greeted(self, connection: Connection, number: int) -> None:
        """`number` is of the key that the peer holds; -1: it knows no rotation, and no pair of its own."""
        assert connection.peer is not None
        if connection.proven_by == self.core.current.key:
            self.on_holder(connection.peer)
        if number >= 0:
            commands = self.core.greeted(connection.peer, connection.pin, number, connection.proven_by)
            self._carry_out(commands, None)

    def received(self, connection: Connection, message: KeyMessage) -> None:
        peer = connection.peer
        assert peer is not None
        match message:
            case KeyOffer(number=number, key=key, by=by, removed=removed):
                offered = ClusterKey(number, key, printable(by, MAX_TEXT))
                commands = self.core.offered(peer, connection.pin, offered, removed, time.time())
                self._carry_out(commands, connection)
                if self.core.current.key == key:
                    connection.send_message(KeyHeld(self.fingerprint))
            case KeyHeld(fingerprint=fingerprint):
                if fingerprint == self.fingerprint and connection.pin == self.core.record.pins.get(peer):
                    self.core.holds(peer)
                    self.on_holder(peer)
                    self._settled.set()
            case KeyRefused(text=text):
                text = printable(text, MAX_TEXT)
                log.error("cluster_key_refused", peer=peer, text=text)
                self.on_event("cluster.refused", {"peer": peer, "text": text})
        if not connection.greeted:
            connection.close()

    # --- what a person asks ---------------------------------------------------------------------------------

    async def rotate(self, leave_out: tuple[NodeId, ...] = ()) -> None:
        """Returns when every member that is connected holds the new key, or after SETTLED_S."""
        self._rotate(leave_out)
        deadline = time.monotonic() + SETTLED_S
        while self._behind() and (left := deadline - time.monotonic()) > 0:
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), left)
            except TimeoutError:
                return

    def _rotate(self, leave_out: tuple[NodeId, ...]) -> None:
        fresh = secrets.token_bytes(KEY_BYTES)
        self._carry_out(self.core.rotate(fresh, self._name, leave_out, time.time()), None)

    def _behind(self) -> set[NodeId]:
        connected = {one.peer for one in self.connections() if one.peer is not None}
        return connected & self.core.away()

    def unable(self) -> set[NodeId]:
        """Peers that are connected and to whom no new key can be given: they run an older exod, or show another
        key of their own than before."""
        known = self.core.record.pins
        return {one.peer for one in self.connections() if one.peer is not None and known.get(one.peer) != one.pin}

    def invite(self, for_s: float, once: bool, addresses: tuple[str, ...], port: int) -> str:
        """The token. Raises RequestError where too many are open."""
        secret = secrets.token_bytes(SECRET_BYTES)
        commands = self.core.invite(secret, for_s, once, time.time())
        if not commands:
            raise RequestError("too_many", "too many invitations are open: wait until one ends, or rotate the key")
        self._carry_out(commands, None)
        self._follow()
        return invitation_token(secret, addresses, port, self._cluster)

    def event_written(self, event: Event) -> None:
        if event.type == "node.forgotten":
            self.forget(NodeId(event.subject))

    def forget(self, peer: NodeId) -> None:
        self._carry_out(self.core.forget(peer), None)

    # --- commands of the core -------------------------------------------------------------------------------

    def _carry_out(self, commands: Commands, connection: Connection | None) -> None:
        """`connection` is the one that the commands answer."""
        for command in commands:
            match command:
                case SaveRecord():
                    if self._store is not None:
                        self._store.write(self.core.record)
                case AdoptKey(key=key, expelled=expelled):
                    self._adopted(key, expelled)
                case OfferKey():
                    assert connection is not None
                    self._offer(connection)
                case RefusePeer(peer=peer, text=text):
                    self._refuse(peer, text, connection)
                case RemoveAgain(nodes=nodes):
                    self._rotate(nodes)
                case AdmitGuest():
                    assert connection is not None
                    self._admit(connection)

    def _adopted(self, key: ClusterKey, expelled: tuple[NodeId, ...]) -> None:
        if self._store is not None:
            self.core.record = self._store.write_key(self.core.record)
        self._follow()
        self._in_overlap = (key.key, *self._in_overlap) if self._in_overlap else self._with_last(key)
        self.on_keys(self._in_overlap)
        data: dict[str, object] = {"number": key.number, "fingerprint": self.fingerprint, "by": key.by}
        self.on_event("cluster.rotated", {**data, "removed": list(expelled)})
        log.info("cluster_key_rotated", **data, removed=list(expelled))
        for connection in list(self.connections()):
            if connection.peer in expelled:
                connection.send_message(KeyRefused(f"this node was removed from the cluster on {key.by}"))
                connection.close()
        for node in expelled:
            self.on_expelled(node)
        self._tell_all()
        asyncio.get_running_loop().call_later(OVERLAP_S, self._end_overlap, key.key)

    def _with_last(self, key: ClusterKey) -> tuple[bytes, ...]:
        return (key.key, *(one.was.key for one in self.core.record.retired[:1]))

    def _tell_all(self) -> None:
        told: set[NodeId] = set()
        for connection in list(self.connections()):
            peer = connection.peer
            if peer is None or peer in told or not connection.is_open:
                continue
            commands = self.core.asks(peer, connection.pin, connection.proven_by, time.time())
            if any(isinstance(one, OfferKey) for one in commands):
                told.add(peer)
                self._offer(connection)

    def _end_overlap(self, key: bytes) -> None:
        """From now on nothing is understood by an older key, and who never took the new one over is a stranger."""
        if key != self.core.current.key:
            return  # another rotation came, and has an overlap of its own
        self._in_overlap = ()
        self.on_keys((key,))
        for connection in list(self.connections()):
            if connection.proven_by != key and connection.peer not in self.core.holders:
                connection.refuse("it did not take the new cluster key over")

    def _offer(self, connection: Connection) -> None:
        current = self.core.current
        connection.send_message(KeyOffer(current.number, current.key, current.by, self.core.record.removed))

    def _refuse(self, peer: NodeId, text: str, connection: Connection | None) -> None:
        log.warning("key_not_given", peer=peer, text=text)
        if connection is None:
            self.on_event("cluster.refused", {"peer": peer, "text": text})
        elif not connection.greeted:
            connection.send_message(KeyRefused(text))
            connection.close()

    def _admit(self, connection: Connection) -> None:
        log.info("guest_admitted", address=connection.remote)
        self.on_event("cluster.invited", {"address": connection.remote})
        connection.send_message(Admission(self._cluster, self.core.current.key))
        connection.close()
