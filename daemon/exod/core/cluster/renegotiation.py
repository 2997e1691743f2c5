"""A new plan is wanted although nothing differs: by a person, or by a member whose plan is suspended.

The coordinator keeps the wish until a commit fulfils it; a member repeats it to the coordinator until another plan
is committed. A wish names the plan that its sender holds, so one that comes late or twice is void. Decides nothing
about plans.
"""

from __future__ import annotations

from exod.core.base.mesh_messages import RenegotiateWish
from exod.model import NodeId

REPEAT_S = 0.5
"""A member with a suspended plan asks its coordinator this often."""
FIRST_WAIT_S = 0.25
"""The coordinator mostly knows of what a member saw, and has agreed on a new plan by then."""


class Wishes:
    def __init__(self) -> None:
        self.reason: str | None = None
        """The coordinator's: why a new plan is wanted."""
        self.by_hand = False
        """A person asks: the running order of the ring need not be kept."""
        self._asking: RenegotiateWish | None = None
        self._ask_at = 0.0

    @property
    def asking(self) -> bool:
        return self._asking is not None

    def want(self, reason: str, *, by_hand: bool) -> None:
        """The coordinator itself wants one, or took a member's wish."""
        self.reason = reason
        self.by_hand = self.by_hand or by_hand

    def ask(self, me: NodeId, plan_hash: str, reason: str, *, by_hand: bool, at: float) -> None:
        """A member wants one, and will say so from `at` on."""
        self._asking = RenegotiateWish(me, reason, plan_hash, by_hand)
        self._ask_at = at

    def due(self, plan_hash: str, now: float) -> RenegotiateWish | None:
        """What to send to the coordinator now. A wish is void once another plan is in force."""
        wish = self._asking
        if wish is None or wish.plan_hash != plan_hash:
            self._asking = None
            return None
        if now < self._ask_at:
            return None
        self._ask_at = now + REPEAT_S
        return wish

    def clear(self) -> None:
        """A plan was committed."""
        self.reason, self.by_hand, self._asking = None, False, None

    def stop_asking(self) -> None:
        """This node coordinates now: there is nobody to ask."""
        self._asking = None
