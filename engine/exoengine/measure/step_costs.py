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
"""A chunk that takes longer is not run again: what a first run needs beside is little then."""


def measure(stage: Stage) -> StepCosts:
    """Runs made-up tokens through the stage, with caches of their own."""
    try:
        chunk_s = _fastest(stage, CHUNK_TOKENS, CHUNKS)
        return StepCosts(_fastest(stage, 1, TOKENS), chunk_s)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotQuantisableError):
        return StepCosts()  # the probe has shown that the model runs: a prompt as short as this may not suit it


def _fastest(stage: Stage, tokens: int, times: int) -> float:
    caches, best = stage.new_caches(), 0.0
    for number in range(1 + times):
        given, hidden = _input(stage, tokens)
        begun = time.perf_counter()
        out = stage.run(given, hidden, caches).out
        # The head runs for a token that is drawn; a prompt's chunk leaves only what the caches keep, or hands on.
        mx.eval(out[:, -1:] if tokens == 1 or not stage.is_last else [], caches.arrays())
        took = time.perf_counter() - begun
        if number == 0:
            best = took
            if took > LONG_S:
                break
        else:
            best = took if number == 1 else min(best, took)
    return best


def _input(stage: Stage, tokens: int) -> tuple[Any, Any]:
    given, hidden = mx.zeros((1, tokens), dtype=mx.int32), None
    if stage.takes is not None:
        hidden = mx.zeros(stage.takes.shape(tokens), dtype=stage.takes.dtype)
        mx.eval(hidden)
    mx.eval(given)
    return given, hidden
