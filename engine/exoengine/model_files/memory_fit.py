"""How much memory does a span of layers need, weights and KV cache together?

Counts what is certain: the layers, the embedding and the head where the span begins or ends the model, and the KV
cache of the context that was asked for. Where a figure can only be bounded it takes the lower bound: nothing
that would fit is refused; a load that starves in spite of it is ended by the daemon. Everyone who asks whether
layers fit asks here: the daemon when it divides them and before inference, the worker before it reads them. Pure:
no MLX, no file. Sizes in bytes.
"""

from __future__ import annotations

import msgspec

WHOLE_CONTEXT = -1


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

    @property
    def total_layers(self) -> int:
        return len(self.layer_bytes)

    def context(self, asked_tokens: int) -> int:
        """What a context of `asked_tokens` comes to with this model; 0 where none was asked for in particular."""
        return min(asked_tokens, self.max_context_tokens)


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
        return f"layers {self.first} to {self.last - 1} need {gib(self.total_bytes)} ({terms})"


def span_needs(
    sizes: ModelSizes, first: int, last: int, max_context_tokens: int, kv_bits: int = 0, kv_group_size: int = 64
) -> SpanNeeds:
    """`max_context_tokens` is the context that was asked for; 0: none in particular, and none is counted, because a
    model's own limit is often far beyond what anybody uses.
    """
    tokens = sizes.context(max_context_tokens)
    cache = kv_bytes(sizes, first, last, tokens, kv_bits, kv_group_size)
    return SpanNeeds(first, last, span_bytes(sizes, first, last), cache, tokens)


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
