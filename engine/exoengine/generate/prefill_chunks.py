"""How large the chunks of a prefill are.

With many chunks all stages are busy at once: of n chunks over r stages the time of n + r - 1 passes, where one
chunk would take that of n * r. Large chunks are read with fewer passes over the weights, and small ones keep a
stage's wait for the one before within the budget of sync_mode.py. Powers of two, so that the figures that change
from one request to the next seldom change the cut.

Decides that, for rank 0, which tells the others with each step. Pure: no MLX, no clock.
"""

from __future__ import annotations

from typing import Final

CHUNKS_PER_STAGE: Final = 8
"""Of a prompt. Filling and draining the pipeline then take at most an eighth longer than the work itself."""

EFFICIENT_TOKENS: Final = 128
"""Not for the overlap's sake are chunks smaller: below it, reading the weights takes a GPU about as long as the
products do, at the latest in mixtures of experts, of which a few tokens need them all."""

LARGEST_TOKENS: Final = 512
"""Beyond it a GPU gains nothing, and a pause, a cancel or a fault waits for a chunk's end."""

SMALLEST_TOKENS: Final = 32
"""A slow machine must get on with a prompt, whatever a chunk takes; chunks are run safely."""


BESIDE_S: Final = 0.1
"""While other answers decode, a chunk may be predicted to take this long: about the pause between two words that a
reader does not notice."""


def chunk_tokens(
    prompt_tokens: int, stages: int, token_s: float, budget_s: float, beside: bool = False
) -> int:  # fmt: skip
    """For a prompt of which `prompt_tokens` are new, where the slowest stage took `token_s` for each of the last
    chunks' tokens (0: not known) and must not take longer than `budget_s` for one chunk. `beside`: others decode,
    and wait for each chunk.
    """
    wanted = float(LARGEST_TOKENS)
    if beside:
        wanted, budget_s = EFFICIENT_TOKENS, min(budget_s, BESIDE_S)
    elif stages > 1:
        wanted = max(EFFICIENT_TOKENS, prompt_tokens / (CHUNKS_PER_STAGE * stages))
    if token_s > 0:
        wanted = min(wanted, budget_s / token_s)
    size = SMALLEST_TOKENS
    while size * 2 <= min(wanted, LARGEST_TOKENS):
        size *= 2
    return size
