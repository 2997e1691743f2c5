"""What a rank measures of itself and of its edges: figures that travel to the daemons. Decides nothing."""

from __future__ import annotations

from typing import Final

import msgspec

CHUNK_TOKENS: Final = 128
"""A chunk of a prompt whose time is measured: the smallest that a prefill has where nothing else runs."""

SMALL_BYTES: Final = 8 * 1024
LARGE_BYTES: Final = 128 * 1024
"""What is summed to measure an edge: what one token of a large model needs, and enough more that the rate of a wire
shows."""


class StepCosts(msgspec.Struct, frozen=True):
    """What a rank's layers take by themselves, in seconds; 0: not known."""

    token_s: float = 0.0
    chunk_s: float = 0.0
    """Of CHUNK_TOKENS tokens."""


class EdgeCosts(msgspec.Struct, frozen=True):
    """What a sum of two neighbours takes over this rank's slowest edge, in seconds; 0: not known."""

    small_s: float = 0.0
    """Of SMALL_BYTES."""
    large_s: float = 0.0
    """Of LARGE_BYTES."""


NOTHING_MEASURED: Final = StepCosts()
NO_EDGES: Final = EdgeCosts()


class RankFigures(msgspec.Struct, frozen=True):
    """What this rank's stage has done since its process started, and what it holds now."""

    passes: int = 0
    """In which answers decode."""
    sequences: int = 0
    """In all of those passes: divided by their number, the size of a batch."""
    prefill_passes: int = 0
    stage_s: float = 0.0
    """How long it was at work on passes."""
    idle_s: float = 0.0
    """How long it was not while requests were open: it waited for another stage, or for what comes next."""
    kv_bytes: int = 0
    """Of the open requests' KV caches."""
    prompt_cache_bytes: int = 0
