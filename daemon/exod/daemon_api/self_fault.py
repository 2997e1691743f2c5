"""What `exoctl debug` may ask for: the faults that a node does to itself, how long, how much. Decides nothing."""

from __future__ import annotations

from typing import Final, Literal, get_args

SelfFault = Literal["kill-rank", "stop-rank", "no-descriptors", "deaf"]
SELF_FAULTS: tuple[SelfFault, ...] = get_args(SelfFault)

MAX_DEBUG_S: Final = 3600.0
"""A fault that someone forgot must end by itself."""
MAX_DELAY_MS: Final = 60_000.0
"""Beyond every deadline of the mesh: more would show nothing new."""
