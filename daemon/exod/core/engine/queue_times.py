"""How long requests have waited in the queue, as a histogram counts it, and how many came back. Pure. Seconds."""

from __future__ import annotations

import itertools
import math
from typing import Final

WAIT_BUCKETS_S: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, math.inf)
"""From a place that is free at once to longer than clients wait."""

MOST_WAITING: Final = 1024
"""Requests whose beginning is kept: more than the queue holds; the oldest is forgotten."""


class QueueTimes:
    """In this node's life as coordinator."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._counts = [0] * len(WAIT_BUCKETS_S)
        self.total_s = 0.0
        self.preemptions = 0
        """Requests that were begun and lost their place: they wait again, before all others."""

    @property
    def cumulative(self) -> tuple[tuple[float, int], ...]:
        """Of the requests that were begun how many had waited up to so many seconds."""
        return tuple(zip(WAIT_BUCKETS_S, itertools.accumulate(self._counts), strict=True))

    def queued(self, request_id: str, now: float) -> None:
        self._since.setdefault(request_id, now)
        while len(self._since) > MOST_WAITING:
            del self._since[next(iter(self._since))]

    def begun(self, request_id: str, now: float) -> None:
        """Its turn has come. One that nobody saw come (a new coordinator's) is not counted."""
        since = self._since.pop(request_id, None)
        if since is None:
            return
        waited_s = max(0.0, now - since)
        self._counts[next(at for at, end in enumerate(WAIT_BUCKETS_S) if waited_s <= end)] += 1
        self.total_s += waited_s

    def left(self, request_id: str) -> None:
        """It waits no longer, and was not begun."""
        self._since.pop(request_id, None)
