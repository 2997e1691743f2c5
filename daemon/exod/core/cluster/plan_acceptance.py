"""A member's own view of a plan: may I say yes to it, and does it still hold?

Pure functions of a plan and of this node's links. Decides nothing about the other members' edges: each end of an
edge checks its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from exod.core.cluster.pair_summary import PairSummary
from exod.core.cluster.ring_order import ring_pairs
from exod.model import Edge, MeshPlan, NodeCard, NodeId, NodeState


def objection(plan: MeshPlan, me: NodeCard, pairs: Mapping[NodeId, PairSummary]) -> str | None:
    """Why this node cannot say yes, as text; None where it can. Members that are no neighbours may be out of its
    sight; only that a newer life of one is known here speaks against the plan.
    """
    near = _neighbours(plan, me.id)
    for member in plan.members:
        if member.id == me.id:
            if member.incarnation != me.incarnation:
                return "it names an earlier incarnation of mine"
            continue
        pair = pairs.get(member.id)
        if pair is None or pair.incarnation == member.incarnation:
            continue
        if member.id in near or pair.incarnation > member.incarnation:
            return f"{pair.card.name} has another incarnation"
    if all(member.id != me.id for member in plan.members):
        return "it does not name me"
    for edge in plan.edges:
        text = _edge_objection(edge, me, pairs)
        if text is not None:
            return text
    return None


def _edge_objection(edge: Edge, me: NodeCard, pairs: Mapping[NodeId, PairSummary]) -> str | None:
    if edge.source == me.id:
        peer, address = edge.target, edge.source_address
    elif edge.target == me.id:
        peer, address = edge.source, edge.target_address
    else:
        return None
    pair = pairs.get(peer)
    if pair is None or not pair.agreed:
        name = peer if pair is None else pair.card.name
        return f"no path to {name} is agreed at {me.name}"
    summary = pair.summary
    if summary.path != edge.path or summary.address != address:
        return f"the path to {pair.card.name} is {summary.interface} ({summary.address}) at {me.name}"
    return None


def find_fault(plan: MeshPlan, me: NodeCard, pairs: Mapping[NodeId, PairSummary]) -> str | None:
    """What broke in the plan in force, as text; None while it can run.

    Only what stops the ring: a rank that said goodbye, a neighbour that is down, and an edge of this node on a path
    that no longer carries. Other ranks may be out of this node's sight and compute all the same. A slow edge runs
    on until the next plan. So does a rank whose daemon started again: processes of ranks outlive their daemons, and
    one that did not closed its connections, which the other ranks notice at once. Its paths are measured anew: they
    are neither dead nor usable until the next plan comes, which names the new life.
    """
    ranks, near = set(plan.ring), _neighbours(plan, me.id)
    reborn = set()
    for member in plan.members:
        pair = pairs.get(member.id)
        if member.id == me.id or member.id not in ranks or pair is None:
            continue
        if pair.left:
            return f"{pair.card.name} left"
        if pair.state is NodeState.DOWN and member.id in near:
            return f"{pair.card.name} is down"
        if pair.incarnation != member.incarnation:
            reborn.add(member.id)
    for edge in plan.edges:
        if me.id not in (edge.source, edge.target):
            continue
        peer = edge.target if edge.source == me.id else edge.source
        pair = pairs.get(peer)
        if pair is not None and peer not in reborn and edge.path not in pair.usable:
            interface = edge.source_interface if edge.source == me.id else edge.target_interface
            what = "fails the ring" if edge.path in pair.unfit else "is dead"
            return f"{interface} to {pair.card.name} {what}"
    return None


def _neighbours(plan: MeshPlan, me: NodeId) -> set[NodeId]:
    """In the ring; empty without a rank."""
    return {one for pair in ring_pairs(plan.ring) if me in pair for one in pair if one != me}


def shares_edge(plan: MeshPlan, one: NodeId, other: NodeId) -> bool:
    """Are the two nodes neighbours in the plan's ring?"""
    return tuple(sorted((one, other))) in ring_pairs(plan.ring)
