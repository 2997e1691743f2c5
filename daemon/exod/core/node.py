"""The whole core of one node: inputs in, commands out, with `now` beside them.

The four verbs are those of a sans-I/O protocol: `handle` an input, `handle_timer`, `next_deadline`, and the
commands that both return. Decides nothing itself: it takes datagrams apart (datagram.py), gives each to its link
(link.py), tells the mesh (mesh.py) what changed, and tells the links what the mesh committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from exod.core.base import events
from exod.core.base.config import CoreConfig
from exod.core.base.errors import IllegalMoveError, WireError
from exod.core.base.events import Command, Input, LogRejected
from exod.core.base.journal import Decision, Journal
from exod.core.cluster.mesh import Mesh
from exod.core.cluster.pair_summary import summarize_pair
from exod.core.cluster.plan_acceptance import shares_edge
from exod.core.pair.link import Link
from exod.core.probe.datagram import VersionError, counters_sane
from exod.core.probe.datagram_keys import DatagramKeys
from exod.core.probe.version_skew import VersionSkews
from exod.core.status.view import NodeView, link_view, mesh_view, node_entry, self_entry
from exod.model import MAX_COUNTER, MeshPlan, NodeCard, NodeId, NodeState

MAX_PEERS = 64
"""Beyond this the peer that has been down for longest is forgotten: a bound on memory and on probing."""
LOST_S = 7 * 86_400.0
"""A node that was down for a week is not waited for: a power cut over a holiday is shorter, and a node that
comes back after it is simply a new one.
"""

LOOK_FOR_LOST_S = 3_600.0
"""An hour more or less means nothing after a week."""

SMALL_CLUSTER = 8
"""Up to this many nodes the coordinator's pairs are watched as closely as the ring's."""


class NodeCore:
    """`key` is the datagrams' MAC key (up to 64 bytes); `platform` is "darwin" or "linux", for texts only; `seed`
    spreads the probes in time; `epoch_number` is the highest that PersistEpoch ever gave.
    """

    def __init__(
        self,
        card: NodeCard,
        key: bytes,
        config: CoreConfig,
        platform: str,
        seed: int,
        epoch_number: int,
        now: float,
    ) -> None:
        self.card = card
        self._keys = DatagramKeys(key)
        self._config = config
        self._platform = platform
        self._seed = seed
        self._started_at = now
        self._journal = Journal()
        self.links: dict[NodeId, Link] = {}
        self.mesh = Mesh(card, config, self._journal, epoch_number, now)
        self._announced: tuple[int, bool] | None = None
        self._announced_plan: MeshPlan | None = None
        """What the links' datagrams show of the mesh; None where one must be told anew."""
        self._deadlines: dict[NodeId, float] = {}
        self._next_link_at = math.inf
        self._touched: set[NodeId] = set()
        """Peers whose link's deadline must be asked for again."""
        self._quiet = False
        self._skews = VersionSkews()
        self._look_for_lost_at = now + LOOK_FOR_LOST_S
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.DatagramReceived: self._datagram_received,
            events.DatagramSent: self._datagram_sent,
            events.SendFailed: self._send_failed,
            events.CardChanged: self._card_changed,
            events.PeerCardReceived: self._peer_card_received,
            events.PeerLeft: self._peer_left,
            events.MessageReceived: self._message_received,
            events.PeerConnected: self._peer_connected,
            events.PeerDisconnected: self._peer_disconnected,
            events.RouteChecked: self._route_checked,
            events.RingEvidence: self._ring_evidence,
            events.RenegotiateRequested: self._renegotiate_requested,
            events.ForgetPeer: self._forget_peer,
            events.DebugFault: self._debug_fault,
            events.DebugPin: self._debug_pin,
            events.ActivityChanged: self._activity_changed,
            events.LoopLagged: self._loop_lagged,
            events.HostSlept: self._host_slept,
            events.KeysChanged: self._keys_changed,
            events.PeerHoldsKey: self._peer_holds_key,
        }

    # --- the four verbs -----------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> list[Command]:
        """Take one input. Never raises for anything that came from outside."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise IllegalMoveError("not an input of the core", event=event)
        handler(event, now)
        if type(event) is not events.DatagramSent:  # a stamp changes nothing that others hear of
            self._propagate(now)
        return self._journal.drain()

    def handle_timer(self, now: float) -> list[Command]:
        """Do what is due. Sockets are drained first (the late-loop rule), and a lag is given with LoopLagged."""
        if now >= self._look_for_lost_at:
            self._look_for_lost(now)
        self._ask_deadlines()
        for peer, deadline in self._deadlines.items():
            if deadline <= now:
                self.links[peer].handle_timer(now)
                self._touched.add(peer)
        self._tell_mesh(now)
        if self.mesh.deadline <= now:
            self.mesh.evaluate(now)
        self._propagate(now)
        return self._journal.drain()

    def next_deadline(self) -> float | None:
        """When handle_timer has something to do, if nothing else happens."""
        if self._touched:
            self._ask_deadlines()
        return min(self.mesh.deadline, self._next_link_at)

    def _ask_deadlines(self) -> None:
        for peer in self._touched:
            link = self.links.get(peer)
            if link is None:
                self._deadlines.pop(peer, None)
            else:
                self._deadlines[peer] = link.next_deadline()
        self._touched.clear()
        self._next_link_at = min(self._deadlines.values(), default=math.inf)

    def goodbye(self, now: float) -> list[Command]:
        """This node is leaving: one last datagram on each living path."""
        self._touched |= self.links.keys()
        for link in self.links.values():
            link.goodbye(now)
        return self._journal.drain()

    # --- what it knows ------------------------------------------------------------------------------------------

    def view(self, now: float) -> NodeView:
        links = [self.links[peer] for peer in sorted(self.links)]
        return NodeView(
            me=self.card,
            nodes=(
                self_entry(self.card, self._started_at),
                *(node_entry(link, self._skew_of(link.peer, now)) for link in links),
            ),
            links=tuple(link_view(link, self._platform, now) for link in links),
            mesh=mesh_view(self.mesh),
        )

    def _skew_of(self, peer: NodeCard, now: float) -> str:
        return self._skews.text(peer.id, peer.name, self.card.name, now)

    def history(self) -> tuple[Decision, ...]:
        """The newest decisions with their inputs, oldest first."""
        return self._journal.history()

    def validate(self) -> None:
        """Every invariant that one node can check of itself. For tests: raises AssertionError."""
        for link in self.links.values():
            link.validate()
        self.mesh.validate()

    def _touch(self, peer: NodeId) -> Link | None:
        """The link to a peer, about to be changed."""
        self._touched.add(peer)
        return self.links.get(peer)

    # --- inputs -------------------------------------------------------------------------------------------------

    def _datagram_received(self, event: events.DatagramReceived, now: float) -> None:
        remote = event.remote_address
        try:
            datagram, key = self._keys.open(event.data)
        except WireError as error:
            self._journal.command(LogRejected(remote, error.code, error.text))
            if isinstance(error, VersionError):
                self._note_skew(remote, error.version, now)
            return
        if datagram.destination != self.card.id or datagram.sender == self.card.id:
            self._journal.command(LogRejected(remote, "not_for_me", f"it is for {datagram.destination}"))
            return
        if (datagram.source_address, datagram.target_address) != (remote, event.local_address):
            text = f"made for {datagram.source_address} to {datagram.target_address}"
            self._journal.command(LogRejected(remote, "wrong_addresses", text))
            return
        if not counters_sane(datagram):
            self._journal.command(LogRejected(remote, "malformed", "a counter is beyond what a life can reach"))
            return
        link = self._touch(datagram.sender)
        if link is None:
            return  # its card is on the way
        if key == self._keys.newest:
            link.probes.key = key
        elif link.probes.key == self._keys.newest:
            self._journal.command(LogRejected(remote, "bad_mac", "made with a key that its sender has replaced"))
            return
        self._skews.understood(datagram.sender)
        self.mesh.saw_epoch(datagram.epoch_number)
        link.receive(datagram, event.local_address, remote, event.received_at, now)

    def _note_skew(self, remote: str, version: int, now: float) -> None:
        for peer, link in self.links.items():
            if any(one.address == remote for one in link.peer.addresses):
                self._skews.note(peer, version, now)

    def _datagram_sent(self, event: events.DatagramSent, now: float) -> None:
        link = self.links.get(event.peer)
        if link is not None:
            link.sent(event.path, event.seq, event.sent_at, now)

    def _send_failed(self, event: events.SendFailed, now: float) -> None:
        link = self.links.get(event.peer)
        if link is not None:
            link.refused(event.path, event.errno)

    def _card_changed(self, event: events.CardChanged, now: float) -> None:
        if event.card.id != self.card.id or event.card.incarnation < self.card.incarnation:
            raise IllegalMoveError("a node keeps its id, and its incarnation only grows", card=event.card.id)
        self.card = event.card
        self._touched |= self.links.keys()
        for link in self.links.values():
            link.adopt_me(event.card, now)
        self._tell_mesh(now)
        self.mesh.adopt_card(event.card, now)

    def _peer_card_received(self, event: events.PeerCardReceived, now: float) -> None:
        card = event.card
        if card.id == self.card.id or not _is_sane(card):
            return
        link = self._touch(card.id)
        if link is not None:
            link.adopt_peer(card, now)
        elif self._has_room(now):
            self.links[card.id] = Link(
                self.card,
                card,
                key=self._keys.newest,
                config=self._config,
                journal=self._journal,
                seed=self._seed,
                now=now,
            )
            self.links[card.id].probes.quiet = self._quiet
            self._announced = None
            self._forget_renewed(card, now)

    def _has_room(self, now: float) -> bool:
        if len(self.links) < MAX_PEERS:
            return True
        down = [link for link in self.links.values() if link.liveness.state is NodeState.DOWN]
        if not down:
            self._journal.decide(now, self.card.id, "no room for another node", peers=len(self.links))
            return False
        oldest = min(down, key=lambda link: link.liveness.since).peer.id
        self._forget(oldest, "there is no room for another node", now)
        return True

    def _forget_peer(self, event: events.ForgetPeer, now: float) -> None:
        link = self.links.get(event.peer)
        if link is not None and link.liveness.state is NodeState.DOWN:
            self._forget(event.peer, "a person asked for it", now)

    def _forget_renewed(self, card: NodeCard, now: float) -> None:
        """A node with this one's name and an address of it, which is down, was this one: it has a new identity."""
        addresses = {one.address for one in card.addresses}
        for link in list(self.links.values()):
            old = link.peer
            is_there = any(one.address in addresses for one in old.addresses)
            gone = old.id != card.id and link.liveness.state is NodeState.DOWN
            if gone and is_there and old.name == card.name:
                self._forget(old.id, f"{card.name} is there again with another identity", now)

    def _look_for_lost(self, now: float) -> None:
        self._look_for_lost_at = now + LOOK_FOR_LOST_S
        for link in list(self.links.values()):
            if link.liveness.state is NodeState.DOWN and now - link.liveness.since >= LOST_S:
                self._forget(link.peer.id, f"it was down for {LOST_S / 86_400:.0f} days", now)

    def _forget(self, peer: NodeId, reason: str, now: float) -> None:
        link = self.links.pop(peer)
        self._touched.add(peer)
        self._announced = None
        self.mesh.forget(peer)
        self._journal.decide(now, peer, "forgot a node that is down", peers=len(self.links), reason=reason)
        self._journal.emit("node.forgotten", peer, name=link.peer.name, reason=reason)

    def _peer_left(self, event: events.PeerLeft, now: float) -> None:
        link = self._touch(event.peer)
        if link is not None and link.peer_incarnation == event.incarnation:
            link.leave(now)

    def _message_received(self, event: events.MessageReceived, now: float) -> None:
        if event.peer in self.links:
            self.mesh.receive(event.peer, event.message, now)

    def _peer_connected(self, event: events.PeerConnected, now: float) -> None:
        link = self._touch(event.peer)
        if link is not None:
            link.connected(now)
            self.mesh.connected(event.peer, now)

    def _peer_disconnected(self, event: events.PeerDisconnected, now: float) -> None:
        link = self._touch(event.peer)
        if link is not None:
            link.disconnected(now)

    def _route_checked(self, event: events.RouteChecked, now: float) -> None:
        link = self._touch(event.peer)
        if link is not None:
            link.routed(event.path, event.leaves_from, now)

    def _ring_evidence(self, event: events.RingEvidence, now: float) -> None:
        """Of a plan that is over it says nothing about the present one."""
        plan, me = self.mesh.committed, self.card.id
        if plan is None or plan.hash != event.plan_hash:
            return
        edge = next((one for one in plan.edges if {one.source, one.target} == {me, event.peer}), None)
        link = self._touch(event.peer)
        if edge is not None and link is not None:
            link.ring_evidence(edge.path, event, now)

    def _renegotiate_requested(self, event: events.RenegotiateRequested, now: float) -> None:
        self.mesh.renegotiate(event.reason, now)

    def _debug_fault(self, event: events.DebugFault, now: float) -> None:
        for link in self.links.values():
            link.fault(event.path, drop=event.drop, delay_ms=event.delay_ms, until=now + event.for_s)

    def _debug_pin(self, event: events.DebugPin, now: float) -> None:
        self._touched |= self.links.keys()
        for link in self.links.values():
            if event.path in link.paths:
                link.pin(event.path, now + event.for_s, now)

    def _activity_changed(self, event: events.ActivityChanged, now: float) -> None:
        """The faster pace begins with a datagram at once, which announces it."""
        self._quiet = not event.busy
        for link in self.links.values():
            link.probes.quiet = self._quiet
            if event.busy:
                link.probes.hasten(link.paths.heard, now)
                self._touched.add(link.peer.id)

    def _keys_changed(self, event: events.KeysChanged, now: float) -> None:
        self._keys.follow(event.keys)
        for link in self.links.values():
            if link.probes.key not in self._keys:
                link.probes.key = self._keys.newest

    def _peer_holds_key(self, event: events.PeerHoldsKey, now: float) -> None:
        link = self.links.get(event.peer)
        if link is not None:
            link.probes.key = self._keys.newest

    def _loop_lagged(self, event: events.LoopLagged, now: float) -> None:
        self._touched |= self.links.keys()
        for link in self.links.values():
            link.lagged(event.lag_s, now)
        self.mesh.lagged(event.lag_s)
        self.mesh.absences.stopped(event.lag_s, now)

    def _host_slept(self, event: events.HostSlept, now: float) -> None:
        self.mesh.absences.slept(event.slept_s, now)

    # --- what follows -------------------------------------------------------------------------------------------

    def _tell_mesh(self, now: float) -> None:
        changed = [peer for peer in self._touched if peer in self.links and self.links[peer].changed]
        if not changed:
            return
        links = [self.links[peer] for peer in sorted(changed)]
        for link in links:
            link.changed = False
        self.mesh.update([summarize_pair(link) for link in links], now)

    def _propagate(self, now: float) -> None:
        """Links tell the mesh what changed; the mesh's plan tells the links whom to watch closely."""
        self._tell_mesh(now)
        mesh = self.mesh
        said = (mesh.epoch_seen, mesh.misses)
        if self._announced == said and self._announced_plan is mesh.committed:
            return
        stepped = self._announced is not None and self._announced[1] is not mesh.misses
        self._announced, self._announced_plan = said, mesh.committed
        for link in self.links.values():
            link.probes.epoch_number, link.probes.plan_prefix = mesh.epoch_seen, mesh.plan_prefix
            link.probes.misses = mesh.misses
            link.probes.edge = self._watched_closely(link.peer.id)
            if stepped:
                self._touched.add(link.peer.id)
                link.probes.hasten(link.paths.heard, now)

    def _watched_closely(self, peer: NodeId) -> bool:
        plan = self.mesh.committed
        small = len(self.links) < SMALL_CLUSTER
        if plan is None:
            return small
        me = self.card.id
        if shares_edge(plan, me, peer):
            return True
        newcomer = all(member.id != peer for member in plan.members)
        return small and (newcomer or plan.coordinator in (me, peer))


def _is_sane(card: NodeCard) -> bool:
    """Could this be a card at all? It comes from a holder of the key, but maybe from another program."""
    is_id = len(card.id) == 16 and all(digit in "0123456789abcdef" for digit in card.id)
    return is_id and 0 < card.incarnation <= MAX_COUNTER and 0 < card.mesh_port < 1 << 16
