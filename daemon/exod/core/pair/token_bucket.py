"""The budget of voluntary switches of one pair: a few tokens, each of which comes back after a window.

Decides when there is a token; never what one is spent on. Times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque

BUCKET = 3
BUCKET_WINDOW_S = 600.0
"""At most 3 switches in 10 minutes that no death caused (design, "States, score, switching")."""


class TokenBucket:
    def __init__(self) -> None:
        self._spent: deque[float] = deque(maxlen=BUCKET)

    def spend(self, now: float) -> None:
        self._spent.append(now)

    def ready_at(self) -> float | None:
        """When the oldest token that was spent comes back; None while one was never spent."""
        return self._spent[0] + BUCKET_WINDOW_S if len(self._spent) == BUCKET else None

    def is_empty(self, now: float) -> bool:
        ready_at = self.ready_at()
        return ready_at is not None and now < ready_at
