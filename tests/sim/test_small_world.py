"""Two nodes, three paths, two crashes: every order of everything, by the product's own transition functions."""

from __future__ import annotations

import pytest

from tests.sim.small_world import search


@pytest.mark.parametrize(
    ("crashes", "deaths", "selections", "at_least"),
    [(0, 2, 3, 5_000), (2, 1, 1, 30_000), (2, 0, 2, 10_000)],
)
def test_no_reachable_state_breaks_an_invariant(crashes: int, deaths: int, selections: int, at_least: int) -> None:
    assert search(crashes=crashes, deaths=deaths, selections=selections) >= at_least


@pytest.mark.slow
def test_no_reachable_state_of_the_larger_world_breaks_an_invariant() -> None:
    assert search(crashes=2, deaths=1, selections=2) >= 150_000
