"""How much memory may a rank wire? Pure: no MLX, no file. Sizes in bytes.

The theory. A GPU computes on wired memory only; what MLX does not wire itself the system wires and unwires at each
step, which costs most of the speed of a model that nearly fills the memory. MLX says how much a process should use
at most (`max_recommended_working_set_size`): wiring more throws, and all of a small Mac's memory freezes it. So a
rank wires what it needs, with headroom, up to that. The same figure decides whether layers fit (memory_fit.py):
what is free at the moment leaves out much that the system would give back.
"""

from __future__ import annotations

from typing import Final

HEADROOM_BYTES: Final = 1 << 30
"""For what a step computes beside weights and cache: sixteen arrays of a prefill's 2,048 tokens of 8,192 values of
four bytes. The limit reserves nothing, so that more costs nothing where it is not used."""


def wired_limit(recommended: int, needed: int) -> int:
    """What is to be wired at most; 0 where nothing is recommended, because there is no such GPU."""
    return min(recommended, needed + HEADROOM_BYTES) if recommended > 0 else 0
