"""When the core learns that nobody waits for a link: half a minute after the last that was generated or queued.

Decides only that; the core decides how often a link is then probed. `look` is called whenever the engine's state
changed. Times are in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from exod.core.base.events import ActivityChanged

QUIET_AFTER_S: Final = 30.0
"""Longer than a person reads an answer before the next question."""


class LinkPace:
    def __init__(self, is_idle: Callable[[], bool], feed: Callable[[ActivityChanged], None]) -> None:
        self._is_idle, self._feed = is_idle, feed
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = False

    def look(self) -> None:
        if not self._is_idle():
            self.close()
            if self._quiet:
                self._quiet = False
                self._feed(ActivityChanged(busy=True))
        elif not self._quiet and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(QUIET_AFTER_S, self._fall_quiet)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fall_quiet(self) -> None:
        self._timer = None
        if self._is_idle():
            self._quiet = True
            self._feed(ActivityChanged(busy=False))
