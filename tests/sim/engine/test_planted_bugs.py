"""The joint simulation is worth something only if it finds what is wrong in the engine's core."""

from __future__ import annotations

import pytest

from tests.sim.engine.planted import PLANTED
from tests.sim.engine.scenarios import run
from tests.sim.planted import find

WITHIN = 30
"""Scenarios in which each bug must show."""


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_bug_planted_in_the_engine_is_found_with_its_story(name: str) -> None:
    seed, story = find(name, run, range(WITHIN), f"{PLANTED[name][1]}: ")
    assert story, f"{name} was not found in {WITHIN} scenarios"
    assert f"seed {seed}" in story, "a story names its seed"
    assert "starts, incarnation" in story, "a story begins at the beginning"
