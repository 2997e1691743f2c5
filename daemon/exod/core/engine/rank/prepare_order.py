"""This rank's place in the plan's ring, as its worker needs to know it. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from exod.core.engine.engine_events import NodeCable
from exod.model import Edge, MeshPlan, NodeId
from exoengine.protocol import CrossConnection, FurtherCable, Prepare, RdmaSetup


def prepare_order(
    plan: MeshPlan, me: NodeId, attempt: int, ring_key: bytes, cables: Sequence[NodeCable] = (),
    rdma: RdmaSetup | None = None,
) -> Prepare:  # fmt: skip
    """`me` is a node of the plan's ring; of `cables` those to other plans' neighbours are left out."""
    around, across = plan.edges[: len(plan.ring)], plan.edges[len(plan.ring) :]
    listeners = {edge.target: f"{edge.target_address}:{edge.target_port}" for edge in around}
    outward = next((edge for edge in around if edge.source == me), None)
    inward = next((edge for edge in around if edge.target == me), None)
    addresses = {edge.source_address for edge in plan.edges} | {edge.target_address for edge in plan.edges}
    return Prepare(
        plan_hash=plan.hash,
        attempt=attempt,
        rank=plan.ring.index(me),
        size=len(plan.ring),
        hosts=tuple(listeners[node] for node in plan.ring) if plan.edges else (),
        addresses=tuple(sorted(addresses)),
        connect_from=outward.source_address if outward is not None else "",
        accept_from=inward.source_address if inward is not None else "",
        connect_interface=outward.source_interface if outward is not None else "",
        listen_interface=inward.target_interface if inward is not None else "",
        across=tuple(_across(edge, plan, me) for edge in across if me in (edge.source, edge.target)),
        cables=tuple(
            FurtherCable(plan.ring.index(one.peer), one.interface, one.local, one.remote)
            for one in cables
            if one.peer in plan.ring
        ),
        key=ring_key,
        rdma=rdma,
    )


def _across(edge: Edge, plan: MeshPlan, me: NodeId) -> CrossConnection:
    connects = edge.source == me
    return CrossConnection(
        rank=plan.ring.index(edge.target if connects else edge.source),
        connects=connects,
        host=f"{edge.target_address}:{edge.target_port}",
        source=edge.source_address,
        interface=edge.source_interface if connects else edge.target_interface,
    )
