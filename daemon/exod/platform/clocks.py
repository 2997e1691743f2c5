"""Sleep, from two clocks: one that stops while the host sleeps and one that runs on. Pure.

The app compares the readings of two ticks: a gap here is sleep, a gap without one is a stalled loop.
"""

from __future__ import annotations

import msgspec


class ClockReadings(msgspec.Struct, frozen=True):
    """Both clocks, read at one moment, in seconds."""

    awake: float
    """Stops during sleep: CLOCK_MONOTONIC on Linux, CLOCK_UPTIME_RAW on macOS."""
    elapsed: float
    """Counts through sleep: CLOCK_BOOTTIME on Linux, CLOCK_MONOTONIC_RAW on macOS."""


SHORTEST_SLEEP_S = 0.5
"""Below this a difference is how far apart the two reads were, or rounding: no host sleeps so briefly."""


def slept_s(before: ClockReadings, after: ClockReadings) -> float:
    """How long the host slept between two readings; 0.0 where it did not."""
    gap = (after.elapsed - before.elapsed) - (after.awake - before.awake)
    return gap if gap >= SHORTEST_SLEEP_S else 0.0
