"""The twelve invariants of design.md as code, checked after every event against what the world knows to be true.

Numbers in the texts are those of the design. What needs time to come true (10 and 11) is in scenarios.py.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from exod.core.base import events
from exod.core.base.events import Command, Input
from exod.core.base.mesh_messages import Ack, Propose
from exod.core.pair import dead_detection
from exod.core.pair.link import Link
from exod.core.pair.path_selection import DWELL_S, VOLUNTARY, Cause
from exod.core.pair.token_bucket import BUCKET, BUCKET_WINDOW_S
from exod.core.probe.datagram import MAX_PATHS
from exod.core.probe.path import USABLE
from exod.model import MeshPlan, NodeId, PathId, Selection

if TYPE_CHECKING:
    from tests.sim.world import Host, World

_INCARNATIONS = struct.Struct(">QQ")
_INCARNATIONS_AT = 18
"""Behind version, flags, sender and destination."""
_SENDER = slice(2, 10)
_ADDRESSES = slice(66, 74)
"""Of source and target, behind incarnations, counters and the hold."""
SLACK_S = 0.01


class InvariantBrokenError(AssertionError):
    """Carries the story of the world, so that a failing seed reads as one."""

    def __init__(self, world: World, text: str) -> None:
        story = "\n".join(world.story)
        super().__init__(f"seed {world.seed}, {world.now:.3f} s: {text}\n{story}\n{world.now:9.3f}  BROKEN: {text}")
        self.text = text


class _Pair:
    """What was seen of one end of one pair, in its present incarnations."""

    def __init__(self) -> None:
        self.register: Selection | None = None
        self.agreed = False
        self.switched_at = -1e9
        self.spent: list[float] = []
        self.left_by_death: set[PathId] = set()
        self.bare = False
        """Was nothing usable at some moment since the last switch?"""


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.agreements = 0
        self.declared_dead = 0
        self.switches: dict[str, int] = defaultdict(int)
        self._pairs: dict[tuple[NodeId, NodeId], _Pair] = defaultdict(_Pair)
        self._written: set[tuple[NodeId, Selection]] = set()
        """What lower nodes selected."""
        self._claims: dict[tuple[NodeId, NodeId, int, int, int], PathId | None] = {}
        self._saw_up: dict[tuple[NodeId, NodeId, int, int], set[PathId]] = defaultdict(set)
        self._heard_at: dict[tuple[NodeId, NodeId], float] = {}
        self._seen: dict[NodeId, set[bytes]] = defaultdict(set)
        self._epochs: dict[NodeId, tuple[int, Any, str]] = {}
        self._by_epoch: dict[Any, str] = {}
        self._turns: dict[NodeId, int] = defaultdict(int)
        self._promises: set[tuple[NodeId, str]] = set()
        self._committed: set[str] = set()

    def reborn(self, host: Host) -> None:
        self._seen[host.id].clear()
        self._epochs.pop(host.id, None)
        for key in list(self._pairs):
            if key[0] == host.id:
                del self._pairs[key]

    # --- around each event --------------------------------------------------------------------------------------

    def before(self, host: Host, event: Input | None) -> tuple[Link, str, object] | None:
        """A fingerprint where the event must change nothing; remembers who was heard."""
        if type(event) is not events.DatagramReceived:
            return None
        data = event.data
        core = host.core
        assert core is not None
        if len(data) < _INCARNATIONS_AT + _INCARNATIONS.size:
            return None
        sender = NodeId(data[_SENDER].hex())
        link = core.links.get(sender)
        if link is None:
            return None
        theirs, mine = _INCARNATIONS.unpack_from(data, _INCARNATIONS_AT)
        if theirs < link.peer_incarnation:
            return link, "4: a datagram of an old incarnation changed the state", fingerprint(link)
        if data in self._seen[host.id]:
            return link, "12: a replayed datagram changed the state", fingerprint(link)
        if mine != core.card.incarnation:
            # It may bring a new incarnation of its sender, and nothing else.
            if theirs == link.peer_incarnation:
                return link, "4: a datagram for another life changed the state", fingerprint(link)
            return None
        path = link.paths.at(event.local_address, event.remote_address)
        # On another path it is refused, and may still come for the first time where it belongs.
        meant = socket.inet_aton(event.remote_address) + socket.inet_aton(event.local_address)
        if path is not None and not path.gone and data[_ADDRESSES] == meant:
            self._seen[host.id].add(data)
        self._heard_at[host.id, sender] = self.world.now
        return None

    def after(
        self, host: Host, event: Input | None, commands: list[Command], mark: tuple[Link, str, object] | None
    ) -> None:
        core = host.core
        assert core is not None
        if mark is not None:
            link, text, before = mark
            if fingerprint(link) != before:
                self._broken(host, f"{text}: {before} became {fingerprint(link)}")
        for peer, link in core.links.items():
            self._check_link(host, peer, link, commands)
        for command in commands:
            kind = type(command)
            if kind is events.CommitPlan:
                self._check_commit(host, command.plan)
            elif kind is events.SendMessage:
                self._check_message(host, command)
            elif kind is events.Emit and command.event.type == "path.dead":
                self._check_death(host, command.event)
        if event is None:
            self._check_progress(host)
        try:
            core.validate()
        except AssertionError as error:
            self._broken(host, str(error))

    def _check_progress(self, host: Host) -> None:
        """A turn sends one datagram of each link, so what is due may take as many turns as a pair has paths."""
        core, turns = host.core, self._turns
        assert core is not None
        deadline = core.next_deadline()
        if deadline is None or deadline > host.local(self.world.now):
            turns[host.id] = 0
            return
        turns[host.id] += 1
        if turns[host.id] > 4 * MAX_PATHS * len(self.world.hosts):
            self._broken(host, "what is due stays due: the event loop would spin")

    # --- pairs: 1, 2, 3, 6, 7, 8 ----------------------------------------------------------------------------------

    def _check_link(self, host: Host, peer: NodeId, link: Link, commands: list[Command]) -> None:
        seen = self._pairs[host.id, peer]
        mine, theirs = link.me.incarnation, link.peer_incarnation
        for path in link.paths:
            if path.own in USABLE:
                self._saw_up[host.id, peer, mine, theirs].add(path.candidate.path)
        seen.bare |= not any(path.state in USABLE and path.eligible for path in link.paths)
        register = link.agreement.register
        if register is not seen.register and register != seen.register:
            self._check_register(host, peer, link, seen, register, commands)
        if link.agreed and not seen.agreed:
            self.agreements += 1
            path_id = link.selected
            assert path_id is not None
            if path_id not in self._saw_up[host.id, peer, mine, theirs]:
                self._broken(host, f"3: agreed on {path_id}, which this end never saw UP in these incarnations")
            if path_id not in self._saw_up[peer, host.id, theirs, mine]:
                self._broken(
                    host, f"3: agreed on {path_id}, which the other end never saw UP in these incarnations"
                )
        seen.agreed = link.agreed

    def _check_register(
        self,
        host: Host,
        peer: NodeId,
        link: Link,
        seen: _Pair,
        register: Selection | None,
        commands: list[Command],
    ) -> None:
        before = seen.register
        seen.register = register
        if register is None:
            return
        lives = (register.incarnation_low, register.incarnation_high)
        fresh = before is None or (before.incarnation_low, before.incarnation_high) != lives
        if before is not None and not fresh and register.seq <= before.seq:
            self._broken(host, f"1: the register shrank from {before.seq} to {register.seq}")
        low, high = sorted((host.id, peer))
        claim = self._claims.setdefault((low, high, *lives, register.seq), register.path)
        if claim != register.path:
            self._broken(host, f"2: number {register.seq} of {lives} names {claim} and {register.path}")
        if host.id == low:
            self._written.add((low, register))
            self._check_switch(host, peer, link, seen, None if fresh else before, register, commands)
        elif (low, register) not in self._written:
            self._broken(host, f"2: only the lower node selects, and it did not write {register}")

    def _check_switch(
        self,
        host: Host,
        peer: NodeId,
        link: Link,
        seen: _Pair,
        before: Selection | None,
        register: Selection,
        commands: list[Command],
    ) -> None:
        now = self.world.now
        path = link.selected_path
        if register.path is not None and (path is None or path.state not in USABLE or not path.eligible):
            self._broken(host, f"6: selected {register.path}, which is {None if path is None else path.state}")
        quiet = now - self._heard_at.get((host.id, peer), -1e9)
        if host.stirred_at < now - 1.0 and quiet > dead_detection.suspect_after_s(link.paths) + SLACK_S:
            self._broken(host, f"8: a switch after {quiet:.2f} s of silence on all paths")
        cause = next(
            command.event.data["cause"]
            for command in commands
            if isinstance(command, events.Emit)
            and command.event.type == "link.selected"
            and command.event.subject == peer
        )
        self.switches[str(cause)] += 1
        if before is None:
            seen.spent, seen.left_by_death, seen.switched_at = [], set(), now
            return
        old = link.paths.get(before.path)
        if cause in VOLUNTARY:
            if now - seen.switched_at < DWELL_S - SLACK_S:
                self._broken(host, f"7: a voluntary switch {now - seen.switched_at:.2f} s after the last one")
            if not (cause == Cause.UPGRADE and register.path in seen.left_by_death):
                seen.spent = [at for at in seen.spent if at > now - BUCKET_WINDOW_S + SLACK_S] + [now]
                if len(seen.spent) > BUCKET:
                    self._broken(host, f"7: {len(seen.spent)} switches in 10 minutes that no death caused")
        elif cause in (Cause.DEATH, Cause.ROUTE) and old is not None and old.state in USABLE and old.eligible:
            self._broken(host, f"7: called a death, but {before.path} is {old.state}")
        elif cause == Cause.FIRST and not seen.bare and before.path is not None:
            self._broken(host, "7: chose anew, although something was usable all the time")
        elif cause == Cause.RING and old is not None and not old.ring.unfit:
            self._broken(host, f"7: fled {before.path}, on which the ring did not fail")
        if cause in (Cause.FIRST, Cause.DEATH, Cause.ROUTE, Cause.RING) and before.path is not None:
            seen.left_by_death.add(before.path)
        if register.path is not None:
            seen.left_by_death.discard(register.path)
        seen.switched_at, seen.bare = now, False

    # --- silence: 9 -----------------------------------------------------------------------------------------------

    def _check_death(self, host: Host, event: Any) -> None:
        """A path is declared dead by silence only where the network really failed it: no stall is enough."""
        if not event.data["reason"].startswith("silent for"):
            return
        self.declared_dead += 1
        world = self.world
        low, high = event.subject.split("-")
        ends = (low, high) if host.id < event.data["peer"] else (high, low)
        wire = world.network.wires.get((ends[1], ends[0]))
        if wire is None or wire.impaired or wire.spoiled_until >= world.now:
            return
        self._broken(host, f"9: declared dead {event.subject}, whose network is sound: {event.data['reason']}")

    # --- the mesh: 5, 6 -------------------------------------------------------------------------------------------

    def _check_message(self, host: Host, command: events.SendMessage) -> None:
        message = command.message
        if isinstance(message, Ack):
            self._promises.add((host.id, message.plan_hash))
        elif isinstance(message, Propose):
            core = host.core
            assert core is not None
            for edge in message.plan.edges:
                if host.id not in (edge.source, edge.target):
                    continue
                peer = edge.target if edge.source == host.id else edge.source
                path = core.links[peer].paths.get(edge.path)
                if path is None or path.state not in USABLE:
                    self._broken(host, f"6: proposed {edge.path}, which is {None if path is None else path.state}")

    def _check_commit(self, host: Host, plan: MeshPlan) -> None:
        known = self._by_epoch.setdefault((plan.epoch, plan.coordinator), plan.hash)
        if known != plan.hash:
            self._broken(host, f"5: epoch {plan.epoch} has the plans {known} and {plan.hash}")
        last = self._epochs.get(host.id)
        incarnation = host.core.card.incarnation if host.core is not None else 0
        if last is not None and last[0] == incarnation and plan.epoch <= last[1] and plan.hash != last[2]:
            self._broken(host, f"a superseded plan came back: {plan.epoch} after {last[1]}")
        self._epochs[host.id] = (incarnation, plan.epoch, plan.hash)
        if plan.coordinator == host.id:
            missing = [
                member.id
                for member in plan.members
                if member.id != host.id and (member.id, plan.hash) not in self._promises
            ]
            if missing:
                self._broken(host, f"5: committed without the ack of {missing}")
            self._committed.add(plan.hash)
        elif plan.hash not in self._committed:
            self._broken(host, "5: follows a plan that its coordinator did not commit")

    def _broken(self, host: Host, text: str) -> None:
        raise InvariantBrokenError(self.world, f"{host.name}: {text}")


def fingerprint(link: Link) -> object:
    """Everything of a link that evidence may change; not when the next datagram is due."""
    return (
        link.peer_incarnation,
        link.agreement.register,
        link.agreement.peer_register,
        link.agreed,
        link.liveness.state,
        link.liveness.last_rx,
        tuple(
            (
                path.candidate.path,
                path.own,
                path.state,
                path.peer_own,
                path.last_rx,
                path.rtt.samples,
                path.window.newest,
            )
            for path in link.paths
        ),
    )
