"""Which RDMA device of each rank reaches which other one: what JACCL is told, from plan and topology. Pure.

Decides whether a plan's ranks can use RDMA. Only cables that the plan's edges run over are used: nothing but the
probes of such a path notices that its cable was cut, and that ends the ranks' processes. Raises NotCabledError,
with a text for people, where some pair of ranks has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from exod.core.cluster.jaccl import CabledNode, NotCabledError, hostfile
from exod.model import Edge, Kind, MeshPlan, NodeId
from exoengine.protocol import RdmaSetup

PORT_STEP: Final = 1
"""Ranks meet on the port after that on which rank 0 listens for the ring."""


def setup_of(plan: MeshPlan, nodes: Sequence[CabledNode]) -> RdmaSetup:
    """`nodes` are the plan's ranks, in its order."""
    rows = [host.rdma for host in hostfile(nodes).hosts]
    devices: dict[tuple[int, int], tuple[str, ...]] = {}
    for i, j in combinations(range(len(plan.ring)), 2):
        edge = _edge_between(plan, plan.ring[i], plan.ring[j])
        for here, there, interface in _ends(plan, edge):
            device, known = f"rdma_{interface}", rows[here][there]
            if device not in ((known,) if isinstance(known, str) else known or ()):
                raise NotCabledError(
                    f"the plan's edge between {plan.ring[i]} and {plan.ring[j]} runs over {interface}, which is no "
                    "end of a Thunderbolt cable between them: RDMA is used where a cut would be noticed"
                )
            devices[here, there] = (device,)
    address = _meeting_address(plan) or nodes[0].address
    return _setup(plan, devices, address, stand_in=False)


def stand_in_setup(plan: MeshPlan) -> RdmaSetup:
    """For tests: every edge that the configuration calls Thunderbolt counts as a cable with RDMA."""
    devices: dict[tuple[int, int], tuple[str, ...]] = {}
    for i, j in combinations(range(len(plan.ring)), 2):
        edge = _edge_between(plan, plan.ring[i], plan.ring[j])
        if edge.kind is not Kind.THUNDERBOLT:
            raise NotCabledError(
                f"the plan's edge between {plan.ring[i]} and {plan.ring[j]} runs over {edge.source_interface}, "
                "which is no Thunderbolt"
            )
        for here, there, interface in _ends(plan, edge):
            devices[here, there] = (f"rdma_{interface}",)
    return _setup(plan, devices, _meeting_address(plan) or plan.edges[0].source_address, stand_in=True)


def _edge_between(plan: MeshPlan, one: NodeId, other: NodeId) -> Edge:
    for edge in plan.edges:
        if {edge.source, edge.target} == {one, other}:
            return edge
    raise NotCabledError(f"no edge of the plan joins {one} and {other}: JACCL needs a cable between each two ranks")


def _ends(plan: MeshPlan, edge: Edge) -> tuple[tuple[int, int, str], tuple[int, int, str]]:
    """Of each end its rank, the other's, and its interface."""
    source, target = plan.ring.index(edge.source), plan.ring.index(edge.target)
    return (source, target, edge.source_interface), (target, source, edge.target_interface)


def _meeting_address(plan: MeshPlan) -> str:
    """Rank 0's address on the edge of two ranks; empty with more, which need one that all of them reach."""
    if len(plan.ring) > 2:
        return ""
    edge = plan.edges[0]
    return edge.source_address if edge.source == plan.ring[0] else edge.target_address


def _setup(
    plan: MeshPlan, devices: dict[tuple[int, int], tuple[str, ...]], address: str, stand_in: bool
) -> RdmaSetup:
    size = len(plan.ring)
    port = next(edge.target_port for edge in plan.edges if edge.target == plan.ring[0])
    return RdmaSetup(
        devices=tuple(tuple(devices.get((i, j), ()) for j in range(size)) for i in range(size)),
        coordinator=f"{address}:{port + PORT_STEP}",
        stand_in=stand_in,
    )
