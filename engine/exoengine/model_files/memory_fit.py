"""How much memory does a span of layers need, weights and KV cache together, and does it fit?

Counts what is certain: the layers, the embedding and the head where the span begins or ends the model, and the KV
cache of the context that was asked for. Where a figure can only be bounded it takes the lower bound, so that
nothing that would fit is refused; if a load still runs out of memory, the daemon ends it. This is the only place
that computes whether layers fit: the daemon uses it when it divides them and before inference, the worker before it
reads them. Pure: no MLX, no file. Sizes in bytes.
"""

from __future__ import annotations

import itertools
import re
from enum import StrEnum
from typing import Final

import msgspec

WHOLE_CONTEXT = -1

UNITS: Final = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """What a split needs to know of a model. Sizes are those of the files, in bytes."""

    layer_bytes: tuple[int, ...]
    """For each layer the bytes of its weights."""
    other_bytes: int
    """Embedding, norm and head: on the first stage, the last stage, or both."""
    kv_bytes_per_token: int
    """For one layer that attends to the token, unquantised."""
    kv_windows: tuple[int, ...]
    """For each layer how many tokens it keeps keys and values of at most; WHOLE_CONTEXT: of all."""
    max_context_tokens: int
    """The model's own limit."""
    can_shard: bool = False
    """Can mlx-lm divide its layers among the ranks of a tensor group?"""
    heads: tuple[int, ...] = ()
    """What the number of those ranks must divide."""
    kv_is_divided: bool = True
    """Has each of them its part of the KV cache? Not of latent attention's, which all heads share."""
    hidden_size: int = 0
    """Of a token's hidden state, in values; 0: the config does not say."""

    @property
    def total_layers(self) -> int:
        return len(self.layer_bytes)

    def context(self, asked_tokens: int) -> int:
        """What a context of `asked_tokens` comes to with this model; 0 where none was asked for in particular."""
        return min(asked_tokens, self.max_context_tokens)


def amount_bytes(text: str, total_bytes: int) -> int:
    """Of an amount of memory such as `25%` (of `total_bytes`), `8GiB`, or plain bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)(%|KiB|MiB|GiB|TiB)?", text)
    if found is None or (found[2] == "%" and float(found[1]) > 100):
        raise ValueError(text)
    return int(float(found[1]) * (total_bytes / 100 if found[2] == "%" else UNITS[found[2]]))


class Fit(StrEnum):
    FITS = "fits"
    UNCERTAIN = "may not fit"
    TOO_SMALL = "does not fit"


def judge_fit(needed: int, available: int, recommended: int = 0) -> Fit:
    """`available`: what the system calls free, or what a node gives to a model. `recommended`: how much MLX says
    that a process should use; 0 where it says nothing, and then `available` decides alone.
    """
    if recommended <= 0:
        return Fit.FITS if needed <= available else Fit.TOO_SMALL
    if needed > recommended:
        return Fit.TOO_SMALL
    return Fit.FITS if needed <= available else Fit.UNCERTAIN


class SpanNeeds(msgspec.Struct, frozen=True):
    """What layers [first, last) need with the KV cache of a context."""

    first: int
    last: int
    weight_bytes: int
    cache_bytes: int
    context_tokens: int
    parts: int = 1

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def text(self) -> str:
        """The sum for people: `layers 0 to 15 need 9.00 GiB (8.00 GiB of weights and …)`."""
        terms = f"{gib(self.weight_bytes)} of weights"
        if self.cache_bytes:
            terms += f" and {gib(self.cache_bytes)} for {self.context_tokens} tokens of context"
        part = f"a part of {self.parts} of " if self.parts > 1 else ""
        need = "needs" if part else "need"
        return f"{part}layers {self.first} to {self.last - 1} {need} {gib(self.total_bytes)} ({terms})"


class SpanTable:
    """What every span of a model's layers needs under one setting of the context. The sums are kept up to each
    layer, so a split can try all spans.

    `max_context_tokens` is the context that was asked for; 0: none in particular, and none is counted, because a
    model's own limit is often far beyond what anybody uses. `kv_bits` 0: the KV cache is not quantised; else each
    group of values has a scale and a bias of 16 bits beside it. `parts`: of each layer's weights and KV cache a
    rank has one of so many, but the embedding, the head and what all heads share are whole on each rank.
    """

    def __init__(
        self, sizes: ModelSizes, max_context_tokens: int = 0, kv_bits: int = 0, kv_group_size: int = 64,
        parts: int = 1,
    ) -> None:  # fmt: skip
        self._sizes, self._parts = sizes, parts
        self._tokens = tokens = sizes.context(max_context_tokens)
        kept = (tokens if window == WHOLE_CONTEXT else min(window, tokens) for window in sizes.kv_windows)
        self._weights_up_to = list(itertools.accumulate(sizes.layer_bytes, initial=0))
        self._tokens_up_to = list(itertools.accumulate(kept, initial=0))
        self._kv_share = (kv_bits * kv_group_size + 32, 16 * kv_group_size) if kv_bits else (1, 1)

    def weight_bytes(self, first: int, last: int) -> int:
        """Of layers [first, last) and what goes with them. An end of the model has at least half of what is in no
        layer: the embedding and the head are about equal, or one and the same.
        """
        ends = (first == 0) + (last == self._sizes.total_layers)
        layers = self._weights_up_to[last] - self._weights_up_to[first]
        return layers // self._parts + self._sizes.other_bytes * ends // 2

    def cache_bytes(self, first: int, last: int) -> int:
        """Of the KV cache of the whole context on these layers."""
        tokens = self._tokens_up_to[last] - self._tokens_up_to[first]
        share, of = self._kv_share
        cache = self._sizes.kv_bytes_per_token * tokens * share // of
        return cache // (self._parts if self._sizes.kv_is_divided else 1)

    def total_bytes(self, first: int, last: int) -> int:
        return self.weight_bytes(first, last) + self.cache_bytes(first, last)

    def needs(self, first: int, last: int) -> SpanNeeds:
        return SpanNeeds(
            first, last, self.weight_bytes(first, last), self.cache_bytes(first, last), self._tokens, self._parts
        )


def why_not_divisible(model: str, sizes: ModelSizes, parts: int) -> str:
    """Why `parts` ranks cannot run `model` in tensor parallelism, as text; empty where they can, as far as is
    known: what else may be in the way shows when a rank divides it.
    """
    if not sizes.can_shard:
        return f"mlx-lm cannot divide the layers of {model} among ranks"
    uneven = [count for count in sizes.heads if count % parts]
    return f"its {uneven[0]} heads cannot be divided by {parts}" if uneven else ""


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
