"""The simulator and the small world are worth something only if they find what is wrong: planted bugs are found."""

from __future__ import annotations

from unittest import mock

import pytest

from tests.sim import small_world
from tests.sim.planted import PLANTED, find
from tests.sim.scenarios import run

WITHIN = 80
"""Scenarios in which each bug must show."""


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_bug_is_found_with_its_story(name: str) -> None:
    seed, story = find(name, run, range(WITHIN), f": {PLANTED[name][1]}: ")
    assert story, f"{name} was not found in {WITHIN} scenarios"
    assert f"seed {seed}" in story, "a story names its seed"
    assert "starts, incarnation" in story, "a story begins at the beginning"


def test_the_small_world_finds_an_end_that_does_not_listen() -> None:
    """Who selects by its own word alone agrees on a path that the other end never measured."""
    with (
        mock.patch.object(small_world, "combined", lambda own, theirs: own),
        pytest.raises(small_world.BrokenError, match=r"3: agreed on .*\n  by: "),
    ):
        small_world.search(crashes=1, deaths=0, selections=2)
