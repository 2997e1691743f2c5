"""The round-trip estimator of one path: floor, p90, and how long it has been slow.

Every error of a sample is positive (a late wake-up, a full queue, a missed stamp), so the minimum of the newest
samples is a sound estimate of the path itself; what lies above it is jitter, which p90 shows. Decides nothing about
states.
"""

from __future__ import annotations

from collections import deque

FLOOR_SAMPLES = 10
"""The floor is the minimum of this many: half a second of the selected path at 20 a second."""
P90_SAMPLES = 50
"""p90 needs tens of samples to mean anything; 50 matches the loss window."""


class RttEstimator:
    __slots__ = (
        "_newest",
        "_recent",
        "floor_ms",
        "last_at",
        "last_ms",
        "limit_ms",
        "samples",
        "slow_since",
        "slow_streak",
    )

    def __init__(self, limit_ms: float) -> None:
        self.limit_ms = limit_ms
        self._newest: deque[float] = deque(maxlen=FLOOR_SAMPLES)
        self._recent: deque[float] = deque(maxlen=P90_SAMPLES)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the path came back from the dead, or an end has a new incarnation."""
        self._newest.clear()
        self._recent.clear()
        self.samples = 0
        self.floor_ms: float | None = None
        self.last_at = 0.0
        self.last_ms: float | None = None
        """The newest sample: what `ping` shows."""
        self.slow_streak = 0
        """Newest samples in a row that were above `limit_ms`."""
        self.slow_since: float | None = None

    def add(self, rtt_ms: float, now: float) -> None:
        """Take one sample, in milliseconds. A negative one is a broken stamp at the other end: dropped."""
        if rtt_ms < 0.0:
            return
        self._newest.append(rtt_ms)
        self._recent.append(rtt_ms)
        self.samples += 1
        self.floor_ms = min(self._newest)
        self.last_at = now
        self.last_ms = rtt_ms
        if rtt_ms > self.limit_ms:
            if self.slow_streak == 0:
                self.slow_since = now
            self.slow_streak += 1
        elif self.slow_streak:
            self.slow_streak = 0
            self.slow_since = None

    @property
    def full(self) -> bool:
        """Is the floor the minimum of a whole window?"""
        return self.samples >= FLOOR_SAMPLES

    @property
    def p90_ms(self) -> float | None:
        """The 90th percentile (nearest rank) of the newest 50 samples."""
        if not self._recent:
            return None
        ordered = sorted(self._recent)
        return ordered[-(-9 * len(ordered) // 10) - 1]

    @property
    def cost_ms(self) -> float | None:
        """floor + ½(p90 - floor): what orders paths of one class (design, "States, score, switching")."""
        p90 = self.p90_ms
        if self.floor_ms is None or p90 is None:
            return None
        return self.floor_ms + (p90 - self.floor_ms) / 2

    def age_s(self, now: float) -> float | None:
        """Seconds since the newest sample; None where there is none."""
        return now - self.last_at if self.samples else None
