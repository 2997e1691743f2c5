"""Does a span of layers fit into this machine's memory? Asked before anything of it is read.

Counts what is certain: the layers, the embedding and the head where the span begins or ends the model, and the KV
cache of a context that was asked for. Where a figure can only be bounded it takes the lower bound, so that nothing
that would fit is refused; a load that starves in spite of it is the daemon's to end. Pure. Called by loading.py.
"""

from __future__ import annotations

from exoengine.model_folder import ModelFolderError, ModelSummary


def span_bytes(summary: ModelSummary, first: int, last: int) -> int:
    """Of the weights of layers [first, last) and what goes with them. An end of the model has at least half of what
    is in no layer: the embedding and the head are about equal, or one and the same.
    """
    ends = (first == 0) + (last == summary.total_layers)
    return sum(summary.layer_bytes[first:last]) + summary.other_bytes * ends // 2


def kv_bytes(summary: ModelSummary, first: int, last: int, context_tokens: int, kv_bits: int) -> int:
    """Of the KV cache of `context_tokens` on these layers; `kv_bits` 0 is 16."""
    return summary.kv_bytes_per_token * (last - first) * context_tokens * (kv_bits or 16) // 16


def check_fit(
    folder: object, summary: ModelSummary, first: int, last: int, context_tokens: int, kv_bits: int, available: int
) -> None:
    """`context_tokens` 0: none was asked for in particular. Raises ModelFolderError `does_not_fit` with the sum."""
    weights = span_bytes(summary, first, last)
    context = kv_bytes(summary, first, last, context_tokens, kv_bits)
    if weights + context <= available:
        return
    terms = f"{_gib(weights)} of weights"
    if context:
        terms += f" and {_gib(context)} for {context_tokens} tokens of context"
    raise ModelFolderError(
        "does_not_fit",
        f"{folder}: layers {first} to {last - 1} of {summary.total_layers} need {_gib(weights + context)}"
        f" ({terms}); {_gib(available)} are available: give this node fewer layers"
        f"{', a shorter context' if context else ''} or more memory",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
