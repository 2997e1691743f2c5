"""What a worker is told of its place in the ring: the addresses of its edges, and their interfaces."""

from __future__ import annotations

import msgspec

from exod.core.engine.rank.prepare_order import prepare_order
from exod.model import Edge, Kind, NodeId, path_id
from exoengine.protocol import CrossConnection
from tests.core.engine.engine_samples import A, B, C, a_plan, address


def test_each_rank_is_told_the_interfaces_of_its_own_ends() -> None:
    plan = a_plan(A, B, C)
    named = tuple(
        msgspec.structs.replace(
            edge,
            source_interface=f"out{edge.source[-1]}",
            target_interface=f"in{edge.target[-1]}",
        )
        for edge in plan.edges
    )
    order = prepare_order(msgspec.structs.replace(plan, edges=named), B, 1, b"")
    assert order.connect_from == address(B)
    assert (order.connect_interface, order.listen_interface) == ("out2", "in2")


def test_a_single_rank_has_no_edge_to_bind() -> None:
    order = prepare_order(a_plan(A), A, 1, b"")
    assert (order.connect_interface, order.listen_interface) == ("", "")


def test_a_tensor_groups_rank_is_told_of_the_ranks_across_the_ring() -> None:
    d = NodeId("4".rjust(16, "0"))
    plan = a_plan(A, B, C, d)
    across = Edge(B, d, path_id(address(B), address(d)), "b1", "10.1.0.2", "b2", "10.1.0.4", 52421, Kind.ETHERNET)
    plan = msgspec.structs.replace(plan, edges=(*plan.edges, across))
    connecting, listening = (prepare_order(plan, node, 1, b"") for node in (B, d))
    assert connecting.across == (CrossConnection(3, True, "10.1.0.4:52421", "10.1.0.2", "b1"),)
    assert listening.across == (CrossConnection(1, False, "10.1.0.4:52421", "10.1.0.2", "b2"),)
    assert connecting.hosts[3] == f"{address(d)}:52420"  # around the ring nothing changes
    assert prepare_order(plan, C, 1, b"").across == ()
