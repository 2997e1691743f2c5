"""The share of the fuzzing that every run of the tests does; `make fuzz` does a million inputs."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import Result, attempt
from tests.fuzz.mutate import mutated

SHARE = 600
SEED = 20


@pytest.mark.parametrize("target", [one.name for one in targets.all_targets()])
def test_mutated_inputs_are_errors_of_their_room_and_quick(target: str) -> None:
    weight = next(one.weight for one in targets.all_targets() if one.name == target)
    result: Result = attempt(target, SEED, round(SHARE * weight))
    assert result.findings == []


def test_inputs_can_be_made_again() -> None:
    seeds = (b'{"a":1}', b"abc" * 20)
    first, second = ([mutated(seeds, random) for _ in range(50)] for random in (Random(3), Random(3)))
    assert first == second
    assert len(set(first)) > 40


def test_a_fault_is_found() -> None:
    result = Result("x")
    from tests.fuzz.__main__ import _one

    def broken(data: bytes) -> None:
        data.decode()

    target = targets.Target("x", (b"a",), broken, (ValueError,))
    _one(target, b"\xff", result)
    assert result.findings == []
    _one(targets.Target("x", (b"a",), broken), b"\xff", result)
    assert len(result.findings) == 1
