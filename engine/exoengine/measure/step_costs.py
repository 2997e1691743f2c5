"""How long this rank's layers take by themselves: for a token, and for a chunk of a prompt. Measured after a load.

The daemons predict from it what the model would take divided in another way. Nothing is waited for here: a part of
a tensor group's layers is run with sums that fail at once. Decides nothing. Times in seconds; what cannot be
measured is 0, which says that it is not known.
"""

from __future__ import annotations

import time
from typing import Any, Final

import mlx.core as mx

from exoengine.model.cache_rollback import NotQuantisableError
from exoengine.model.stages import Stage
from exoengine.protocol import CHUNK_TOKENS, StepCosts

TOKENS: Final = 4
CHUNKS: Final = 2
"""So many are run one after the other, after one that compiles what has to be: the fastest counts, for another
program can only make it slower."""

LONG_S: Final = 1.0
"""What has taken so long is not run again, and a chunk that would takes fewer tokens: a load must not wait for this
on a slow machine."""

FEWEST_TOKENS: Final = 8
"""Fewer say nothing of a prompt: a matrix would still be read once for each."""


def measure(stage: Stage) -> StepCosts:
    """Runs made-up tokens through the stage, with caches of their own."""
    try:
        token_s = _fastest(stage, 1, TOKENS)
        tokens = max(FEWEST_TOKENS, min(CHUNK_TOKENS, int(LONG_S / token_s)))
        return StepCosts(token_s, _fastest(stage, tokens, CHUNKS) * CHUNK_TOKENS / tokens)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotQuantisableError):
        return StepCosts()  # the probe has shown that the model runs: a prompt as short as this may not suit it


def _fastest(stage: Stage, tokens: int, times: int) -> float:
    """Without the first run, unless that took long already."""
    caches, took_s = stage.new_caches(), list[float]()
    while len(took_s) <= times and sum(took_s) < LONG_S:
        given, hidden = _input(stage, tokens)
        begun = time.perf_counter()
        out = stage.run(given, hidden, caches).out
        # The head runs for a token that is drawn; a prompt's chunk leaves only what the caches keep, or hands on.
        mx.eval(out[:, -1:] if tokens == 1 or not stage.is_last else [], caches.arrays())
        took_s.append(time.perf_counter() - begun)
    return min(took_s[1:] or took_s)


def _input(stage: Stage, tokens: int) -> tuple[Any, Any]:
    given, hidden = mx.zeros((1, tokens), dtype=mx.int32), None
    if stage.takes is not None:
        hidden = mx.zeros(stage.takes.shape(tokens), dtype=stage.takes.dtype)
        mx.eval(hidden)
    mx.eval(given)
    return given, hidden
