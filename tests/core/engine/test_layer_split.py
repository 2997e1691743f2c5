"""Who holds which layers: each layer once whatever the weights, and by memory as good as any cut can be."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.core.engine.layer_split import Spans, layer_spans, shortage
from exod.model import ContextSettings, MeshPlan, NodeId
from exoengine.model_files.memory_fit import WHOLE_CONTEXT, ModelSizes
from tests.core.engine.engine_samples import A, a_plan

MIB = 1 << 20


def plan_of(
    memory_mib: list[int], split: str | tuple[int, ...] = "memory", context: ContextSettings | None = None
) -> MeshPlan:
    ring = tuple(NodeId(f"{rank:016x}") for rank in range(len(memory_mib)))
    return msgspec.structs.replace(
        a_plan(A), ring=ring, memory_mib=tuple(memory_mib), split=split, context=context or ContextSettings()
    )


def model(
    layers: list[int], other_mib: int = 0, kv_per_token: int = 0, windows: list[int] | None = None
) -> ModelSizes:
    return ModelSizes(
        layer_bytes=tuple(size * MIB for size in layers),
        other_bytes=other_mib * MIB,
        kv_bytes_per_token=kv_per_token,
        kv_windows=tuple(windows or [WHOLE_CONTEXT] * len(layers)),
        max_context_tokens=1_000_000,
    )


def all_cuts(layers: int, ranks: int) -> list[Spans]:
    cuts = itertools.combinations(range(1, layers), ranks - 1)
    return [tuple(itertools.pairwise((0, *cut, layers))) for cut in cuts]


def needs(sizes: ModelSizes, span: tuple[int, int], context: ContextSettings) -> int:
    """Added up layer by layer, not quantised."""
    first, last = span
    ends = (first == 0) + (last == sizes.total_layers)
    kept = [context.max_tokens if window < 0 else min(window, context.max_tokens) for window in sizes.kv_windows]
    caches = sizes.kv_bytes_per_token * sum(kept[first:last])
    return sum(sizes.layer_bytes[first:last]) + sizes.other_bytes * ends // 2 + caches


def overflow(plan: MeshPlan, sizes: ModelSizes, spans: Spans) -> int:
    pairs = zip(spans, plan.memory_mib, strict=True)
    return sum(max(0, needs(sizes, span, plan.context) - mib * MIB) for span, mib in pairs)


@given(
    st.lists(st.integers(0, 1_000_000), min_size=1, max_size=8),
    st.lists(st.integers(0, 5_000), min_size=1, max_size=60),
    st.sampled_from(["memory", "even"]),
    st.integers(0, 100_000),
    st.sampled_from([0, 4, 8]),
)
def test_spans_cover_each_layer_once(
    memory: list[int], layers: list[int], split: str, tokens: int, bits: int
) -> None:
    plan, sizes = plan_of(memory, split, ContextSettings(tokens, bits)), model(layers, 700, 4096)
    if len(layers) < len(memory):
        with pytest.raises(ValueError, match="too few"):
            layer_spans(plan, sizes)
        return
    spans = layer_spans(plan, sizes)
    assert len(spans) == len(memory)
    assert [layer for first, last in spans for layer in range(first, last)] == list(range(len(layers)))
    assert all(first < last for first, last in spans)
    if split == "even":
        lengths = [last - first for first, last in spans]
        assert max(lengths) - min(lengths) <= 1


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=4, max_size=8),
    st.integers(0, 20),
    st.integers(0, 8),
)
def test_no_cut_exceeds_the_memory_by_less(memory: list[int], layers: list[int], other: int, tokens: int) -> None:
    plan, sizes = plan_of(memory, context=ContextSettings(tokens)), model(layers, other, MIB)
    found = overflow(plan, sizes, layer_spans(plan, sizes))
    assert found == min(overflow(plan, sizes, cut) for cut in all_cuts(len(layers), len(memory)))
    assert bool(found) == bool(shortage(plan, sizes))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_list_is_taken_as_it_is(counts: list[int]) -> None:
    spans = layer_spans(plan_of([1] * len(counts), tuple(counts)), model([1] * sum(counts)))
    assert [last - first for first, last in spans] == counts


def test_memory_shares_by_what_layers_take() -> None:
    assert layer_spans(plan_of([512, 256]), model([10] * 48)) == ((0, 32), (32, 48))
    assert layer_spans(plan_of([1_000_000, 1]), model([10] * 8)) == ((0, 7), (7, 8))
    assert layer_spans(plan_of([100, 100]), model([9, 9, 1, 1, 1, 1, 1, 1, 1, 1])) == ((0, 1), (1, 10))
    assert layer_spans(plan_of([100, 100, 100]), model([10] * 9, other_mib=60)) == ((0, 2), (2, 7), (7, 9))


def test_the_context_that_is_wanted_weighs_too() -> None:
    windows = [WHOLE_CONTEXT] * 2 + [16] * 6
    sizes = model([10] * 8, kv_per_token=1024, windows=windows)
    assert layer_spans(plan_of([500, 500]), sizes) == ((0, 4), (4, 8))
    wanted = ContextSettings(max_tokens=100_000)
    assert layer_spans(plan_of([500, 500], context=wanted), sizes) == ((0, 1), (1, 8))


def test_what_does_not_fit_is_said_with_the_sum() -> None:
    sizes = model([1024] * 8, other_mib=2048, kv_per_token=131_072)
    assert shortage(plan_of([6144, 6144]), sizes) == ""
    context = ContextSettings(max_tokens=8192)
    assert shortage(plan_of([6144, 9216], context=context), sizes).endswith("lower engine.max_context")
    assert shortage(plan_of([9216, 9216], context=context), sizes) == ""
    uneven = shortage(plan_of([9216, 9216], (7, 1), context), sizes)
    assert "layers 0 to 6 need 15.00 GiB (8.00 GiB of weights and 7.00 GiB for 8192 tokens of context)" in uneven
    assert "0000000000000000 can give 9.00 GiB" in uneven
    assert "It needs 18.00 GiB in all, the nodes can give 18.00 GiB: share the layers otherwise" in uneven
    assert "add a node" in shortage(plan_of([4096, 4096]), sizes)
    assert shortage(plan_of([9216, 9216], context=ContextSettings(8192, kv_bits=4)), sizes) == ""
    short = msgspec.structs.replace(sizes, max_context_tokens=1024)
    assert shortage(plan_of([6144, 6144], context=context), short) == "", "the model itself allows no more"


@pytest.mark.parametrize(
    ("split", "memory", "layers", "words"),
    [
        ("memory", [], 8, "no node hosts a rank"),
        ("fastest", [1], 8, "allowed are"),
        ((4, 5), [1, 1], 8, "sum 8"),
        ((8,), [1, 1], 8, "2 counts"),
        ((8, 0), [1, 1], 8, "at least 1"),
    ],
)
def test_an_impossible_split_says_why(
    split: str | tuple[int, ...], memory: list[int], layers: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        layer_spans(plan_of(memory, split), model([1] * layers))
