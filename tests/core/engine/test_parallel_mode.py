"""When the ranks are a tensor group, what each of them then holds, and why they cannot be one."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from exod.core.engine.layer_split import layer_spans, shortage
from exod.core.engine.parallel_mode import tensor_parts
from exod.model import MeshPlan, NodeId
from exoengine.model_files.memory_fit import ModelSizes
from tests.core.engine.engine_samples import A, B, C, a_plan, sizes

D = NodeId("4".rjust(16, "0"))
MIB = 1 << 20


def wished(plan: MeshPlan, parallel: str = "tensor", memory_mib: int = 1) -> MeshPlan:
    return msgspec.structs.replace(plan, parallel=parallel, memory_mib=(memory_mib,) * len(plan.ring))


def divisible(layers: int = 12, layer_mib: int = 0, heads: tuple[int, ...] = (8, 4)) -> ModelSizes:
    return msgspec.structs.replace(sizes(layers, layer_mib * MIB), can_shard=True, heads=heads)


@pytest.mark.parametrize("parallel", ["auto", "pipeline"])
def test_without_the_wish_it_is_a_pipeline(parallel: str) -> None:
    assert tensor_parts(wished(a_plan(A, B), parallel), divisible()) == 1


def test_every_rank_has_a_part_of_every_layer() -> None:
    plan = wished(a_plan(A, B))
    assert tensor_parts(plan, divisible()) == 2
    assert layer_spans(plan, divisible()) == ((0, 12), (0, 12))


def test_one_rank_alone_has_all() -> None:
    assert tensor_parts(wished(a_plan(A)), divisible()) == 1


@pytest.mark.parametrize(
    ("plan", "model", "reason"),
    [
        (a_plan(A, B), sizes(), "cannot divide the layers of m"),
        (a_plan(A, B), divisible(heads=(9, 3)), "its 9 heads cannot be divided by 2"),
        (a_plan(A, B, C, D), divisible(), "there is no path between"),
    ],
)
def test_what_cannot_be_is_said_with_the_cure(plan: MeshPlan, model: ModelSizes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        layer_spans(wished(plan), model)
    assert 'set it to "auto" or "pipeline"' in str(refused.value)


def test_each_rank_needs_memory_for_its_part_alone() -> None:
    model = divisible(12, layer_mib=10)
    assert shortage(wished(a_plan(A, B), memory_mib=60), model) == ""
    text = shortage(wished(a_plan(A, B), memory_mib=59), model)
    assert "a part of 2 of layers 0 to 11 needs 0.06 GiB" in text


def test_three_ranks_are_a_full_mesh_by_their_ring() -> None:
    plan = a_plan(A, B, C)
    pairs = {frozenset((edge.source, edge.target)) for edge in plan.edges}
    assert pairs == {frozenset(pair) for pair in itertools.combinations((A, B, C), 2)}
    assert tensor_parts(wished(plan), divisible(heads=(6, 3))) == 3


def a_full_mesh(*ring: NodeId) -> MeshPlan:
    plan = a_plan(*ring)
    across = [
        msgspec.structs.replace(plan.edges[0], source=one, target=other)
        for one, other in itertools.combinations(ring, 2)
        if not any({edge.source, edge.target} == {one, other} for edge in plan.edges)
    ]
    return msgspec.structs.replace(plan, edges=(*plan.edges, *across))


@pytest.mark.parametrize(
    ("heads", "parts", "spans"),
    [
        ((8, 4), 4, ((0, 12),) * 4),
        ((6, 2), 2, ((0, 6), (0, 6), (6, 12), (6, 12))),
    ],
)
def test_ranks_that_do_not_divide_the_heads_are_groups_one_after_the_other(
    heads: tuple[int, ...], parts: int, spans: tuple[tuple[int, int], ...]
) -> None:
    plan = wished(a_full_mesh(A, B, C, D))
    assert tensor_parts(plan, divisible(heads=heads)) == parts
    assert layer_spans(plan, divisible(heads=heads)) == spans


def test_a_stage_holds_what_its_smallest_rank_can_on_each() -> None:
    plan = wished(a_full_mesh(A, B, C, D))
    plan = msgspec.structs.replace(plan, split="memory", memory_mib=(900, 300, 600, 600))
    spans = layer_spans(plan, divisible(12, layer_mib=10, heads=(6, 2)))
    assert spans == ((0, 4), (0, 4), (4, 12), (4, 12))
    assert shortage(plan, divisible(12, layer_mib=10, heads=(6, 2))) == ""


def test_a_split_by_hand_counts_the_stages() -> None:
    plan = msgspec.structs.replace(wished(a_full_mesh(A, B, C, D)), split=(5, 7))
    assert layer_spans(plan, divisible(heads=(6, 2))) == ((0, 5), (0, 5), (5, 12), (5, 12))
