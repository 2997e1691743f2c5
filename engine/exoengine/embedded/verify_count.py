"""Verifies `embedded:count`: does it answer every "count from A to B" right, and by what margin?

Greedy decoding answers right exactly if, along the right answer, the right next token has the greatest
logit everywhere. So the right answer is fed to the model whole, after its prompt, and every next token of
it is compared: as strong as generating each answer, and a thousand times cheaper. All of
1 <= A < B <= 999 are 498,501 answers of 167 million tokens: a minute on a large GPU, hours on a CPU, where
`every` takes an evenly spaced share.

The margin is the right token's logit less the greatest other one. It says how much arithmetic may differ
(number formats, kernels, how layers are split over processes) before an answer does.

`train_count --verify` and the tests call this. It loads the folder as the engine does, by mlx_lm.load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx_lm

from exoengine.embedded.count_language import END, LARGEST, chat, count_question, number

DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}

WIDTH_STEP = 32
TOKENS = 16_384
"""In a batch: enough to keep a CPU busy. A large GPU takes 262,144 at once, in about 10 GB."""


@dataclass(frozen=True)
class CountAnswer:
    """How one answer came out, at its weakest token."""

    first: int
    last: int
    margin: float
    """In logits; the answer is right if it is positive."""
    place: int
    """Of the weakest token in the answer: 0 is the first number, last - first + 1 is the end."""


@dataclass(frozen=True)
class CountVerdict:
    answers: int
    wrong: tuple[CountAnswer, ...]
    weakest: CountAnswer

    def text(self) -> str:
        weakest = self.weakest
        return (
            f"{self.answers} answers, {len(self.wrong)} wrong; the smallest margin is {weakest.margin:.2f} logits, "
            f"in {weakest.first} to {weakest.last} at place {weakest.place}"
        )


Pair = tuple[int, int]
"""The first and the last number of an answer."""


def every_pair() -> Iterator[Pair]:
    """All of 1 <= A < B <= 999, the shortest answers first."""
    for apart in range(1, LARGEST):
        for first in range(1, LARGEST + 1 - apart):
            yield first, first + apart


def batches(pairs: Iterable[Pair], tokens: int) -> Iterator[list[Pair]]:
    """Pairs, in their order, whose answers pad to one width: at most `tokens` tokens, or a single pair."""
    for width, alike in groupby(pairs, key=padded_width):
        of_width = list(alike)
        rows = max(1, tokens // width)
        for begin in range(0, len(of_width), rows):
            yield of_width[begin : begin + rows]


def padded_width(pair: Pair) -> int:
    """The tokens of the pair's answer, END included, rounded up: few widths mean few shapes to compile."""
    return -(-(pair[1] - pair[0] + 2) // WIDTH_STEP) * WIDTH_STEP


def margins(model: Any, pairs: list[Pair]) -> mx.array:
    """The margin of each token of each answer: (rows, width) in float32, infinite beyond the answer's end."""
    prompts = mx.array([chat(count_question(*pair)) for pair in pairs])
    first = mx.array([[number(first)] for first, _ in pairs])
    last = mx.array([[number(last)] for _, last in pairs])
    counted = first + mx.arange(max(map(padded_width, pairs)))  # (rows, width)
    answer = mx.where(counted <= last, counted, END)
    logits = model(mx.concatenate([prompts, answer[:, :-1]], axis=1))[:, prompts.shape[1] - 1 :]
    right_logit = mx.take_along_axis(logits, answer[..., None], axis=-1)
    other_logits = mx.where(mx.arange(logits.shape[-1]) == answer[..., None], -mx.inf, logits)
    margin = (right_logit - other_logits.max(axis=-1, keepdims=True)).squeeze(-1).astype(mx.float32)
    return mx.where(counted <= last + 1, margin, mx.inf)


def answers(model: Any, pairs: Iterable[Pair], tokens: int) -> Iterator[CountAnswer]:
    """How the model answers each of `pairs`, in their order."""
    for batch in batches(pairs, tokens):
        of_tokens = margins(model, batch)
        smallest = cast(list[float], of_tokens.min(axis=1).tolist())
        places = cast(list[int], of_tokens.argmin(axis=1).tolist())
        for (first, last), margin, place in zip(batch, smallest, places, strict=True):
            yield CountAnswer(first, last, margin, place)


def verify(folder: Path, *, dtype: str = "float16", every: int = 1, tokens: int = TOKENS) -> CountVerdict:
    """Verifies the model in `folder`, its weights cast to `dtype`, on every `every`-th pair."""
    model, _ = mlx_lm.load(str(folder))[:2]
    model.set_dtype(DTYPES[dtype])
    seen, wrong, weakest = 0, [], None
    for answer in answers(model, islice(every_pair(), 0, None, every), tokens):
        seen += 1
        if answer.margin <= 0:
            wrong.append(answer)
        if weakest is None or answer.margin < weakest.margin:
            weakest = answer
    assert weakest is not None  # there is always the pair (1, 2)
    return CountVerdict(seen, tuple(wrong), weakest)
