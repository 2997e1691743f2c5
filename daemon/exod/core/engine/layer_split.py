"""Which rank holds which layers: by what each node can hold, evenly, or as a person says.

By memory, the shares follow what layers take: their weights, the embedding and the head at the ends, and the KV
cache of the context that is configured. Of all ways to cut the layers into spans the one is taken that exceeds what
the nodes can hold by the least, and among those the one that fills them most alike. The nodes' figures are what
they can give to a model at all, not what is free now: shares that followed other programs would move all the time.

Decides that, alike on every node, from the plan and the model; and the text for people where it does not fit. Sizes
in bytes, the nodes' memory in MiB.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from exod.core.engine.parallel_mode import tensor_parts
from exod.model import ContextSettings, MeshPlan
from exoengine.model_files.memory_fit import Fit, ModelSizes, SpanNeeds, SpanTable, gib, judge_fit


class DoesNotFitError(ValueError):
    """The plan's nodes cannot hold the model; `str(error)` gives the figures."""


Spans = tuple[tuple[int, int], ...]


def layer_spans(plan: MeshPlan, sizes: ModelSizes) -> Spans:
    """For each rank its layers [first, last_exclusive): every layer once, in rank order, at least one a rank; of a
    tensor group all ranks have the same. ValueError, with a text for people, where that cannot be.
    """
    if not plan.ring:
        raise ValueError("no node hosts a rank: set engine.enabled = true on at least one")
    return part_spans(plan, sizes, tensor_parts(plan, sizes))


def part_spans(plan: MeshPlan, sizes: ModelSizes, parts: int) -> Spans:
    """As `layer_spans`, with so many parts of each layer."""
    ranks = len(plan.ring)
    if parts == 1:
        return _stage_spans(plan, plan.memory_mib, sizes)
    if parts == ranks:
        return ((0, sizes.total_layers),) * ranks
    # A stage holds what its smallest rank can, on each of its ranks.
    held = [min(plan.memory_mib[first : first + parts]) * parts for first in range(0, ranks, parts)]
    return tuple(span for span in _stage_spans(plan, tuple(held), sizes) for _ in range(parts))


def _stage_spans(plan: MeshPlan, memory_mib: tuple[int, ...], sizes: ModelSizes) -> Spans:
    """For stages that can hold so much."""
    ranks, layers = len(memory_mib), sizes.total_layers
    if layers < ranks:
        raise ValueError(f"the model has {layers} layers, too few for {ranks} ranks with at least one each")
    match plan.split:
        case "memory":
            return _by_memory(memory_mib, plan.context, sizes)
        case "even":
            return _spans([layers // ranks + (rank < layers % ranks) for rank in range(ranks)])
        case str(other):
            raise ValueError(f'engine.split is "{other}"; allowed are "memory", "even" or a list of layer counts')
        case counts:
            if len(counts) != ranks or sum(counts) != layers or min(counts) < 1:
                raise ValueError(
                    f"engine.split = {list(counts)} does not fit: it needs {ranks} counts of at least 1 with the"
                    f" sum {layers}, one for each rank"
                )
            return _spans(counts)


def shortage(plan: MeshPlan, sizes: ModelSizes) -> str:
    """Why the plan's nodes cannot hold the model, with the figures; empty where they can, as far as is known."""
    ranks = rank_needs(plan, sizes)
    short = [
        f"{needs.text} and {node} can give {gib(memory_mib << 20)}"
        for node, needs, memory_mib in zip(plan.ring, ranks, plan.memory_mib, strict=True)
        if judge_fit(needs.total_bytes, memory_mib << 20) is Fit.TOO_SMALL
    ]
    if not short:
        return ""
    total, given = sum(needs.total_bytes for needs in ranks), sum(plan.memory_mib) << 20
    hope = "share the layers otherwise (engine.split)" if total <= given else "add a node, or take a smaller model"
    return (
        f"{plan.model} does not fit: {'; '.join(short)}. It needs {gib(total)} in all, the nodes can give"
        f" {gib(given)}: {hope}{', or lower engine.max_context' if plan.context.max_tokens else ''}"
    )


@functools.lru_cache(maxsize=4)
def _by_memory(memory_mib: tuple[int, ...], context: ContextSettings, sizes: ModelSizes) -> Spans:
    """The best cut of all, rank by rank: of each number of layers given out so far only the best way matters for
    what comes after. Cost: (bytes over what the nodes can hold, fill), whose squares make an uneven cut costly.
    """
    ranks, layers = len(memory_mib), sizes.total_layers
    table = span_table(context, sizes)
    best: dict[int, tuple[int, int, Spans]] = {0: (0, 0, ())}
    for rank, mib in enumerate(memory_mib):
        size, left = max(1, mib << 20), ranks - rank - 1
        ahead: dict[int, tuple[int, int, Spans]] = {}
        for last in range(rank + 1, layers - left + 1) if left else (layers,):
            for first, (over, fill, spans) in best.items():
                if first >= last:
                    continue
                needs = table.total_bytes(first, last)
                cost = (over + max(0, needs - size), fill + needs * needs // size)
                if last not in ahead or cost < ahead[last][:2]:
                    ahead[last] = (*cost, (*spans, (first, last)))
        best = ahead
    return best[layers][2]


def rank_needs(plan: MeshPlan, sizes: ModelSizes) -> list[SpanNeeds]:
    """What each rank's share needs, in rank order. ValueError as `layer_spans`."""
    table = span_table(plan.context, sizes, tensor_parts(plan, sizes))
    return [table.needs(first, last) for first, last in layer_spans(plan, sizes)]


def span_table(context: ContextSettings, sizes: ModelSizes, parts: int = 1) -> SpanTable:
    """What each span of layers, or one of `parts` of it, needs under a plan's settings of the context."""
    return SpanTable(sizes, context.max_tokens, context.kv_bits, context.kv_group_size, parts)


def _spans(counts: Sequence[int]) -> Spans:
    return tuple(itertools.pairwise(itertools.accumulate(counts, initial=0)))
