"""Who lives, who of them coordinates, and which living nodes are not heard here.

The theory. The lowest node id coordinates. A coordinator can only plan with nodes that it hears. One that misses a
node which others hear says so in its datagrams, and every node then prefers a coordinator that misses nobody: the
lowest of those, or the lowest of all where each misses someone. A report tells that a node is up only while it is
up, so all members lose a node that died within a moment, and none steps back for it.

Decides who coordinates as this node sees it, and whether it misses others; never who is a member
(joined_members.py). Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from exod.core.base.mesh_messages import LinkReport
from exod.core.cluster.link_reports import essence
from exod.core.cluster.pair_summary import PairSummary
from exod.core.cluster.plan_divergence import PlanDivergence
from exod.core.cluster.ring_order import hash_prefix
from exod.model import LeftOut, MeshPlan, NodeCard, NodeId, NodeState

KNOWN_S = 0.5
"""A member of the plan in force that is not heard any more: a report is repeated within 0.2 s."""
NEW_S = 1.5
"""A node that was never heard here: nodes that start together meet within a second."""
AGAIN_S = 3.0
"""A node that missed others must have heard them for so long before it may coordinate again; doubles with each
relapse."""
AGAIN_MAX_S = 300.0

Precedence = tuple[bool, NodeId]


def precedence(node: NodeId, misses: bool) -> Precedence:
    """Who coordinates: the lowest id of those that miss nobody."""
    return (misses, node)


class UnheardNode(msgspec.Struct, frozen=True):
    name: str
    by: tuple[str, ...]
    """The names of those that hear it."""


class UnheardNodes:
    def __init__(self) -> None:
        self.nodes: dict[NodeId, UnheardNode] = {}
        self.misses = False
        """What this node's datagrams say."""
        self._since: dict[NodeId, float] = {}
        self._known: frozenset[NodeId] = frozenset()
        self._whole_since: float | None = None
        self._relapses = 0

    def shift(self, lag_s: float) -> None:
        """This loop stood still: nobody was missed in that time."""
        self._since = {node: since + lag_s for node, since in self._since.items()}

    def observe(
        self,
        me: NodeId,
        living: Mapping[NodeId, PairSummary],
        left: Collection[NodeId],
        reports: Mapping[NodeId, LinkReport],
        members: Collection[NodeId],
        now: float,
    ) -> None:
        """`living`: the peers that are heard. `left`: those that said goodbye. `members`: of the plan in force."""
        found: dict[NodeId, UnheardNode] = {}
        for peer, pair in living.items():
            report = reports.get(peer)
            if report is None or report.incarnation != pair.incarnation:
                continue
            for link in report.links:
                if link.up and link.peer != me and link.peer not in living and link.peer not in left:
                    before = found.get(link.peer)
                    by = (pair.card.name,) if before is None else (*before.by, pair.card.name)
                    found[link.peer] = UnheardNode(link.peer_name or link.peer, by)
        self.nodes = found
        self._since = {node: self._since.get(node, now) for node in found}
        self._known = frozenset(members)
        self._judge(now)

    def _waits_s(self, node: NodeId) -> float:
        return KNOWN_S if node in self._known else NEW_S

    def pending(self, members: Collection[NodeId] | None, now: float) -> bool:
        """Is one of the members (None: of all) missed for too short a time to conclude anything?"""
        young = [node for node, since in self._since.items() if now - since < self._waits_s(node)]
        return any(members is None or node in members for node in young)

    def named(self) -> tuple[LeftOut, ...]:
        """For the plan of a coordinator that nobody can stand in for."""
        return tuple(
            LeftOut(node, one.name, f"only {' and '.join(sorted(one.by))} can hear it")
            for node, one in sorted(self.nodes.items())
        )

    def _judge(self, now: float) -> None:
        if any(now - since >= self._waits_s(node) for node, since in self._since.items()):
            if not self.misses and self._whole_since is not None:
                self._relapses += 1
            self.misses, self._whole_since = True, None
        elif self.misses and not self._since:
            if self._whole_since is None:
                self._whole_since = now
            if now - self._whole_since >= min(AGAIN_MAX_S, AGAIN_S * 2**self._relapses):
                self.misses = False
        elif self.misses:
            self._whole_since = None


class MeshPairs:
    """The pairs of this node as the mesh sees them."""

    def __init__(self, card: NodeCard) -> None:
        self.card = card
        self.pairs: dict[NodeId, PairSummary] = {}
        self.unheard = UnheardNodes()
        self.divergence = PlanDivergence()
        self.news = 0
        """Counts what changed in a pair, its cost aside."""

    def update(self, pairs: Iterable[PairSummary]) -> list[NodeId]:
        """Returns the peers of which there is news."""
        told = []
        for pair in pairs:
            before = self.pairs.get(pair.peer)
            moved = before is None or essence([before.summary]) != essence([pair.summary])
            self.news += moved
            if before is None or moved or (before.plan_prefix, before.misses) != (pair.plan_prefix, pair.misses):
                told.append(pair.peer)
            self.pairs[pair.peer] = pair
        return told

    def forget(self, peer: NodeId) -> None:
        self.pairs.pop(peer, None)
        self.divergence.forget(peer)

    def shift(self, lag_s: float) -> None:
        """This loop stood still: that time counts for nothing."""
        self.divergence.shift(lag_s)
        self.unheard.shift(lag_s)

    def lives(self, peer: NodeId) -> bool:
        pair = self.pairs.get(peer)
        return pair is not None and pair.heard and not pair.left and pair.state is not NodeState.DOWN

    @property
    def living(self) -> dict[NodeId, PairSummary]:
        return {peer: one for peer, one in self.pairs.items() if self.lives(peer)}

    @property
    def coordinator(self) -> NodeId:
        return self.first(but=self.divergence.excluded_by)

    def first(self, but: frozenset[NodeId]) -> NodeId:
        """Of this node and those that live: who comes first of those that may coordinate."""
        others = [precedence(peer, one.misses) for peer, one in self.living.items() if peer not in but]
        return min([precedence(self.card.id, self.unheard.misses), *others])[1]

    @property
    def reported_to(self) -> set[NodeId]:
        """The coordinator, and those that may coordinate next: a node that was passed over must know when that
        reason is gone, and whom it does not hear.
        """
        lowest, coordinator = sorted([self.card.id, *self.living]), self.coordinator
        return {coordinator, *lowest[:2], *(one for one in lowest if one < coordinator)} - {self.card.id}

    def look(
        self, reports: Mapping[NodeId, LinkReport], plan: MeshPlan | None, suspended: str | None, now: float
    ) -> None:
        """Find out who is not heard here, and by whom this node is excluded."""
        members = () if plan is None else [member.id for member in plan.members]
        left = [peer for peer, one in self.pairs.items() if one.left]
        self.unheard.observe(self.card.id, self.living, left, reports, members, now)
        mine = precedence(self.card.id, self.unheard.misses)
        before_me = [one for peer, one in self.living.items() if precedence(peer, one.misses) < mine]
        prefix = "" if plan is None else hash_prefix(plan)
        self.divergence.judge(before_me, prefix, plan is None or suspended is not None, now)

    def apart(self, peer: NodeId, prefix: str, now: float) -> bool:
        """Has this peer shown another plan than ours for too long?"""
        if not self.lives(peer):
            self.divergence.forget(peer)
            return False
        return self.divergence.apart(self.pairs[peer], prefix, now)

    @property
    def names(self) -> dict[NodeId, str]:
        return {self.card.id: self.card.name, **{peer: one.card.name for peer, one in self.pairs.items()}}
