"""How long a path must stay good before it is taken again: the hold-up, which doubles each time the path relapses.

Remembers of one path its grade, since when it has it, and how often it became good and soon bad again. Decides the
hold-up; never a switch. Times are monotonic seconds.
"""

from __future__ import annotations

from exod.core.base.config import CoreConfig
from exod.core.probe.path_order import Grade

HOLD_UP_MAX_S = 300.0
"""Doubling ends here: a cable that was mended is used again within five minutes."""


class PathHistory:
    """What the selection remembers of one path."""

    def __init__(self, config: CoreConfig, now: float) -> None:
        self._config = config
        self.grade: Grade | None = None
        self.since = now
        """In this grade, without a break."""
        self._returned_at: float | None = None
        self._relapses = 0
        self.left_by_death = False
        """Was it last left because it died? The return to it takes no token then."""

    @property
    def hold_up_s(self) -> float:
        return float(min(HOLD_UP_MAX_S, self._config.hold_up_s * 2**self._relapses))

    def graded(self, grade: Grade | None, *, after_a_switch: bool, now: float) -> None:
        """`grade` is None where it cannot be used. `after_a_switch`: was there one before, so that becoming good is
        a return?
        """
        if grade == self.grade:
            return
        was_good, is_good = _is_good(self.grade), _is_good(grade)
        if was_good and not is_good and self._returned_at is not None:
            relapsed = now - self._returned_at < self._config.relapse_within_s
            self._relapses = self._relapses + 1 if relapsed else 0
        if is_good and not was_good and after_a_switch:
            self._returned_at = now
        self.grade, self.since = grade, now


def _is_good(grade: Grade | None) -> bool:
    return grade is not None and grade[0] == 0
