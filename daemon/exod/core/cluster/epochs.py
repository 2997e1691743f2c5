"""Which epochs this node has seen, and the highest that it accepted: it accepts no lower one afterwards.

Decides whether a plan's number is still free; never whether the plan is good (plan_acceptance.py).
"""

from __future__ import annotations

from exod.core.cluster.ring_order import EPOCH_LIMIT
from exod.model import Epoch, MeshPlan


class Epochs:
    def __init__(self, seen: int) -> None:
        self.seen = seen
        """The highest number of any plan, of any coordinator."""
        self.promised = Epoch(0, 0)
        self._promised_hash = ""

    def saw(self, number: int) -> None:
        if number < EPOCH_LIMIT:
            self.seen = max(self.seen, number)

    def promise(self, plan: MeshPlan) -> None:
        if plan.epoch > self.promised:
            self.promised, self._promised_hash = plan.epoch, plan.hash
        self.saw(plan.epoch.number)

    def taken(self, plan: MeshPlan) -> bool:
        """Is the number promised to another plan? Two nodes that started in the same millisecond can number alike:
        only one of them is believed.
        """
        return plan.epoch < self.promised or (plan.epoch == self.promised and plan.hash != self._promised_hash)

    def superseded(self, plan: MeshPlan) -> bool:
        return plan.epoch <= self.promised and (plan.epoch, plan.hash) != (self.promised, self._promised_hash)
