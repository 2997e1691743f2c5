"""The groups that this rank's worker stands in, one after the other, and the gaps between them.

A group outlives its plan until the next one is prepared, and it may outlive its daemon. Decides what counts as a
recovery and how long it took: from the moment that a group was lost to a fault, or left at a step's end for another
plan (a move), until the worker stands in the next. Never decides when a group is left.
"""

from __future__ import annotations

import re
from typing import Literal

from exod.core.engine.engine_events import EmitEvent
from exod.model import MeshPlan
from exoengine.protocol import NO_EDGES, Aborted, Formed, Heartbeat, Hello

LossCause = Literal["move", "fault"]


class GroupHistory:
    def __init__(self) -> None:
        self._group: tuple[str, int] | None = None
        """(plan, attempt) of the group that the worker stands in."""
        self._lost: tuple[float, LossCause, str] | None = None
        self._heartbeat_gap_ms = 0.0
        self.edges = NO_EDGES
        """What a sum took over the edges of the newest group."""
        self.last_gap_ms = 0.0
        """Of the newest recovery: between two tokens where one was held up, else between the groups."""
        self.gave_up = ""
        """The code of why the last group was given up by this worker; empty where it was not, or not formed."""

    @property
    def stands(self) -> bool:
        return self._group is not None

    def is_of(self, plan_hash: str, attempt: int) -> bool:
        return self._group == (plan_hash, attempt)

    def found(self, hello: Hello) -> None:
        """What a worker's hello says: it may stand in the group of an earlier daemon's plan."""
        plan_hash = hello.plan_hash
        self._group = (plan_hash, hello.attempt) if hello.formed and plan_hash is not None else None
        self.edges = hello.edge_costs
        self._heartbeat_gap_ms = 0.0

    def formed(self, formed: Formed, now: float) -> list[EmitEvent]:
        """The worker stands in a group. The event says how long the gap was, where there was a group before."""
        self._group, lost, self._lost = (formed.plan_hash, formed.attempt), self._lost, None
        self.edges = formed.edge_costs
        events = [EmitEvent("engine.cables", {"further": formed.cables})] if formed.cables else []
        if lost is None:
            return events
        at, cause, reason = lost
        self.last_gap_ms = gap_ms = round((now - at) * 1e3, 1)
        data: dict[str, object] = {"gap_ms": gap_ms, "step": formed.resumed_step, "attempt": formed.attempt}
        return [*events, EmitEvent("engine.reformed", {**data, "cause": cause, "reason": reason})]

    def left(self, plan_hash: str, reason: str, now: float) -> None:
        """For what this plan asks next. Leaving the group of another plan is a move."""
        if self._group is not None:
            moves = self._group[0] != plan_hash
            self.lost("move" if moves else "fault", reason if moves else "the group is formed anew", now)

    def aborted(self, aborted: Aborted, plan_reason: str, now: float) -> bool:
        """The worker gave an attempt up. Returns whether it stood in that one's group until now."""
        stood = self.is_of(aborted.plan_hash, aborted.attempt)
        self.gave_up = aborted.code if stood else ""
        if stood:
            # Paused: another rank has the next plan already, or a next attempt of this one.
            paused = aborted.code == "paused"
            self.lost("move" if paused else "fault", plan_reason if paused else aborted.text, now)
        return stood

    def lost(self, cause: LossCause, reason: str, now: float) -> None:
        """From here the gap is counted that the next group closes."""
        if self._group is not None and self._lost is None:
            self._lost = (now, cause, reason)
        self._group = None

    def retired(self) -> None:
        """No group follows, or one of another model: no gap is counted, and none of before is told."""
        self._group = self._lost = None
        self.last_gap_ms = 0.0

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.last_gap_ms not in (0.0, self._heartbeat_gap_ms):
            self.last_gap_ms = heartbeat.last_gap_ms
        self._heartbeat_gap_ms = heartbeat.last_gap_ms


def with_nodes(text: str, plan: MeshPlan | None) -> str:
    """A worker's text with its ranks as nodes: people know those by their names."""

    def node(found: re.Match[str]) -> str:
        rank = int(found[1])
        return plan.ring[rank] if plan is not None and rank < len(plan.ring) else found[0]

    return re.sub(r"\brank (\d{1,3})\b", node, text)


def aborted_event(aborted: Aborted) -> EmitEvent:
    return EmitEvent("engine.aborted", {"code": aborted.code, "text": aborted.text, "step": aborted.step})
