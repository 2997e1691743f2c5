"""How much memory this host has, and how much of it is free: as it is now, or as it last was.

To ask costs a descriptor. A daemon that has none left for a moment must neither end for that nor say nothing.
"""

from __future__ import annotations

import contextlib

import msgspec
import psutil


class HostMemory(msgspec.Struct, frozen=True):
    total_bytes: int
    used_bytes: int
    available_bytes: int


class MemoryReader:
    """Asked before anything is short, so that there is always a last time."""

    def __init__(self) -> None:
        self._last = _ask()

    def read(self) -> HostMemory:
        with contextlib.suppress(OSError):  # what it was a moment ago is near enough
            self._last = _ask()
        return self._last


def _ask() -> HostMemory:
    found = psutil.virtual_memory()
    return HostMemory(found.total, found.used, found.available)
