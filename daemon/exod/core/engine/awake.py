"""When this Mac must be kept from sleeping: while its rank loads or answers, and a minute longer. Pure.

Decides only whether, and for which process; who keeps it awake is engine_service/keep_awake.py. `now` is seconds
of a monotonic clock.
"""

from __future__ import annotations

from typing import Final

LINGER_S: Final = 60.0
"""The next question of a conversation comes within a minute; a Mac that fell asleep meanwhile would miss it."""


class Awake:
    """Owns until when the last work holds."""

    def __init__(self) -> None:
        self._until: float | None = None

    def held_for(self, worker: int | None, is_busy: bool, now: float) -> int | None:
        """The pid that the Mac is kept awake for, or None. A worker that is gone holds nothing."""
        if is_busy:
            self._until = now + LINGER_S
        if self._until is None or now >= self._until:
            self._until = None
            return None
        return worker
