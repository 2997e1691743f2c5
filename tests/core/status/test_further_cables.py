"""Which cables count beside the plan's edge, as one node sees them."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.engine_events import NodeCable
from exod.core.engine.rank.prepare_order import prepare_order
from exod.core.status.further_cables import further_cables
from exod.core.status.view import MeshView, NodeView, PathView
from exod.model import Edge, Kind, MeshPlan, MeshState, PathId, PathState
from exoengine.protocol import FurtherCable
from tests.core.engine.engine_samples import a_plan
from tests.core.status.test_health import ME, PEER, given, path

EDGE = path("bridge0", Kind.THUNDERBOLT, selected=True)
SECOND = path("bridge1", Kind.THUNDERBOLT, local="10.1.0.1", remote="10.1.0.2")
THIRD = path("bridge2", Kind.THUNDERBOLT, local="10.2.0.1", remote="10.2.0.2")


def plan() -> MeshPlan:
    def edge(source: int, target: int) -> Edge:
        low, high = sorted((source, target))
        ids = {1: ME.id, 2: PEER.id}
        name = PathId(f"10.0.0.{low}-10.0.0.{high}")
        ends = ("bridge0", f"10.0.0.{source}", "bridge0", f"10.0.0.{target}")
        return Edge(ids[source], ids[target], name, *ends, 52420, Kind.THUNDERBOLT)

    return msgspec.structs.replace(a_plan(ME.id, PEER.id), edges=(edge(1, 2), edge(2, 1)))


def view(*paths: PathView, suspended: str | None = None) -> NodeView:
    mesh = MeshView(MeshState.AGREED, 1, ME.id, plan(), suspended, (), None)
    return given(EDGE, *paths, mesh=mesh).view


def test_a_second_cable_between_the_same_two_macs_counts() -> None:
    assert further_cables(view(SECOND, THIRD)) == (
        NodeCable(PEER.id, "bridge1", "10.1.0.1", "10.1.0.2"),
        NodeCable(PEER.id, "bridge2", "10.2.0.1", "10.2.0.2"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"state": PathState.DEGRADED},
        {"state": PathState.DEAD},
        {"kind": Kind.ETHERNET},
        {"in_band": False},
        {"eligible": False},
        {"routed": True},
        {"interface": "bridge0"},
        {"remote": "10.0.0.2"},
    ],
    ids=str,
)
def test_what_is_no_cable_of_its_own_or_not_as_good_does_not_count(changes: dict[str, object]) -> None:
    assert further_cables(view(msgspec.structs.replace(SECOND, **changes))) == ()


def test_two_paths_over_one_port_are_one_cable() -> None:
    alias = msgspec.structs.replace(SECOND, id=PathId("other"), local="10.3.0.1", remote="10.3.0.2")
    assert len(further_cables(view(SECOND, alias))) == 1


def test_a_suspended_plan_has_none() -> None:
    assert further_cables(view(SECOND, suspended="a node is away")) == ()


def test_a_worker_is_told_of_the_cables_to_its_plans_ranks() -> None:
    cable = NodeCable(PEER.id, "bridge1", "10.1.0.1", "10.1.0.2")
    order = prepare_order(plan(), ME.id, 1, b"", [cable])
    assert order.cables == (FurtherCable(1, "bridge1", "10.1.0.1", "10.1.0.2"),)
    assert prepare_order(a_plan(ME.id), ME.id, 1, b"", [cable]).cables == ()
