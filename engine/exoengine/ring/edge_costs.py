"""How long two ranks take to add up what they have, over each edge of the ring: measured when a group was formed.

What is measured is what a layer of a tensor group waits for: a sum inside a graph, its input computed on the device
and its result used there, so the way to the network and back counts as well. Every two neighbours measure their
edge by themselves. Both see the same figures, for they are summed, and so take the same number of rounds; where an
edge is slow these are two. Decides that. Times in seconds.
"""

from __future__ import annotations

import time
from typing import Any, Final

import mlx.core as mx

from exoengine.protocol import LARGE_BYTES, SMALL_BYTES, EdgeCosts

SLOW_S: Final = 0.005
"""An edge that takes so long for a little is not asked for more: a group forms at once also over a VPN."""

SMALL_ROUNDS: Final = 4
LARGE_ROUNDS: Final = 2
"""The fastest counts. All together take two milliseconds on a cable."""


def order(rank: int, size: int) -> list[int]:
    """The neighbours of `rank` in the order in which it measures its edges: two ranks never wait for each other
    over a third.
    """
    edges = {(low, (low + 1) % size): _turn(low, size) for low in range(size if size > 2 else 1)}
    mine = sorted((turn, edge) for edge, turn in edges.items() if rank in edge)
    return [one if other == rank else other for _, (one, other) in mine]


def _turn(low: int, size: int) -> int:
    """Edges of one turn have no rank in common."""
    return 2 if size % 2 and low == size - 1 else low % 2


def measure(control: Any, peers: list[int]) -> EdgeCosts:
    """The slowest edge of this rank to its neighbours `peers`, in that `order`. A fault shows in the group, as that
    of any operation; what was measured is then of no use.
    """
    costs = [_edge(control.pair(peer)) for peer in peers]
    return EdgeCosts(max(one.small_s for one in costs), max(one.large_s for one in costs))


def measure_all(group: Any) -> EdgeCosts:
    """What a sum of all ranks takes, where no two of them can sum by themselves."""
    return _edge(group)


def _edge(pair: Any) -> EdgeCosts:
    _sum(pair, SMALL_BYTES)  # both are here from now on
    small_s = _agreed(pair, _sum(pair, SMALL_BYTES))
    if small_s > SLOW_S:
        return EdgeCosts(small_s, small_s)
    small_s = min(_sum(pair, SMALL_BYTES) for _ in range(SMALL_ROUNDS))
    return EdgeCosts(small_s, min(_sum(pair, LARGE_BYTES) for _ in range(LARGE_ROUNDS)))


def _agreed(pair: Any, seconds: float) -> float:
    """The mean of what all measured: the same bits on all."""
    mine = mx.array([seconds], dtype=mx.float32)
    both: Any = mx.distributed.all_sum(mine, group=pair).item()
    return float(both) / int(pair.size())


def _sum(pair: Any, size: int) -> float:
    given = mx.zeros((size // 4,))
    mx.eval(given)
    begun = time.perf_counter()
    mx.eval(mx.distributed.all_sum(given + 1, group=pair) + 1)
    return time.perf_counter() - begun
