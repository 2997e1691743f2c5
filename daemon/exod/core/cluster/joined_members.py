"""What a coordinator can plan with: who has joined, whom to wait for, and the edges that both ends confirm.

Decides who may be a member now; never whether to propose (mesh.py) or which order (ring_order.py). A node has
joined when its datagrams are heard, the pair's path is agreed, and its control connection has brought a report of
its present life.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

from exod.core.base.cluster_wish import hosted_model
from exod.core.base.mesh_messages import LinkReport, LinkSummary
from exod.core.cluster.link_reports import essence
from exod.core.cluster.pair_summary import PairSummary
from exod.core.cluster.ring_members import (
    fewest_to_leave_out,
    fit_ranks,
    has_ring,
    standing_by,
    why_left_out,
    why_standing_by,
    why_unfit,
)
from exod.core.cluster.ring_order import Pair, PairEdge, build_plan, pair_of
from exod.model import Epoch, LeftOut, MeshPlan, NodeCard, NodeId, NodeState, PathId

PATIENCE_S = 3.0
"""A known node that does not join holds up a plan for so long: as long as a silent peer is given to come back."""
REPAIR_PATIENCE_S = 0.5
"""The same for a ring that broke because two of its nodes do not hear each other: that took its own patience."""
EXCLUDED_S = 10.0
"""A member that did not answer a proposal is left out for so long, then asked again. Doubles each time, because
asking takes an epoch; news of it (a connection, a life, a report, another plan) is a reason to ask at once."""
EXCLUDED_MAX_S = 600.0
"""And one that refused for so long: without news it would refuse again."""


class JoinedMembers:
    def __init__(self, now: float) -> None:
        self.reports: dict[NodeId, LinkReport] = {}
        self._waiting_since: dict[NodeId, float] = {}
        self._excluded_until: dict[NodeId, float] = {}
        self._exclusions: dict[NodeId, int] = {}
        self.news = 0
        """Counts what the reports brought."""
        self._ringless_since: float | None = None
        self.joined: frozenset[NodeId] = frozenset()
        self.waiting: frozenset[NodeId] = frozenset()
        """Those that live and have not joined."""
        self.left_out: frozenset[NodeId] = frozenset()
        """Those that live and did not answer a proposal."""
        self.grew_at = now

    def take(self, report: LinkReport) -> bool:
        """The newest report of a peer's newest life counts. Returns whether it brought news."""
        known = self.reports.get(report.sender)
        if known is not None and (report.incarnation, report.seq) <= (known.incarnation, known.seq):
            return False
        self.reports[report.sender] = report
        if known is None or known.incarnation != report.incarnation:
            self._exclusions.pop(report.sender, None)
        if known is None or essence(known.links) != essence(report.links):
            self.news += 1
            self.welcome(report.sender)
        return known is None or (known.incarnation, known.links) != (report.incarnation, report.links)

    def exclude(self, peer: NodeId, refused: bool, now: float) -> None:
        """It refused, or did not answer: it is left out for a while."""
        times = self._exclusions[peer] = self._exclusions.get(peer, 0) + 1
        wait_s = EXCLUDED_MAX_S if refused else min(EXCLUDED_MAX_S, EXCLUDED_S * 2.0 ** (times - 1))
        self._excluded_until[peer] = now + wait_s

    def welcome(self, *peers: NodeId) -> None:
        for peer in peers:
            self._excluded_until.pop(peer, None)

    def forget(self, peer: NodeId) -> None:
        for table in (self.reports, self._waiting_since, self._excluded_until, self._exclusions):
            table.pop(peer, None)

    def shift(self, lag_s: float) -> None:
        """This loop stood still: nobody was late in that time."""
        for table in (self._waiting_since, self._excluded_until):
            for peer in table:
                table[peer] += lag_s
        if self._ringless_since is not None:
            self._ringless_since += lag_s

    def assess(self, pairs: Mapping[NodeId, PairSummary], now: float) -> dict[NodeId, float]:
        """Update who has joined. Returns those who have not although they live, with when the patience ends."""
        joined, left_out, waiting = set(), set(), {}
        for peer, pair in pairs.items():
            if pair.state is NodeState.DOWN or pair.left:
                self._waiting_since.pop(peer, None)
                continue
            if self._excluded_until.get(peer, now) > now:
                left_out.add(peer)
                continue
            report = self.reports.get(peer)
            reported = report is not None and report.incarnation == pair.incarnation
            if pair.heard and pair.agreed and reported:
                joined.add(peer)
                self._waiting_since.pop(peer, None)
            else:
                waiting[peer] = self._waiting_since.setdefault(peer, now) + PATIENCE_S
        if not joined <= self.joined:
            self.grew_at = now
        self.joined, self.waiting, self.left_out = frozenset(joined), frozenset(waiting), frozenset(left_out)
        return waiting

    def plan(
        self,
        me: NodeCard,
        pairs: Mapping[NodeId, PairSummary],
        members: Iterable[NodeId],
        running: tuple[NodeId, ...],
        unheard: tuple[LeftOut, ...],
        now: float,
    ) -> MeshPlan | None:
        """The plan to have with these members. None while their ranks form no ring but may yet; after the patience
        the fewest are left without a rank. `unheard` are named in it beside them.
        """
        cards = {me.id: me, **{peer: pairs[peer].card for peer in members}}
        edges = self._edges(me.id, pairs, cards)
        willing = {one: card for one, card in cards.items() if card.engine}
        ranks = fit_ranks(willing, hosted_model(me, cards.values()))
        if has_ring(tuple(sorted(ranks)), frozenset(edges)):
            self._ringless_since = None
            dropped: frozenset[NodeId] = frozenset()
        else:
            if self._ringless_since is None:
                self._ringless_since = now
            patience_s = REPAIR_PATIENCE_S if running and self._deaf(ranks, edges) else PATIENCE_S
            if now - self._ringless_since < patience_s:
                return None
            dropped = fewest_to_leave_out(ranks, edges, running, me.id)
        left_out = (*why_unfit(willing, ranks), *why_left_out(dropped, ranks, edges), *unheard)
        if me.nodes == "fewest":
            could = {one: card for one, card in ranks.items() if one not in dropped}
            model = hosted_model(me, cards.values())
            size_mib = next((card.model_mib for card in cards.values() if card.model == model), 0)
            left_out += why_standing_by(standing_by(could, size_mib, edges, running), could)
        return build_plan(Epoch(0, 0), me, list(cards.values()), edges, running, left_out)

    def _deaf(self, ranks: Collection[NodeId], edges: Collection[Pair]) -> bool:
        """Does neither end of any missing edge hear the other? Both waited as long as silence is given."""
        listed = {(one, link.peer) for one, report in self.reports.items() for link in report.links}
        missing = [pair for pair in combinations(sorted(ranks), 2) if pair not in edges]
        return not any((low, high) in listed or (high, low) in listed for low, high in missing)

    def _edges(
        self, me: NodeId, pairs: Mapping[NodeId, PairSummary], cards: Mapping[NodeId, NodeCard]
    ) -> dict[Pair, PairEdge]:
        views: dict[tuple[NodeId, NodeId], LinkSummary] = {}
        for peer in cards:
            if peer != me:
                views[me, peer] = pairs[peer].summary
                views |= {(peer, one.peer): one for one in self.reports[peer].links}
        interfaces = {one: {own.address: own.interface for own in card.addresses} for one, card in cards.items()}
        edges = {}
        for one in cards:
            for other in cards:
                if one >= other:
                    continue
                low, high = views.get((one, other)), views.get((other, one))
                # A pair of mine is agreed when I say so: my link heard the other end.
                if me in (one, other):
                    low = high = low if one == me else high
                if low is None or high is None or not _confirmed(low, high, cards[one], cards[other]):
                    continue
                edge = _pair_edge(low, high, interfaces[one], interfaces[other])
                if edge is not None:
                    edges[pair_of(one, other)] = edge
        return edges


def _confirmed(low: LinkSummary, high: LinkSummary, low_card: NodeCard, high_card: NodeCard) -> bool:
    selection = low.selection
    return (
        low.agreed
        and high.agreed
        and selection is not None
        and selection == high.selection
        and (selection.incarnation_low, selection.incarnation_high) == (low_card.incarnation, high_card.incarnation)
    )


def _pair_edge(
    low: LinkSummary, high: LinkSummary, low_interfaces: Mapping[str, str], high_interfaces: Mapping[str, str]
) -> PairEdge | None:
    """The interfaces by address, of either end."""
    if low.path is None or low.path.count("-") != 1:
        return None  # a peer with the key and another idea of a path
    low_address, high_address = low.path.split("-")
    return PairEdge(
        path=PathId(low.path),
        low_interface=low_interfaces.get(low_address, ""),
        low_address=low_address,
        high_interface=high_interfaces.get(high_address, ""),
        high_address=high_address,
        kind=low.kind,
        in_band=low.in_band and high.in_band,
        cost_ms=low.cost_ms,
    )
