"""Kernel receive stamps that lie on the wall clock -> the monotonic clock, safe against clock steps.

Linux stamps datagrams with CLOCK_REALTIME. The offset to CLOCK_MONOTONIC is read with each stamp; where it has
moved, the clock was stepped somewhere between the last read and this one, and a stamp from before that moment
cannot be converted: it is refused, and the caller uses the time of its read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_NS = 1_000_000
"""An offset that moved by more is a step. Slewing moves it by 0.5 ms a second at most, and reads are closer."""

OLDEST_S = 10.0
"""A datagram can wait in its socket as long as the loop stalls; one older than this is a clock gone wrong."""

FUTURE_S = 0.001
"""A stamp after the read is impossible; up to this it is the coarseness of reading two clocks."""

_CLOSE_READS_NS = 50_000
"""Two clock reads further apart were interrupted, and are done again."""

_ATTEMPTS = 3


class WallClockStamps:
    """Owns the last known offset between the two clocks."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._offset_ns = self._read_offset_ns()
        self._doubtful_until = float("-inf")

    def to_monotonic(self, stamp_ns: int, now: float) -> float | None:
        """`stamp_ns` of the wall clock as monotonic seconds, or None where it cannot be trusted."""
        offset_ns = self._read_offset_ns()
        moved_ns = abs(offset_ns - self._offset_ns)
        if moved_ns > STEP_NS:
            # A stamp from before the step is off by the step, in either direction.
            self._doubtful_until = now + moved_ns / 1e9
        self._offset_ns = offset_ns
        received = (stamp_ns - offset_ns) / 1e9
        if received <= self._doubtful_until or not now - OLDEST_S <= received <= now + FUTURE_S:
            return None
        return min(received, now)

    def _read_offset_ns(self) -> int:
        """Wall minus monotonic: the closest of a few reads, as a task switch between two reads adds to it."""
        best_width_ns = -1
        offset_ns = 0
        for _ in range(_ATTEMPTS):
            before_ns = self._monotonic_ns()
            wall_ns = self._wall_ns()
            width_ns = self._monotonic_ns() - before_ns
            if best_width_ns < 0 or width_ns < best_width_ns:
                best_width_ns = width_ns
                offset_ns = wall_ns - before_ns - width_ns // 2
            if width_ns <= _CLOSE_READS_NS:
                break
        return offset_ns
