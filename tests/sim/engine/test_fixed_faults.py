"""Nodes that can serve do serve, whatever else stays broken; and a bug that prevents it is found."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from exod.core import engine_core
from exod.core.cluster import joined_members
from exod.core.engine.rank import fitness
from exod.core.probe import ring_fitness
from exod.model import MeshPlan
from tests.sim.engine.fixed_faults import run_fixed
from tests.sim.invariants import InvariantBrokenError

SEEDS = 12
WITHIN = 40
"""Scenarios in which each bug must show."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_requests_are_served_within_a_bound(seed: int) -> None:
    run_fixed(seed)


def _only_probes_count() -> Any:
    """What the ring suffers is forgotten."""
    return mock.patch.object(ring_fitness.RingFitness, "unfit", property(lambda self: False))


def _wait_for_the_ill() -> Any:
    """A node that says that it cannot serve stays in the plan."""
    return mock.patch.object(joined_members, "fit_ranks", lambda willing, model: dict(willing))


def _never_wait() -> Any:
    """A rank that computes is taken for one that hangs."""
    return mock.patch.object(engine_core, "keep_waiting", return_value=[])


def _well_again_unproven() -> Any:
    """A node that could not load says that it is well, and is tried in the ring."""

    def rehearse(self: fitness.Fitness, plan: MeshPlan | None, worker: object, load: object, now: float) -> None:
        if self._is_due(plan, now):
            self.holds_layers()

    return mock.patch.object(fitness.Fitness, "rehearse", rehearse)


@pytest.mark.parametrize(
    ("plant", "invariant"),
    [(_only_probes_count, "E8"), (_wait_for_the_ill, "E8"), (_never_wait, "E8"), (_well_again_unproven, "E9")],
)
def test_a_planted_bug_is_found(plant: Any, invariant: str) -> None:
    for seed in range(WITHIN):
        if f"{invariant}: " in _broken(plant, seed):
            return
    pytest.fail(f"{plant.__name__} was not found in {WITHIN} scenarios")


def _broken(plant: Any, seed: int) -> str:
    """The first line of the story."""
    try:
        with plant():
            run_fixed(seed)
    except InvariantBrokenError as error:
        return str(error).partition("\n")[0]
    return ""
