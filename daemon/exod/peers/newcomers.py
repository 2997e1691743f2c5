"""Greetings under an id that is taken: this node's own, or that of a peer whose earlier process is still connected.

The theory. A data folder that was copied to another host makes two nodes of one identity. Each process has a
number of its own (`life`), said in its greeting. A connection to this node's own id with another life is a twin. Of
a peer, another life is mostly a restart: it comes from the same host, or nothing more is heard of the earlier one.
Where the earlier one is heard all the same, from another host, they are twins, and both are told. The one with
peers stays, of equals the one that was started first; the other leaves its peers and only asks (as a guest) whether
the twin is still there.

Decides who is a twin and who yields; the control plane owns the connections.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, Protocol

import msgspec
import structlog

from exod.core.base.facts import IDENTITY_TWIN, Fact
from exod.model import NodeCard, NodeId
from exod.peers.connection import Connection
from exod.peers.peer_messages import CONTROL_PROTOCOL, Greeting, StillThere, TwinSeen, encode

log = structlog.get_logger()

CHALLENGE_S: Final = 3.0
"""A daemon says something every 2 s on each connection (`KEEP_ALIVE_S`). A restart from another address waits so
long where its earlier life's connections were never closed."""

LATE_S: Final = 0.5
"""What an earlier life sent just before it ended may be read after its successor's greeting."""

LOOK_S: Final = 0.1

COUNTS_S: Final = 15.0
"""Contacts are dialled every 3 s: a twin that was not met in five of them is gone."""

RENEW: Final = "on the host that has the copy: exoctl cluster renew-identity, then restart exod there"


class PeerPools(Protocol):
    def peers(self) -> Sequence[NodeId]: ...

    def pool(self, peer: NodeId) -> Sequence[Connection]: ...

    def admit(self, connection: Connection, greeting: Greeting) -> None:
        """It is the peer's present life."""

    def leave_peers(self) -> None:
        """This node yields to its twin."""


class _Sighting(msgspec.Struct, frozen=True):
    at: float
    text: str


class Newcomers:
    """`spawn` starts a task that ends with the control plane; `own` collects this node's own addresses."""

    def __init__(
        self,
        me: NodeId,
        plane: PeerPools,
        spawn: Callable[[Coroutine[object, object, None], str], None],
        own: set[str],
    ) -> None:
        self._me, self._plane, self._spawn, self._own = me, plane, spawn, own
        self.life = secrets.token_hex(8)
        self._card: NodeCard | None = None
        self._yields_until = 0.0
        self._seen: dict[NodeId, _Sighting] = {}

    @property
    def yields(self) -> bool:
        """Does this node stay out of the mesh, because its twin is in it?"""
        return time.monotonic() < self._yields_until

    def greeting(self, card: NodeCard, key_number: int, revision: int) -> Greeting:
        self._card = card
        joined = bool(self._plane.peers())
        return Greeting(CONTROL_PROTOCOL, card, key_number, self.life, joined, self.yields, revision)

    def takes(self, connection: Connection, greeting: Greeting) -> bool:
        """Is this greeting dealt with here? If not, its sender is a peer like any other."""
        card, peer = greeting.card, connection.peer
        connection.life = greeting.life
        if peer == self._me:
            self._met_own_id(connection, greeting)
            return True
        if self._elders(connection, card):
            connection.card, connection.on_trial = card, True
            self._spawn(self._try(connection, greeting), f"challenge {peer}")
            return True
        if self.yields:
            connection.card, connection.on_trial = card, True
            self._spawn(self._ask(connection), f"ask {peer} after the twin")
        elif greeting.guest:
            connection.close()
        return greeting.guest or self.yields

    async def _ask(self, connection: Connection) -> None:
        """The peer says by itself whether the twin is there, within the time that it takes to find out."""
        await asyncio.sleep(2 * CHALLENGE_S)
        connection.close()

    def told(self, twin: TwinSeen) -> None:
        """A peer heard another host under this node's id."""
        self._saw(twin.card, twin.joined, twin.life)

    def facts(self) -> tuple[Fact, ...]:
        since = time.monotonic() - COUNTS_S
        self._seen = {node: one for node, one in self._seen.items() if one.at > since}
        return tuple(Fact(IDENTITY_TWIN, node, one.text) for node, one in self._seen.items())

    # --- this node's own id ---------------------------------------------------------------------------------

    def _met_own_id(self, connection: Connection, greeting: Greeting) -> None:
        if greeting.life == self.life:
            self._own.add(connection.remote)
            connection.abort()
            return
        self._saw(greeting.card, greeting.joined, greeting.life, connection.remote)
        connection.close()

    def _saw(self, card: NodeCard, joined: bool, life: str, met_at: str = "") -> None:
        if self._card is None or life == self.life:
            return
        mine = (bool(self._plane.peers()), -self._card.incarnation, self.life)
        other_first = (joined, -card.incarnation, life) > mine
        now = time.monotonic()
        yielded, self._yields_until = self.yields, now + COUNTS_S if other_first else 0.0
        says = "came later, and does not join" if other_first else "was there first, and stays"
        where = _places(card) or met_at
        text = (
            f"another host runs exod with the identity of {card.name} (a copied data folder), at {where}: "
            f"this one {says}; {RENEW}"
        )
        if self._me not in self._seen:
            log.error("identity_twin", twin=where, yields=other_first, text=text)
        self._seen[self._me] = _Sighting(now, text)
        if other_first and not yielded:
            self._plane.leave_peers()

    # --- another's id ---------------------------------------------------------------------------------------

    def _elders(self, connection: Connection, card: NodeCard) -> list[Connection]:
        """Connections of another life of this peer, from another host as far as addresses tell."""
        assert connection.peer is not None
        others = [
            one
            for one in self._plane.pool(connection.peer)
            if one.card is not None and (one.life, one.card.incarnation) != (connection.life, card.incarnation)
        ]
        same_host = any(connection.remote == one.remote or connection.remote in _addresses(one) for one in others)
        return [] if same_host else others

    async def _try(self, connection: Connection, greeting: Greeting) -> None:
        """Whether the earlier life still speaks. Where its host runs and it does not, its kernel ends the
        connection at the next byte.
        """
        card, began = greeting.card, time.monotonic()
        for elder in self._elders(connection, card):
            elder.send(encode(StillThere()))
        while connection.is_open and time.monotonic() - began < CHALLENGE_S:
            elders = self._elders(connection, card)
            speaking = [one for one in elders if one.heard_at > began + LATE_S]
            if speaking:
                self._are_twins(speaking[0], connection, greeting)
                return
            if not elders:
                break
            await asyncio.sleep(LOOK_S)
        if connection.is_open:
            connection.on_trial = False
            if greeting.guest:
                connection.close()
            else:
                self._plane.admit(connection, greeting)

    def _are_twins(self, elder: Connection, connection: Connection, greeting: Greeting) -> None:
        assert elder.card is not None
        assert elder.peer is not None
        elder.send(encode(TwinSeen(greeting.card, joined=False, life=greeting.life)))
        connection.send(encode(TwinSeen(elder.card, joined=True, life=elder.life)))
        connection.close()
        text = (
            f"two hosts run exod with the identity of {elder.card.name}: {_places(elder.card)}, which stays, and "
            f"{_places(greeting.card) or connection.remote}, which does not join; {RENEW}"
        )
        if elder.peer not in self._seen:
            log.warning("identity_twin", peer=elder.peer, text=text)
        self._seen[elder.peer] = _Sighting(time.monotonic(), text)


def _addresses(connection: Connection) -> list[str]:
    return [one.address for one in connection.card.addresses] if connection.card is not None else []


def _places(card: NodeCard) -> str:
    return ", ".join(one.address for one in card.addresses)
