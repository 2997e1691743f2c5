"""What a worker's heartbeats tell of its steps' mode, made into events: each change of it, and each graph that, as
far as is known, waited for another rank longer than a GPU's watchdog allows.

Decides how often the latter is told, and for how long it counts. Called by rank.py alone.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.rank_commands import Story
from exoengine.protocol import Heartbeat

TOLD_EVERY_S: Final = 30.0
"""With forced fast steps every step may break the limit: the first is told at once, the rest now and then."""

COUNTS_FOR_S: Final = 300.0
"""What was seen so long ago is history; until then people should know of it."""


class SyncWatch:
    def __init__(self, watchdog_s: float) -> None:
        self._limit_s = watchdog_s
        self._before: Heartbeat | None = None
        self._untold = 0
        self._told_at: float | None = None
        self._seen_at: float | None = None
        self.violations = 0
        """In this daemon's life."""
        self.waited_s = 0.0
        """The longest wait beyond the limit of late; 0 where there was none."""

    def heard(self, beat: Heartbeat, now: float) -> list[Story]:
        before, self._before = self._before, beat
        stories = []
        if before is not None and before.sync_mode != beat.sync_mode:
            change = {"mode": beat.sync_mode, "reason": beat.sync_reason, "kv_tokens": beat.kv_tokens}
            stories.append(Story("engine.sync", change))
        known = before.gpu_wait_violations if before is not None else 0
        if beat.gpu_wait_violations > known:
            self._untold += beat.gpu_wait_violations - known
            self.violations += beat.gpu_wait_violations - known
            self._seen_at, self.waited_s = now, beat.longest_gpu_wait_s
        elif self._seen_at is not None and now - self._seen_at > COUNTS_FOR_S:
            self._seen_at, self.waited_s = None, 0.0
        if self._untold and (self._told_at is None or now - self._told_at >= TOLD_EVERY_S):
            stories.append(Story("engine.watchdog", self._violations(beat)))
            self._told_at, self._untold = now, 0
        return stories

    def gone(self) -> None:
        """Another process follows: its counts begin anew."""
        self._before = None

    def _violations(self, beat: Heartbeat) -> dict[str, object]:
        return {
            "steps": self._untold,
            "waited_s": round(beat.longest_gpu_wait_s, 3),
            "limit_s": self._limit_s,
            "text": wait_text(beat.longest_gpu_wait_s, self._limit_s),
        }


def wait_text(waited_s: float, limit_s: float) -> str:
    return (
        f"a fast step waited up to {waited_s:.1f} s for another rank; a GPU's watchdog ends the process at"
        f' {limit_s:g} s: set engine.sync = "dynamic" where it is "fast", or find what is slow'
    )
