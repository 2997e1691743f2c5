"""An event loop whose clock jumps to the next timer: hours of a simulation pass in seconds, the same each time."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class StandstillError(Exception):
    """Nothing is scheduled any more: what is awaited will never come."""


class _JumpingSelector(selectors.BaseSelector):
    """Never finds a ready socket; waiting moves the clock."""

    def __init__(self) -> None:
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self.now = 1000.0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, fileobj, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError("no timer is left")
        self.now += timeout
        return []

    def get_map(self) -> Any:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def monotonic(self) -> float:
        """So that the loop can stand in for the `time` module."""
        return self._jumping.now
