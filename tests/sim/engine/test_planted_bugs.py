"""The joint simulation is worth something only if it finds what is wrong in the engine's core."""

from __future__ import annotations

import pytest

from tests.sim.engine.planted import PLANTED
from tests.sim.engine.scenarios import run
from tests.sim.invariants import InvariantBrokenError
from tests.sim.planted import planted

WITHIN = 30
"""Scenarios in which each bug must show."""


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_bug_planted_in_the_engine_is_found_with_its_story(name: str) -> None:
    _, invariant = PLANTED[name]
    for seed in range(WITHIN):
        story = _broken(name, seed)
        if f"{invariant}: " in story.partition("\n")[0]:
            break
    else:
        pytest.fail(f"{name} was not found in {WITHIN} scenarios")
    assert f"seed {seed}" in story, "a story names its seed"
    assert "starts, incarnation" in story, "a story begins at the beginning"


def _broken(name: str, seed: int) -> str:
    try:
        with planted(name):
            run(seed)
    except InvariantBrokenError as error:
        return str(error)
    return ""
