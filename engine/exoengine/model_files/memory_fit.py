"""How much memory does a span of layers need, weights and KV cache together?

Counts what is certain: the layers, the embedding and the head where the span begins or ends the model, and the KV
cache of the context that was asked for. Where a figure can only be bounded it takes the lower bound: nothing
that would fit is refused; a load that starves in spite of it is ended by the daemon. Everyone who asks whether
layers fit asks here: the daemon when it divides them and before inference, the worker before it reads them. Pure:
no MLX, no file. Sizes in bytes.
"""

from __future__ import annotations

import re
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


def span_bytes(sizes: ModelSizes, first: int, last: int) -> int:
    """Of the weights of layers [first, last) and what goes with them. An end of the model has at least half of what
    is in no layer: the embedding and the head are about equal, or one and the same.
    """
    ends = (first == 0) + (last == sizes.total_layers)
    return sum(sizes.layer_bytes[first:last]) + sizes.other_bytes * ends // 2


def kv_bytes(
    sizes: ModelSizes, first: int, last: int, context_tokens: int, kv_bits: int = 0, kv_group_size: int = 64
) -> int:
    """Of the KV cache of `context_tokens` on these layers. `kv_bits` 0 is not quantised; else each group of values
    has a scale and a bias of 16 bits beside it.
    """
    windows = sizes.kv_windows[first:last]
    tokens = sum(context_tokens if window == WHOLE_CONTEXT else min(window, context_tokens) for window in windows)
    if not kv_bits:
        return sizes.kv_bytes_per_token * tokens
    return sizes.kv_bytes_per_token * tokens * (kv_bits * kv_group_size + 32) // (16 * kv_group_size)


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

    def fits(self, available_bytes: int) -> bool:
        """As far as is known: a lower bound is compared."""
        return self.total_bytes <= available_bytes

    @property
    def text(self) -> str:
        """The sum for people: `layers 0 to 15 need 9.00 GiB (8.00 GiB of weights and …)`."""
        terms = f"{gib(self.weight_bytes)} of weights"
        if self.cache_bytes:
            terms += f" and {gib(self.cache_bytes)} for {self.context_tokens} tokens of context"
        part = f"a part of {self.parts} of " if self.parts > 1 else ""
        need = "needs" if part else "need"
        return f"{part}layers {self.first} to {self.last - 1} {need} {gib(self.total_bytes)} ({terms})"


def span_needs(
    sizes: ModelSizes, first: int, last: int, max_context_tokens: int, kv_bits: int = 0, kv_group_size: int = 64,
    parts: int = 1,
) -> SpanNeeds:  # fmt: skip
    """`max_context_tokens` is the context that was asked for; 0: none in particular, and none is counted, because a
    model's own limit is often far beyond what anybody uses. `parts`: of each layer's weights and KV cache it is one
    of so many, but the embedding, the head and what all heads share are whole on each rank.
    """
    tokens = sizes.context(max_context_tokens)
    cache = kv_bytes(sizes, first, last, tokens, kv_bits, kv_group_size)
    layers = sum(sizes.layer_bytes[first:last])
    weights = span_bytes(sizes, first, last) - layers + layers // parts
    return SpanNeeds(first, last, weights, cache // (parts if sizes.kv_is_divided else 1), tokens, parts)


def why_not_divisible(model: str, sizes: ModelSizes, parts: int) -> str:
    """Why `parts` ranks cannot run `model` in tensor parallelism, in words; empty where they can, as far as is
    known: what else may be in the way shows when a rank divides it.
    """
    if not sizes.can_shard:
        return f"mlx-lm cannot divide the layers of {model} among ranks"
    uneven = [count for count in sizes.heads if count % parts]
    return f"its {uneven[0]} heads cannot be divided by {parts}" if uneven else ""


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
