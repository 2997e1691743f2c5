"""How much memory does a span of layers need, weights and KV cache together?

Counts what is certain: the layers, the embedding and the head where the span begins or ends the model, and the KV
cache of the context that was asked for. Where a figure can only be bounded it takes the lower bound: nothing
that would fit is refused; a load that starves in spite of it is the daemon's to end. Pure: no MLX, no file. Called
by loading.py before anything is read, and by the daemon when it divides the layers.
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


def needs_text(first: int, last: int, weights: int, context: int, context_tokens: int) -> str:
    """The sum for people: `layers 0 to 15 need 9.00 GiB (8.00 GiB of weights and …)`."""
    terms = f"{gib(weights)} of weights"
    if context:
        terms += f" and {gib(context)} for {context_tokens} tokens of context"
    return f"layers {first} to {last - 1} need {gib(weights + context)} ({terms})"


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
