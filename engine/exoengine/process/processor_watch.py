"""Does this process compute, or does it hang? By the processor time that all of its threads used.

One that waits for a neighbour or for a disk, or is stuck in a lock, uses next to none. A GPU's work does not show
here: a step that a GPU computes has the deadline that its earlier steps give it. Decides nothing. Seconds.
"""

from __future__ import annotations

from typing import Final

LOOK_S: Final = 0.8
"""Over how long it is judged, at least: a heartbeat comes each second, and sooner at a change."""

BUSY_SHARE: Final = 0.05
"""Of one core. A process that only waits uses a tenth of it; a rank that shares its core with many has more."""


class ProcessorWatch:
    def __init__(self, now: float, used_s: float) -> None:
        self._at, self._used_s = now, used_s
        self.is_busy = False

    def look(self, now: float, used_s: float, begun: float | None = None) -> bool:
        """`used_s`: the processor time of the process so far. Judges the time since the last look, and of that only
        what lies in the step that was `begun`: what came before says nothing about it.
        """
        if begun is not None and begun > self._at:
            self.is_busy = False
            self._at, self._used_s = now, used_s
        elif now - self._at >= LOOK_S:
            self.is_busy = used_s - self._used_s >= BUSY_SHARE * (now - self._at)
            self._at, self._used_s = now, used_s
        return self.is_busy
