"""How a token is drawn from logits: mlx-lm's filters and penalties, with a draw that is keyed by (seed, step).

A step that is run again draws the same token, on whichever rank and after whatever fault. Decides nothing else;
never evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from exoengine.protocol import Sampling

PENALTY_CONTEXT_TOKENS: Final = 20
"""How far back presence and frequency penalties look: mlx-lm's default."""

LEAST_DRAW: Final = -4.0
"""A Gumbel draw from the least of MLX's uniform numbers above 0, 2**-32, is -3.1. From 0 it is minus infinity,
which must not make a token that is left alone equal to one that is excluded."""

_MASK_64: Final = (1 << 64) - 1


def draw_key(seed: int, step: int) -> Any:
    """The random key of one draw: two rounds of splitmix64 over (seed, step), so that neighbouring seeds and
    steps share nothing. https://prng.di.unimi.it/splitmix64.c
    """
    return mx.random.key(_splitmix64(_splitmix64(seed & _MASK_64) ^ (step & _MASK_64)))


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


class Sampler:
    """Draws the tokens of one request.

    The first tokens may be `given`: they are not drawn, and have the probability that the model gives them. `mask`
    gives for the answer's token of an index, and for so many logits, what is added to them, (vocabulary,): 0, or
    minus infinity for what must not come; None where everything may.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        given: Sequence[int] = (),
        mask: Callable[[int, int], Any] | None = None,
    ) -> None:
        self._given, self._mask = given, mask
        self._sampling = sampling
        self._vocab_size = vocab_size
        biases = [_biased(sampling.logit_bias)] if sampling.logit_bias else []
        self._processors = [
            *biases,
            *make_logits_processors(
                repetition_penalty=sampling.repetition_penalty if sampling.repetition_penalty != 1.0 else None,
                repetition_context_size=sampling.repetition_context_tokens,
                presence_penalty=sampling.presence_penalty or None,
                presence_context_size=PENALTY_CONTEXT_TOKENS,
                frequency_penalty=sampling.frequency_penalty or None,
                frequency_context_size=PENALTY_CONTEXT_TOKENS,
            ),
        ]

    def takes_likeliest(self, step: int) -> bool:
        """Is token `step` the likeliest one, whatever came before it?"""
        free = step >= len(self._given) and self._mask is None and not self._processors
        return free and self._sampling.temperature == 0

    def draw(self, logits: Any, history: Sequence[int], step: int) -> tuple[Any, Any]:
        """Builds the draw of token `step`: `logits` (1, vocabulary), `history` the prompt and all tokens so far.
        Gives the token (1,) int and the log probabilities (1, vocabulary), neither evaluated.
        """
        if step < len(self._given):
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            return mx.array([self._given[step]]), logprobs
        if self._processors:
            # No penalty looks further back than this.
            reach = max(self._sampling.repetition_context_tokens, PENALTY_CONTEXT_TOKENS)
            recent = mx.array(list(history[-reach:]))
            for processor in self._processors:
                logits = processor(recent, logits)
        allowed = self._mask(step, logits.shape[-1]) if self._mask is not None else None
        if allowed is not None:
            logits = logits + allowed
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._sampling.temperature == 0:
            return mx.argmax(logprobs, axis=-1), logprobs
        kept = logprobs
        if 0 < self._sampling.top_p < 1:
            kept = apply_top_p(kept, self._sampling.top_p)
        if self._sampling.min_p > 0:
            kept = apply_min_p(kept, self._sampling.min_p)
        if 0 < self._sampling.top_k < self._vocab_size:
            kept = apply_top_k(kept, self._sampling.top_k)
        return _drawn(kept * (1 / self._sampling.temperature), draw_key(self._sampling.seed, step)), logprobs


def _drawn(scores: Any, key: Any) -> Any:
    """A token by the softmax of `scores` (1, vocabulary): the largest after a Gumbel draw is added to each
    (https://arxiv.org/abs/1611.01144). Ranks that add in another order give scores that differ in their last bits,
    which changes this token only where the two largest are as close. `mx.random.categorical` looks a uniform draw
    up among the running sums of all probabilities: any of a vocabulary's boundaries may then be moved past it.
    """
    draws = mx.maximum(mx.random.gumbel(scores.shape, key=key), LEAST_DRAW)
    return mx.argmax(scores + draws, axis=-1)


def _biased(biases: Mapping[int, float]) -> Callable[[Any, Any], Any]:
    """As mlx-lm's own, for tokens that exist: MLX writes beyond the logits for an index that is none of theirs."""

    def add(recent: Any, logits: Any) -> Any:
        known = {token: bias for token, bias in biases.items() if 0 <= token < logits.shape[-1]}
        return make_logits_processors(logit_bias=known)[0](recent, logits) if known else logits

    return add


def draw_likeliest(logits: Any) -> tuple[Any, Any]:
    """Of each row of logits (n, vocabulary) the likeliest token, (n,), and the log probabilities, not evaluated."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.argmax(logprobs, axis=-1), logprobs
