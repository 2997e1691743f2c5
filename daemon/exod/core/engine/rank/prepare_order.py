"""This rank's place in the plan's ring, as its worker needs to know it. Decides nothing."""

from __future__ import annotations

from exod.model import MeshPlan, NodeId
from exoengine.protocol import Prepare


def prepare_order(plan: MeshPlan, me: NodeId, attempt: int, ring_key: bytes) -> Prepare:
    """`me` is a node of the plan's ring."""
    listeners = {edge.target: f"{edge.target_address}:{edge.target_port}" for edge in plan.edges}
    outward = next((edge for edge in plan.edges if edge.source == me), None)
    inward = next((edge for edge in plan.edges if edge.target == me), None)
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
        key=ring_key,
    )
