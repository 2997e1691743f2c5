"""What changed between two plans, in one line for people and for the event log.

Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from exod.model import MeshPlan, NodeId

FIRST_PLAN = "first plan"


def as_seen_here(reason: str, before: MeshPlan | None, after: MeshPlan, names: Mapping[NodeId, str]) -> str:
    """The coordinator's reason; the first plan of a restarted coordinator is told as what it changes here."""
    return describe_change(before, after, names) if reason == FIRST_PLAN else reason


def describe_change(before: MeshPlan | None, after: MeshPlan, names: Mapping[NodeId, str]) -> str:
    if before is None:
        return FIRST_PLAN
    old = {member.id: member.incarnation for member in before.members}
    new = {member.id: member.incarnation for member in after.members}
    parts = [f"{_name(one, names)} joined" for one in new if one not in old]
    parts += [f"{_name(one, names)} left" for one in old if one not in new]
    parts += [f"{_name(one, names)} started again" for one in new if one in old and old[one] != new[one]]
    if not parts:
        parts = _moved_edges(before, after, names)
    if not parts:
        parts = _moved_ports(before, after, names)
    if not parts and before.ring != after.ring:
        parts = ["another ring order"]
    return ", ".join(parts) or "the model, how it is shared or a node's share changed"


def _moved_edges(before: MeshPlan, after: MeshPlan, names: Mapping[NodeId, str]) -> list[str]:
    old = {frozenset((edge.source, edge.target)): edge.path for edge in before.edges}
    moved = {}
    for edge in after.edges:
        pair = frozenset((edge.source, edge.target))
        if pair in old and old[pair] != edge.path and pair not in moved:
            low, high = sorted((edge.source, edge.target))
            moved[pair] = f"{_name(low, names)}–{_name(high, names)} moved to {edge.source_interface} ({edge.kind})"
    return list(moved.values())


def _moved_ports(before: MeshPlan, after: MeshPlan, names: Mapping[NodeId, str]) -> list[str]:
    old = {edge.target: edge.target_port for edge in before.edges}
    return [
        f"{_name(edge.target, names)} moved its ring to port {edge.target_port}"
        for edge in after.edges
        if old.get(edge.target, edge.target_port) != edge.target_port
    ]


def _name(node: NodeId, names: Mapping[NodeId, str]) -> str:
    return names.get(node, node)
