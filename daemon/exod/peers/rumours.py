"""Contacts that nothing but multicast DNS names: anybody on the network can name thousands of them.

Decides how often they are dialled until they have proven true; a member that was connected once, or that a
person configured, is no rumour. Times are in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

DIALS_AT_ONCE: Final = 32

RETRY_LIMIT_S: Final = 60.0
REFUSED_RETRY_S: Final = 180.0
"""Where nobody answers, or one who has not the cluster's key. A member that comes there later dials this node by
itself, as it hears of it by the same way."""

Place = tuple[str, int]
"""Address and port."""


class Rumours:
    def __init__(self) -> None:
        self._places: set[Place] = set()
        self._refused: set[Place] = set()
        self._turns = asyncio.Semaphore(DIALS_AT_ONCE)

    def add(self, place: Place) -> None:
        self._places.add(place)

    def drop(self, places: Iterable[Place]) -> None:
        """They have proven true, or are not spoken of any more."""
        for place in places:
            self._places.discard(place)
            self._refused.discard(place)

    def refused(self, place: Place) -> None:
        """The node at that address has another key."""
        if place in self._places:
            self._refused.add(place)

    def turn(self, place: Place) -> contextlib.AbstractAsyncContextManager[object]:
        """Held while it is dialled."""
        return self._turns if place in self._places else contextlib.nullcontext()

    def pause_s(self, place: Place, pause_s: float, limit_s: float) -> tuple[float, float]:
        """How long to wait before the next dial, and how long after that one, where an ordinary contact waits
        `pause_s` and at most `limit_s`.
        """
        if place not in self._places:
            return min(pause_s, limit_s), min(limit_s, pause_s * 2)
        if place in self._refused:
            self._refused.discard(place)
            return REFUSED_RETRY_S, REFUSED_RETRY_S
        return pause_s, min(RETRY_LIMIT_S, pause_s * 2)
