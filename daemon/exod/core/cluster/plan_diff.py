"""What changed between two plans, and why, in one line for people and for the event log.

Decides nothing. Times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from exod.core.pair.peer_liveness import DOWN_AFTER_S
from exod.model import MeshPlan, NodeId

FIRST_PLAN = "first plan"

AFTER_A_STOP_S = 5.0
AFTER_A_SLEEP_S = 30.0
"""What a node finds broken for so long after it stood still is a consequence: one that was stopped hears at once
what others did meanwhile; cables and Wi-Fi of a host that wakes up need some seconds."""

SHORTEST_ABSENCE_S = 1.0
"""A figure in whole seconds says nothing of a shorter one."""


class Absences:
    """Who was away: this node, which slept or was stopped, and nodes that a plan left out and another has again."""

    def __init__(self) -> None:
        self._stood_still: tuple[float, float] | None = None
        """(for how long, until when)"""
        self._left_out: dict[NodeId, tuple[int, float]] = {}
        """The incarnation of a node that the plan in force lacks, and since when."""

    def stopped(self, seconds: float, now: float) -> None:
        self._note(seconds, now + AFTER_A_STOP_S)

    def slept(self, seconds: float, now: float) -> None:
        self._note(seconds, now + AFTER_A_SLEEP_S)

    def _note(self, seconds: float, until: float) -> None:
        """Others sit a shorter stop out."""
        if seconds >= DOWN_AFTER_S:
            self._stood_still = (seconds, until)

    def own(self, name: str, now: float) -> str | None:
        """Why this node's first plan since it stood still is a new one; None where that is not why."""
        if self._stood_still is None or now > self._stood_still[1]:
            return None
        return f"{name} slept or was stopped for {_length(self._stood_still[0])}"

    def committed(self, before: MeshPlan | None, after: MeshPlan, now: float) -> None:
        self._stood_still = None
        there = {member.id for member in after.members}
        for member in () if before is None else before.members:
            if member.id not in there:
                self._left_out[member.id] = (member.incarnation, now)
        for node in there:
            self._left_out.pop(node, None)

    def forget(self, node: NodeId) -> None:
        self._left_out.pop(node, None)

    def back(self, plan: MeshPlan, now: float) -> dict[NodeId, float]:
        """Members that are back in the life in which they went, and how long they were away."""
        return {
            member.id: now - since
            for member in plan.members
            for incarnation, since in [self._left_out.get(member.id, (-1, now))]
            if incarnation == member.incarnation and now - since >= SHORTEST_ABSENCE_S
        }


def as_seen_here(reason: str, before: MeshPlan | None, after: MeshPlan, names: Mapping[NodeId, str]) -> str:
    """The coordinator's reason; the first plan of a restarted coordinator is told as what it changes here."""
    return describe_change(before, after, names) if reason == FIRST_PLAN else reason


def describe_change(
    before: MeshPlan | None,
    after: MeshPlan,
    names: Mapping[NodeId, str],
    back: Mapping[NodeId, float] | None = None,
) -> str:
    """`back` is as Absences has it."""
    if before is None:
        return FIRST_PLAN
    away = back or {}
    old = {member.id: member.incarnation for member in before.members}
    new = {member.id: member.incarnation for member in after.members}
    parts = [
        f"{_name(one, names)} " + (f"is back after {_length(away[one])}" if one in away else "joined")
        for one in new
        if one not in old
    ]
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


def _length(seconds: float) -> str:
    """For people: 60 s, 12 min, 8 h."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7_200.0 else f"{seconds / 3_600.0:.0f} h"


def _name(node: NodeId, names: Mapping[NodeId, str]) -> str:
    return names.get(node, node)
