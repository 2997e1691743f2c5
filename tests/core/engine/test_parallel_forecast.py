"""What is predicted of one node, a pipeline and a tensor group, and what `engine.parallel = "auto"` takes."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from exod.core.engine.auto_parallel import HELD_S, AutoParallel, next_way
from exod.core.engine.engine_events import ChooseParallel, EmitEvent, ModelFacts
from exod.core.engine.engine_messages import RankStatus
from exod.core.engine.parallel_forecast import Forecast, Way, best, choice, forecasts, in_words
from exod.model import MeshPlan, NodeId
from exoengine.model_files.memory_fit import ModelSizes
from exoengine.protocol import EdgeCosts, StepCosts
from tests.core.engine.engine_samples import A, B, C, a_plan, sizes, status

MIB = 1 << 20
LAYER_MIB = 100
LAYERS = 12
TOKEN_S = 0.012
"""Of all layers on one node: a millisecond each."""
CHUNK_S = 0.12


@dataclasses.dataclass(frozen=True)
class Cable:
    sum_s: float


THUNDERBOLT, RDMA = Cable(0.0003), Cable(0.00001)


def model(heads: tuple[int, ...] = (8, 8)) -> ModelSizes:
    plain = sizes(LAYERS, LAYER_MIB * MIB)
    return msgspec.structs.replace(plain, can_shard=True, heads=heads, hidden_size=2048)


def plan(*ring: NodeId, memory_mib: int = 10_000) -> MeshPlan:
    return msgspec.structs.replace(a_plan(*ring), memory_mib=(memory_mib,) * len(ring))


def ranks(*ring: NodeId, cable: Cable = THUNDERBOLT, slow: float = 1.0, tensor: bool = False) -> list[RankStatus]:
    """Each has measured its share of the layers; the last one is `slow` times as slow as the others."""
    count, found = len(ring), []
    for number, node in enumerate(ring):
        factor = (slow if number == count - 1 else 1.0) / count
        each = LAYERS // count
        layers = (0, LAYERS) if tensor else (number * each, (number + 1) * each)
        costs = StepCosts(TOKEN_S * factor, CHUNK_S * factor)
        edges = EdgeCosts(cable.sum_s, cable.sum_s)
        parts = count if tensor else 1
        found.append(status(node, layers=layers, parts=parts, costs=costs, edges=edges))
    return found


def by_way(found: tuple[Forecast, ...]) -> dict[str, Forecast]:
    return {one.way: one for one in found}


def test_a_pipelines_token_goes_through_all_stages_and_over_all_edges() -> None:
    found = by_way(forecasts(plan(A, B), model(), ranks(A, B)))
    assert found["alone"].token_s == pytest.approx(TOKEN_S)
    assert found["pipeline"].token_s == pytest.approx(TOKEN_S + 2 * THUNDERBOLT.sum_s)


def test_a_tensor_groups_ranks_work_at_once_and_add_up_twice_a_layer() -> None:
    found = by_way(forecasts(plan(A, B), model(), ranks(A, B)))
    assert found["tensor"].token_s == pytest.approx(TOKEN_S / 2 + 2 * LAYERS * THUNDERBOLT.sum_s)


def test_a_prompt_flows_through_the_stages_in_chunks() -> None:
    found = by_way(forecasts(plan(A, B), model(), ranks(A, B, cable=RDMA)))
    assert found["alone"].prefill_s == pytest.approx(8 * CHUNK_S)
    assert found["pipeline"].prefill_s == pytest.approx(9 * (CHUNK_S / 2 + RDMA.sum_s), rel=0.01)


def test_the_slowest_rank_and_the_slowest_edge_count() -> None:
    slow = by_way(forecasts(plan(A, B), model(), ranks(A, B, slow=3.0, cable=RDMA)))
    assert slow["tensor"].token_s == pytest.approx(3 * TOKEN_S / 2 + 2 * LAYERS * RDMA.sum_s)
    assert slow["alone"].node == A
    one, other = ranks(A, B, cable=RDMA)
    other = msgspec.structs.replace(other, edges=EdgeCosts(0.04, 0.04))
    assert by_way(forecasts(plan(A, B), model(), [one, other]))["pipeline"].token_s > 2 * 0.04


@pytest.mark.parametrize("tensor", [False, True])
def test_what_is_predicted_does_not_hang_on_the_way_that_measured_it(tensor: bool) -> None:
    found = by_way(forecasts(plan(A, B), model(), ranks(A, B, tensor=tensor)))
    assert found["alone"].token_s == pytest.approx(TOKEN_S)
    assert found["tensor"].token_s == pytest.approx(TOKEN_S / 2 + 2 * LAYERS * THUNDERBOLT.sum_s)


def test_a_message_that_is_larger_than_what_was_measured_takes_longer() -> None:
    edges = EdgeCosts(0.0001, 0.0011)  # a millisecond for 120 KiB
    measured = [msgspec.structs.replace(rank, edges=edges) for rank in ranks(A, B)]
    chunk_s = by_way(forecasts(plan(A, B), model(), measured))["tensor"].prefill_s / 8
    assert chunk_s == pytest.approx(CHUNK_S / 2 + 2 * LAYERS * (0.0001 + (512 - 8) / 120 * 0.001))


def test_nothing_is_predicted_of_one_rank_or_while_one_has_not_measured() -> None:
    assert forecasts(plan(A), model(), ranks(A)) == ()
    silent = msgspec.structs.replace(ranks(A, B)[1], costs=StepCosts())
    assert forecasts(plan(A, B), model(), [ranks(A, B)[0], silent]) == ()
    no_native_group = msgspec.structs.replace(ranks(A, B)[1], edges=EdgeCosts())
    assert forecasts(plan(A, B), model(), [ranks(A, B)[0], no_native_group]) == ()


@pytest.mark.parametrize(
    ("heads", "memory_mib", "way", "reason"),
    [
        ((9, 3), 10_000, "tensor", "its 9 heads cannot be divided by 2"),
        ((8, 8), 700, "alone", "no node can hold all of it"),
        ((8, 8), 500, "pipeline", "does not fit"),
        ((8, 8), 500, "tensor", "can give 0.49 GiB"),
    ],
)
def test_a_way_that_cannot_be_says_why(heads: tuple[int, ...], memory_mib: int, way: str, reason: str) -> None:
    found = forecasts(plan(A, B, memory_mib=memory_mib), model(heads), ranks(A, B))
    assert reason in by_way(found)[way].obstacle


def test_over_a_cable_the_pipeline_goes_on_and_over_rdma_the_tensor_group_is_taken() -> None:
    slow = forecasts(plan(A, B), model(), ranks(A, B, cable=THUNDERBOLT))
    assert choice(slow, "pipeline", chosen_before=False) is None
    fast = forecasts(plan(A, B), model(), ranks(A, B, cable=RDMA))
    assert choice(fast, "pipeline", chosen_before=False) == "tensor"
    assert choice(slow, "tensor", chosen_before=True) is None, "not enough slower to load everything again"
    vpn = forecasts(plan(A, B), model(), ranks(A, B, cable=Cable(0.04)))
    assert choice(vpn, "tensor", chosen_before=True) == "pipeline"


def test_the_best_way_is_the_one_with_the_shortest_request() -> None:
    fast = best(forecasts(plan(A, B), model(), ranks(A, B, cable=RDMA)))
    assert fast is not None
    assert fast.way == "tensor"
    small = best(forecasts(plan(A, B), model(), ranks(A, B, cable=Cable(0.04))))
    assert small is not None
    assert small.way == "alone"


def test_a_cluster_that_is_slower_than_one_node_says_so() -> None:
    found = forecasts(plan(A, B), model(), ranks(A, B, cable=Cable(0.04)))
    text = in_words(found, "tensor", "tensor")
    assert f"{A} alone would be faster (12.0 ms a token instead of 966.0 ms)" in text
    assert 'set engine.nodes = "fewest"' in in_words(found, "pipeline", "auto")
    assert "alone would be faster" not in in_words(
        forecasts(plan(A, B), model(), ranks(A, B, cable=RDMA)), "tensor", "auto"
    )


def test_a_difference_that_a_prediction_may_err_by_is_not_told() -> None:
    """Two nodes once were told to go down to one for 4.1 ms a token instead of 4.1 ms."""
    found = [Forecast("alone", 0.0041, 0.5, node=A), Forecast("pipeline", 0.00414, 0.5)]
    assert "alone would be faster" not in in_words([*found, Forecast("tensor", 0.0041, 0.5)], "pipeline", "auto")


def facts(known: ModelSizes | None = None) -> ModelFacts:
    return ModelFacts("m", "/models/m", known or model())


@pytest.mark.parametrize(
    ("cable", "present", "said"),
    [
        (RDMA, "pipeline", "a tensor group is predicted to be faster, and is taken once nothing is generated"),
        (
            Cable(0.0005),
            "tensor",
            "a pipeline is predicted to be faster, but not by enough to load the layers again",
        ),
        (RDMA, "tensor", "predicted to be faster than a pipeline"),
        (Cable(0.04), "tensor", "a pipeline is predicted to be faster, and is taken"),
    ],
)
def test_what_is_said_is_what_auto_does(cable: Cable, present: Way, said: str) -> None:
    found = forecasts(plan(A, B), model(), ranks(A, B, cable=cable))
    assert said in in_words(found, present, "auto", next_way(found, present, model()))


def test_of_a_small_model_nothing_is_announced() -> None:
    found = forecasts(plan(A, B), model(), ranks(A, B, cable=RDMA))
    small = msgspec.structs.replace(model(), layer_bytes=(1 << 20,) * LAYERS)
    said = in_words(found, "pipeline", "auto", next_way(found, "pipeline", small))
    assert "but not by enough to load the layers again" in said


# --- when it is decided ---------------------------------------------------------------------------------------


def test_a_faster_way_is_chosen_once_for_a_group_and_told() -> None:
    auto, measured = AutoParallel("auto"), ranks(B, A, cable=RDMA)
    commands = auto.consider(plan(B, A), 1, facts(), measured, 0.0)
    assert commands[0] == ChooseParallel("tensor", "m", (A, B))
    assert isinstance(commands[1], EmitEvent)
    assert commands[1].data["way"] == "tensor"
    assert auto.consider(plan(B, A), 1, facts(), measured, 0.0) == []


def test_requests_wait_for_the_plan_that_follows_and_not_for_ever() -> None:
    auto, measured = AutoParallel("auto"), ranks(A, B, cable=RDMA)
    assert not auto.holds(plan(A, B), 10.0)
    auto.consider(plan(A, B), 1, facts(), measured, 10.0)
    assert auto.holds(plan(A, B), 10.1)
    assert not auto.holds(msgspec.structs.replace(plan(A, B), hash="the next"), 10.1)
    assert not auto.holds(plan(A, B), 10.0 + HELD_S)


@pytest.mark.parametrize("wished", ["pipeline", "tensor"])
def test_a_wish_is_left_alone(wished: str) -> None:
    assert AutoParallel(wished).consider(plan(A, B), 1, facts(), ranks(A, B, cable=RDMA), 0.0) == []


def test_a_small_model_stays_as_it_is() -> None:
    small = msgspec.structs.replace(model(), layer_bytes=(1 << 20,) * LAYERS)
    assert AutoParallel("auto").consider(plan(A, B), 1, facts(small), ranks(A, B, cable=RDMA), 0.0) == []


def test_a_group_that_has_measured_nothing_is_looked_at_again() -> None:
    auto, silent = AutoParallel("auto"), [msgspec.structs.replace(one, costs=StepCosts()) for one in ranks(A, B)]
    assert auto.consider(plan(A, B), 1, facts(), silent, 0.0) == []
    assert auto.consider(plan(A, B), 1, facts(), ranks(A, B, cable=RDMA), 0.0) != []


def test_four_ranks_whose_plan_names_no_edge_across_are_predicted_too() -> None:
    four = (A, B, C, NodeId("4".rjust(16, "0")))
    assert by_way(forecasts(plan(*four), model(), ranks(*four, cable=RDMA)))["tensor"].obstacle == ""


def test_three_ranks_are_predicted_alike() -> None:
    found = by_way(forecasts(plan(A, B, C), model((6,)), ranks(A, B, C, cable=RDMA)))
    assert found["tensor"].token_s == pytest.approx(TOKEN_S / 3 + 2 * LAYERS * RDMA.sum_s)
    assert found["tensor"].obstacle == ""


def test_four_ranks_that_do_not_divide_the_heads_are_two_groups_one_after_the_other() -> None:
    four = (A, B, C, NodeId("4".rjust(16, "0")))
    found = by_way(forecasts(plan(*four), model((6, 2)), ranks(*four, cable=RDMA)))
    assert (found["tensor"].obstacle, found["tensor"].stages) == ("", 2)
    assert found["tensor"].token_s == pytest.approx(TOKEN_S / 2 + 2 * LAYERS * RDMA.sum_s + 2 * RDMA.sum_s)
    assert found["tensor"].prefill_s == pytest.approx(
        (CHUNK_S / 4 + LAYERS * RDMA.sum_s + RDMA.sum_s) * (1024 // 128 + 1), rel=0.01
    )
    assert "a pipeline of 2 tensor groups" in in_words(tuple(found.values()), "pipeline", "auto")
