"""Is memory still wired that a rank's process had, although the process is gone?

A process that was killed in the midst of a GPU's work can leave its wired memory behind until a restart of the Mac,
and each further process that is started and killed adds to it. So the next one waits until what is wired has fallen
near to what was wired before the last one began.

Decides that, from figures that the shell reads; on systems that tell none nothing ever waits. Sizes in bytes, times
in monotonic seconds.
"""

from __future__ import annotations

from typing import Final

from exoengine.model_files.memory_fit import gib

SLACK_BYTES: Final = 1 << 30
"""Other programs wire and unwire as much from one minute to the next."""

LEAKED_SHARE: Final = 0.5
"""Of what the process had: if less than half of it is still wired, something else wired it."""

TOLD_AFTER_S: Final = 15.0
"""The system takes some seconds to free many gigabytes; people are told when it should long be done."""

LOOK_AGAIN_S: Final = 1.0


class WiredWatch:
    def __init__(self) -> None:
        self._now: int | None = None
        """Wired on the whole host, as last told."""
        self._before: int | None = None
        """The same before the last process was started."""
        self._had = 0
        self._ended_at: float | None = None

    def observe(self, wired: int) -> None:
        self._now = wired

    def started(self) -> None:
        self._before, self._ended_at = self._now, None

    def ended(self, had: int, now: float) -> None:
        """The process is gone; `had` is what it held of the GPU's memory."""
        self._had, self._ended_at = had, now

    @property
    def _leaked(self) -> int:
        """0 where nothing is left behind, as far as is known."""
        if self._ended_at is None or self._now is None or self._before is None:
            return 0
        more = self._now - self._before
        return more if more > max(SLACK_BYTES, int(self._had * LEAKED_SHARE)) else 0

    @property
    def blocks(self) -> bool:
        """Is it too early to start another process?"""
        return self._leaked > 0

    def text(self, now: float) -> str:
        """Why no rank is started, for people; empty while it is not blocked, or may be over in a moment."""
        if not self.blocks or self._ended_at is None or now - self._ended_at < TOLD_AFTER_S:
            return ""
        return (
            f"the last rank's process is gone and {gib(self._leaked)} more than before it are still wired: no rank "
            "is started until they are free. Restart this Mac. If another program wired them: end it, restart exod"
        )
