"""What JACCL is told of a plan's ranks, and why there is nothing to tell."""

from __future__ import annotations

from itertools import combinations

import msgspec
import pytest

from exod.core.cluster.jaccl import NotCabledError
from exod.core.engine.transport.rdma_wiring import setup_of, stand_in_setup
from exod.model import Edge, Kind, MeshPlan, NodeId
from tests.core.cluster.test_jaccl import cabled
from tests.core.engine.engine_samples import A, B, C, a_plan

D = NodeId(f"{4:016x}")


def over(plan: MeshPlan, interfaces: dict[tuple[int, int], str]) -> MeshPlan:
    """The plan with its edges on these interfaces: (rank, other rank) to the rank's own."""

    def named(edge: Edge) -> Edge:
        ends = plan.ring.index(edge.source), plan.ring.index(edge.target)
        source, target = interfaces[ends], interfaces[ends[::-1]]
        return msgspec.structs.replace(edge, source_interface=source, target_interface=target)

    return msgspec.structs.replace(plan, edges=tuple(map(named, plan.edges)))


def test_two_ranks_meet_on_their_cable() -> None:
    plan = over(a_plan(A, B), {(0, 1): "en2", (1, 0): "en2"})
    setup = setup_of(plan, cabled(2, [(0, 1)]))
    assert setup.devices == (((), ("rdma_en2",)), (("rdma_en2",), ()))
    assert setup.coordinator == "10.0.0.1:52421"
    assert not setup.stand_in


def test_three_ranks_meet_where_all_reach_rank_0() -> None:
    nodes = cabled(3, list(combinations(range(3), 2)))
    plan = over(
        a_plan(A, B, C),
        {(0, 1): "en2", (1, 0): "en2", (0, 2): "en3", (2, 0): "en2", (1, 2): "en3", (2, 1): "en3"},
    )
    setup = setup_of(plan, nodes)
    assert setup.devices == (
        ((), ("rdma_en2",), ("rdma_en3",)),
        (("rdma_en2",), (), ("rdma_en3",)),
        (("rdma_en2",), ("rdma_en3",), ()),
    )
    assert setup.coordinator == f"{nodes[0].address}:52421"


def test_an_edge_beside_the_cable_would_not_notice_its_cut() -> None:
    plan = over(a_plan(A, B), {(0, 1): "en0", (1, 0): "en0"})
    with pytest.raises(NotCabledError, match="runs over en0, which is no end of a Thunderbolt cable"):
        setup_of(plan, cabled(2, [(0, 1)]))


def test_of_two_cables_the_one_of_the_edge_is_used() -> None:
    plan = over(a_plan(A, B), {(0, 1): "en3", (1, 0): "en3"})
    setup = setup_of(plan, cabled(2, [(0, 1), (0, 1)]))
    assert setup.devices == (((), ("rdma_en3",)), (("rdma_en3",), ()))


def test_four_ranks_of_a_pipeline_have_no_edge_across() -> None:
    nodes = cabled(4, list(combinations(range(4), 2)))
    plan = over(
        a_plan(A, B, C, D),
        {(0, 1): "en2", (1, 0): "en2", (1, 2): "en3", (2, 1): "en3", (2, 3): "en4", (3, 2): "en4", (3, 0): "en2"}
        | {(0, 3): "en4"},
    )
    with pytest.raises(NotCabledError, match="no edge of the plan joins"):
        setup_of(plan, nodes)


def test_where_no_cable_is_known_the_reason_is_that_of_the_hostfile() -> None:
    with pytest.raises(NotCabledError, match="no Thunderbolt cable is known"):
        setup_of(a_plan(A, B), cabled(2, []))


def test_the_stand_in_takes_what_the_configuration_calls_thunderbolt() -> None:
    setup = stand_in_setup(a_plan(A, B, C))
    assert setup.stand_in
    assert setup.devices[0] == ((), ("rdma_b0",), ("rdma_b0",))
    plan = a_plan(A, B)
    over_wifi = tuple(msgspec.structs.replace(edge, kind=Kind.WIFI) for edge in plan.edges)
    with pytest.raises(NotCabledError, match="which is no Thunderbolt"):
        stand_in_setup(msgspec.structs.replace(plan, edges=over_wifi))
