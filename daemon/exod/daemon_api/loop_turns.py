"""Divides what clients ask for at once over several turns of the event loop.

Each request alone takes a millisecond or two, but a client may have a hundred connections, and what arrives on all
of them is handled before any timer: a burst of large heads held the loop for a second, and peers took the node for
silent. Decides only when a piece of work may begin; what waits is begun in the order in which it came. Belongs to
the event loop. Times are in seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

BUDGET_S: Final = 0.010
"""Of one turn, for all clients together. The last piece may exceed it by what one piece takes, some 10 ms: together
less than the 25 ms at which a late probe timer counts as a stall."""

REQUEST_S: Final = 0.0015
"""What is assumed of a request that waited for its turn: it runs in the next one, where nobody measures it.
`/metrics` takes so long; most take a third of it."""

BODY_S: Final = 0.003
"""Assumed of a body that is decoded in the loop (64 KiB at most)."""


class LoopTurns:
    """One for all connections of a server."""

    def __init__(self, budget_s: float = BUDGET_S) -> None:
        self._budget_s = budget_s
        self._spent_s = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._renewal: asyncio.Handle | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Runs `work` now, where this turn has time left, else in a later one."""
        self._enter(partial(self._measured, work))

    async def wait(self, assumed_s: float = REQUEST_S) -> None:
        """Returns when work that takes `assumed_s` may begin."""
        if not self._waiting and self._spent_s < self._budget_s:
            self._enter(partial(self._spend, assumed_s))
            return
        granted = asyncio.get_running_loop().create_future()
        self._enter(partial(self._grant, granted, assumed_s))
        await granted

    def _enter(self, begin: Callable[[], None]) -> None:
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().call_soon(self._renew)
        if self._waiting or self._spent_s >= self._budget_s:
            self._waiting.append(begin)
        else:
            begin()

    def _renew(self) -> None:
        """The next turn has begun."""
        self._renewal, self._spent_s = None, 0.0
        try:
            while self._waiting and self._spent_s < self._budget_s:
                self._waiting.popleft()()
        finally:
            if self._waiting or self._spent_s:
                self._renewal = asyncio.get_running_loop().call_soon(self._renew)

    def _measured(self, work: Callable[[], None]) -> None:
        before = time.monotonic()
        try:
            work()
        finally:
            self._spend(time.monotonic() - before)

    def _spend(self, seconds: float) -> None:
        self._spent_s += seconds

    def _grant(self, granted: asyncio.Future[None], assumed_s: float) -> None:
        if not granted.done():  # else its client has left
            granted.set_result(None)
            self._spend(assumed_s)
