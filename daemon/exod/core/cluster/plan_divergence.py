"""Who runs another plan than this node: for a moment while a commit is on its way, or because it leaves us out.

The theory. Datagrams show the plan that their sender runs. A member that shows another for longer than a delivery
takes has missed a commit. A lower node that keeps to a plan without this one follows a coordinator that is not
heard here, so it will never propose to this node: after a while this node counts as excluded by it, and plans
without it until it proposes.

Decides who runs another plan for too long and by whom this node is excluded; never what follows (mesh.py). Times
are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection

from exod.core.cluster.pair_summary import PairSummary
from exod.model import NodeId

DISAGREE_S = 1.5
"""Datagrams that show another plan than ours for longer than any delivery takes: one of us missed a commit."""
EXCLUDED_AFTER_S = 6.0
"""Twice the patience of a coordinator that waits for others: one that wants this node has proposed by then."""


class PlanDivergence:
    def __init__(self) -> None:
        self._since: dict[NodeId, float] = {}
        self.excluded_by: frozenset[NodeId] = frozenset()
        """Living nodes that could coordinate this one and keep to a plan without it."""

    def shift(self, lag_s: float) -> None:
        """This loop stood still: nobody was apart in that time."""
        self._since = {peer: since + lag_s for peer, since in self._since.items()}

    def forget(self, peer: NodeId) -> None:
        """Forget how long it diverged: it is gone, or it asked this node."""
        self._since.pop(peer, None)
        self.excluded_by -= {peer}

    def committed(self) -> None:
        """A new plan is in force here, and the others need a moment to show it."""
        self._since.clear()

    def apart(self, pair: PairSummary | None, prefix: str, now: float) -> bool:
        """Has this living peer shown another plan than ours for too long?"""
        return self._apart_s(pair, prefix, now) >= DISAGREE_S

    def _apart_s(self, pair: PairSummary | None, prefix: str, now: float) -> float:
        if pair is None or pair.plan_prefix in ("", prefix):
            if pair is not None:
                self._since.pop(pair.peer, None)
            return 0.0
        return now - self._since.setdefault(pair.peer, now)

    def judge(self, lower: Collection[PairSummary], prefix: str, planless: bool, now: float) -> None:
        """`lower`: the living nodes that could coordinate us. `planless`: no plan can be used here."""
        stay = {one.peer for one in lower if one.peer in self.excluded_by and one.plan_prefix not in ("", prefix)}
        if planless:
            stay |= {one.peer for one in lower if self._apart_s(one, prefix, now) >= EXCLUDED_AFTER_S}
        self.excluded_by = frozenset(stay)
