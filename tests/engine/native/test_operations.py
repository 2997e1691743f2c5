"""Every operation of the native group, with real processes: what comes out, the same bits on all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.native.ranks import run

DTYPES = (
    "bool_", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16",
    "float32", "float64", "complex64",
)  # fmt: skip
KINDS = ["all_sum", "all_gather", "all_max", "all_min"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_reduce_and_gather_exactly_in_rank_order(module: Path, dtype: str) -> None:
    counts = [1, 1001, 1200 * 1024]  # the last one goes by reduce-scatter, in several blocks
    _check(run(module, 2, "operations", dtype=dtype, counts=counts, kinds=KINDS))
    _check(run(module, 2, "operations", dtype=dtype, counts=[2, 400_000], kinds=["sum_scatter"]))


@pytest.mark.parametrize(("size", "dtype"), [(3, "bfloat16"), (4, "float32"), (4, "int32"), (3, "float16")])
def test_more_ranks_get_the_same_bits(module: Path, size: int, dtype: str) -> None:
    """Sums of floats depend on their order: with three ranks and more this would show."""
    _check(run(module, size, "operations", dtype=dtype, counts=[1, 5, 1001, 700_001], kinds=KINDS))
    _check(run(module, size, "operations", dtype=dtype, counts=[size * 7], kinds=["sum_scatter"]))


def _check(answers: list[dict[str, object]]) -> None:
    assert [answer["wrong"] for answer in answers] == [[]] * len(answers)
    assert [answer["failed"] for answer in answers] == [0] * len(answers)
    assert len({answer["digest"] for answer in answers}) == 1


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "uint8"])
def test_sends_and_receives_go_round_a_ring(module: Path, size: int, dtype: str) -> None:
    answers = run(module, size, "passing", dtype=dtype, counts=[1, 5000, 400_000])
    assert answers == [{"wrong": [], "failed": 0}] * size


def test_what_is_not_contiguous_is_summed_as_it_looks(module: Path) -> None:
    assert run(module, 2, "not_contiguous") == [{"right": True, "failed": 0}] * 2


def test_a_split_group_has_its_members_alone_in_the_order_of_their_keys(module: Path) -> None:
    even, odd = {"apart": [2, 0], "whole": [4], "failed": 0}, {"apart": [3, 1], "whole": [4], "failed": 0}
    assert run(module, 4, "splitting") == [
        {"rank": 1, **even}, {"rank": 1, **odd}, {"rank": 0, **even}, {"rank": 0, **odd},
    ]  # fmt: skip


def test_large_messages_go_over_all_connections_of_a_pair_and_small_ones_over_the_first(module: Path) -> None:
    for answer in run(module, 2, "lanes", lanes=2, mebibytes=16):
        assert (answer["right"], answer["failed"]) == (True, 0)
        (carried,) = answer["carried"]
        assert sum(carried) >= 16 * 1024 * 1024
        assert min(carried) > 1024 * 1024  # neither was left idle


def test_who_waits_for_long_soon_sleeps_and_is_awake_again_where_waits_are_short(module: Path) -> None:
    waiting, _ = run(module, 2, "patience", spin_us=50_000, late_s=0.2, rounds=12)
    assert waiting == [True, False, True]


def test_a_wait_is_counted_where_it_was_in_nanoseconds(module: Path) -> None:
    first, late = run(module, 2, "tallies")
    count, failed, waited_ns, longest_ns, last_ns = first["after"]["recv"]
    assert (count, failed) == (1, 0)
    assert waited_ns == longest_ns == last_ns >= 150_000_000  # rank 1 slept 1 s before it sent
    assert first["before"]["recv"] == [0, 0, 0, 0, 0]
    assert late["after"]["send"][0] == 1
