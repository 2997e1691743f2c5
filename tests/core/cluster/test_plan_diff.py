"""Why a plan changed, as text: who slept, who is back."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.cluster.plan_diff import Absences, describe_change
from exod.model import Member, MeshPlan, NodeId
from tests.core.engine.engine_samples import A, B, C, a_plan


def plan_of(*members: NodeId, number: int = 1) -> MeshPlan:
    found = tuple(Member(node, 1) for node in members)
    return msgspec.structs.replace(a_plan(A, number=number), members=found)


@pytest.mark.parametrize(
    ("seconds", "later_s", "told"),
    [(60.0, 4.0, "60 s"), (60.0, 6.0, None), (2.0, 0.1, None), (600.0, 0.1, "10 min"), (28_800.0, 0.1, "8 h")],
)
def test_what_breaks_soon_after_a_long_stop_is_its_consequence(
    seconds: float, later_s: float, told: str | None
) -> None:
    absences = Absences()
    absences.stopped(seconds, 10.0)
    expected = None if told is None else f"studio2 slept or was stopped for {told}"
    assert absences.own("studio2", 10.0 + later_s) == expected


def test_a_host_that_wakes_up_is_given_time_for_its_network_and_one_plan_ends_it() -> None:
    absences = Absences()
    absences.slept(60.0, 10.0)
    assert absences.own("studio2", 39.0)
    absences.committed(plan_of(A, B), plan_of(A, B, number=2), 39.0)
    assert absences.own("studio2", 39.1) is None


def test_who_comes_back_in_the_same_life_is_back_and_who_does_not_has_joined() -> None:
    absences = Absences()
    both, alone = plan_of(A, B), plan_of(A, number=2)
    absences.committed(None, both, 0.0)
    absences.committed(both, alone, 10.0)
    again, other = plan_of(A, B, number=3), plan_of(A, C, number=3)
    names = {B: "studio2", C: "studio3"}
    assert describe_change(alone, again, names, absences.back(again, 67.0)) == "studio2 is back after 57 s"
    assert describe_change(alone, again, names, absences.back(again, 10.2)) == "studio2 joined"
    assert describe_change(alone, other, names, absences.back(other, 67.0)) == "studio3 joined"
    absences.committed(alone, again, 67.0)
    assert absences.back(again, 99.0) == {}
