"""When a plan may be made again with the same content: at once, and then ever later.

The theory. Every epoch needs a new reason. A plan of the same content heals what a moment has broken (a path that
died and came back, a commit that was refused); where it does not, more of them heal nothing either, and each costs
the ring a new group. So the first comes at once, the next ones after a wait that doubles, and a plan that has run
for a while begins anew. Where the links changed meanwhile there is a reason, and the wait stays short. What a
person asks for is never held up.

Decides when, never what. Times are monotonic seconds.
"""

from __future__ import annotations

from exod.model import MeshPlan

FIRST_WAIT_S = 0.5
"""Before the second repetition: a datagram and a report have come and gone by then."""
REASON_WAIT_S = 2.0
"""The longest where the links changed since the last commit."""
LAST_WAIT_S = 600.0
"""The longest where nothing did."""
LASTED_S = 10.0
"""A plan that was in force for so long without a fault was no failure."""


class PlanRepeats:
    def __init__(self) -> None:
        self._content: MeshPlan | None = None
        self._repeats = 0
        self._committed_at = 0.0
        self._news = (0, 0)

    def committed(self, content: MeshPlan, news: tuple[int, int], now: float) -> None:
        """`news` counts the changes of links so far, this node's own and those that were reported."""
        self._news = news
        if content == self._content:
            self._repeats += 1
        else:
            self._content, self._repeats = content, 0
        self._committed_at = now

    def suspended(self, now: float) -> None:
        if now - self._committed_at >= LASTED_S:
            self._repeats = 0

    def may_repeat_at(self, content: MeshPlan, news: tuple[int, int]) -> float:
        """From when on a plan of this content may be committed again."""
        if content != self._content or self._repeats == 0:
            return 0.0
        longest_s = LAST_WAIT_S if news == self._news else REASON_WAIT_S
        return self._committed_at + min(longest_s, FIRST_WAIT_S * 2.0 ** (self._repeats - 1))
