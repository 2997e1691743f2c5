"""The one check of an edge that probes cannot make, made by itself: do large frames pass?

A path with a wrong MTU, or a plug that is half in, answers every small datagram and swallows whole hidden states:
the mesh takes it for a cable, and each step hangs on it. So a while after each committed plan every node sends a
piece of some kilobytes over the control connections of the edges that start there, and again while it does not
arrive. What probes do see (RTT, loss, routes) the mesh judges all the time.

Decides when to check, and what counts as found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from exod.daemon_api.shapes import PreflightCheck

SETTLE_S: Final = 2.0
"""A recovery is over by then, and connections have been made anew: the check disturbs neither."""

AGAIN_S: Final = 5.0
STRIKES: Final = 2
"""One failure may be a path that dies in this very moment; the mesh will say so. Two in a row are a fault of this
edge."""

Check = Callable[[], Awaitable[tuple[PreflightCheck, ...]]]


class EdgeWatch:
    """`check` looks at this node's edges once; `on_change(failed)` gets what fails, or nothing once all is well."""

    def __init__(self, check: Check, on_change: Callable[[tuple[PreflightCheck, ...]], None]) -> None:
        self._check, self._on_change = check, on_change
        self._committed = asyncio.Event()
        self.failed: tuple[PreflightCheck, ...] = ()

    def plan_committed(self) -> None:
        """Other edges may be in use: what was found is void."""
        self._set(())
        self._committed.set()

    async def run(self) -> None:
        """Checks until cancelled."""
        while True:
            await self._committed.wait()
            self._committed.clear()
            await self._watch_plan()

    async def _watch_plan(self) -> None:
        """Until all is well, or there is another plan."""
        strikes, pause_s = 0, SETTLE_S
        while not await self._replaced(pause_s):
            failed = tuple(check for check in await self._check() if not check.ok)
            if self._committed.is_set():
                return
            strikes = strikes + 1 if failed else 0
            if not failed:
                self._set(())
                return
            if strikes >= STRIKES:
                self._set(failed)
            pause_s = AGAIN_S

    async def _replaced(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._committed.wait()
        except TimeoutError:
            return False
        return True

    def _set(self, failed: tuple[PreflightCheck, ...]) -> None:
        if [check.subject for check in failed] != [check.subject for check in self.failed]:
            self.failed = failed
            self._on_change(failed)
