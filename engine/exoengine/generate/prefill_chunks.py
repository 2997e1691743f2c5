"""How large the chunks of a prefill are.

With many chunks all stages are busy at once: n chunks over r stages take the time of n + r - 1 passes, where one
chunk would take that of n * r. Large chunks need fewer passes over the weights; small ones keep a stage's wait for
the stage before within the budget of sync_mode.py. Sizes are powers of two, so that measured times, which differ a
little from request to request, seldom change the cut.

Decides the size for rank 0, which sends it to the others with each step. Pure: no MLX, no clock.
"""

from __future__ import annotations

from typing import Final

CHUNKS_PER_STAGE: Final = 8
"""Chunks of a prompt. Filling and draining the pipeline then add at most an eighth to the work itself."""

EFFICIENT_TOKENS: Final = 128
"""Chunks are not made smaller than this for more overlap: below it a GPU spends about as long on reading weights as
on multiplying, at the latest in mixtures of experts, where a few tokens need all experts."""

LARGEST_TOKENS: Final = 512
"""Beyond it a GPU gains nothing, and a pause, a cancel or a fault waits for a chunk's end."""

SMALLEST_TOKENS: Final = 32
"""A slow machine must make progress with a prompt however long a chunk takes; chunks are always safe steps."""


BESIDE_S: Final = 0.1
"""While other answers decode, a chunk may be predicted to take this long: about the pause between two words that a
reader does not notice."""


def chunk_tokens(
    prompt_tokens: int, stages: int, token_s: float, budget_s: float, beside: bool = False
) -> int:  # fmt: skip
    """For a prompt of which `prompt_tokens` are new, where the slowest stage took `token_s` for each token of the
    last chunks (0: not known) and must not take longer than `budget_s` for one chunk. `beside`: other requests
    decode, and wait for each chunk.
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
