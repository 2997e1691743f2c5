"""What goes wrong on a host beside exod: its disk, its memory, its clock, and a worker that ends again and again.

Each has a threshold to raise and a lower one to clear, so that a figure at the limit does not come and go.
Decides that alone, from figures that the shell takes now and then. `now` is monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from exod.core.base.facts import Fact
from exod.model import NodeId

GIB: Final = 1 << 30

DISK_LOW: Final = GIB // 2
DISK_WELL: Final = GIB
"""Logs, events and the files of the data folder need some 100 MB. A download checks for its own room."""

MEMORY_LOW: Final = 0.03
MEMORY_WELL: Final = 0.06
"""Of all memory. Below the first the system pages, and a step waits for the disk."""

CLOCK_OFF_S: Final = 5.0
CLOCK_WELL_S: Final = 2.0
"""A report takes well under a second to arrive. Five seconds make two nodes' events tell another story."""

RESTARTS: Final = 3
RESTARTS_WITHIN_S: Final = 300.0
"""A worker that crashes once is replaced and forgotten; three times in five minutes have one cause."""

TOGETHER_S: Final = 10.0
"""Reports come every five seconds: workers of several nodes that end within ten ended of one cause."""


class HostFigures(msgspec.Struct, frozen=True):
    """`clocks`: how far each peer's clock is ahead of this one, by its newest report. `restarts`: how many workers
    of each node have been replaced since its daemon started, this node's among them.
    """

    folder: str
    disk_free_bytes: int
    memory_available: float
    """0 to 1."""
    clocks: dict[NodeId, float] = {}
    restarts: dict[NodeId, int] = {}


class HostWatch:
    """Keeps what was low, and when workers were replaced."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._disk_low = self._memory_low = False
        self._clocks_off: set[NodeId] = set()
        self._restarts: dict[NodeId, int] = {}
        self._restarted: deque[tuple[float, NodeId]] = deque(maxlen=64)
        """A crash loop of eight nodes within RESTARTS_WITHIN_S; older ones do not count."""

    def facts(self, figures: HostFigures, names: dict[NodeId, str], now: float) -> list[Fact]:
        """All that holds now."""
        self._note_restarts(figures.restarts, now)
        return [
            *self._disk(figures),
            *self._memory(figures),
            *self._clock(figures.clocks, names),
            *self._restart_loop(now),
            *self._crashed_together(names, now),
        ]

    def _disk(self, figures: HostFigures) -> list[Fact]:
        free = figures.disk_free_bytes
        self._disk_low = free < (DISK_WELL if self._disk_low else DISK_LOW)
        text = f"{free / GIB:.1f} GiB are free on the volume of {figures.folder}"
        return [Fact("disk_low", self._me, text)] if self._disk_low else []

    def _memory(self, figures: HostFigures) -> list[Fact]:
        self._memory_low = figures.memory_available < (MEMORY_WELL if self._memory_low else MEMORY_LOW)
        text = f"{figures.memory_available:.1%} of the memory is available: the system pages, and steps wait for it"
        return [Fact("memory_low", self._me, text)] if self._memory_low else []

    def _clock(self, clocks: dict[NodeId, float], names: dict[NodeId, str]) -> list[Fact]:
        found = []
        for peer, ahead_s in clocks.items():
            if abs(ahead_s) >= (CLOCK_WELL_S if peer in self._clocks_off else CLOCK_OFF_S):
                self._clocks_off.add(peer)
                way = "ahead of" if ahead_s > 0 else "behind"
                name = names.get(peer, peer)
                text = f"the clock of {name} is {abs(ahead_s):.0f} s {way} this node's: their events do not line up"
                found.append(Fact("clock_skew", peer, text))
            else:
                self._clocks_off.discard(peer)
        self._clocks_off &= clocks.keys()
        return found

    def _note_restarts(self, restarts: dict[NodeId, int], now: float) -> None:
        for node, count in restarts.items():
            more = count - self._restarts.get(node, count)
            self._restarted.extend([(now, node)] * min(max(more, 0), RESTARTS))
        self._restarts = dict(restarts)
        while self._restarted and self._restarted[0][0] < now - RESTARTS_WITHIN_S:
            self._restarted.popleft()

    def _restart_loop(self, now: float) -> list[Fact]:
        mine = sum(node == self._me for _, node in self._restarted)
        text = f"this node's worker was replaced {mine} times within {RESTARTS_WITHIN_S / 60:.0f} minutes"
        return [Fact("restart_loop", self._me, text)] if mine >= RESTARTS else []

    def _crashed_together(self, names: dict[NodeId, str], now: float) -> list[Fact]:
        together = frozenset(node for at, node in self._restarted if at >= now - TOGETHER_S)
        if len(together) < 2:
            return []
        who = ", ".join(sorted(names.get(node, node) for node in together))
        return [
            Fact("workers_crashed", self._me, f"the workers of {who} ended within {TOGETHER_S:g} s of each other")
        ]
