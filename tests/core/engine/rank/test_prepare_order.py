"""What a worker is told of its place in the ring: the addresses of its edges, and their interfaces."""

from __future__ import annotations

import msgspec

from exod.core.engine.rank.prepare_order import prepare_order
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
