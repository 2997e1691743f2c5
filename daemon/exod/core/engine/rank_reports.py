"""What a rank says, put into form: its status to every node, its alert to people, the order to its worker.

Decides when a status is worth sending again, and that an alert is raised and cleared once.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.engine.engine_messages import RankStatus
from exod.core.engine.rank_commands import Story
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Prepare

REPORT_INTERVAL_S: Final = 1.0
"""A status may be lost with its connection: repeated once a second while something is under way."""

IDLE_REPORT_INTERVAL_S: Final = 5.0

NEWS_AGAIN_S: Final = 0.5
"""News is said twice: the whole cluster may wait for a status that was lost, a queue for the end of a request."""


class Reporter:
    """Numbers the statuses of one life, and spares the network those that say nothing new."""

    def __init__(self) -> None:
        self._seq = 0
        self._last: RankStatus | None = None
        self.due_at = 0.0
        """When the last status is old."""

    def due(self, status: RankStatus, settled: bool, changed: bool, now: float) -> RankStatus | None:
        """The status to send now, if any. `changed`: it must go out whether it says something new or not."""
        if self._last is not None and not changed and now < self.due_at and _says_the_same(status, self._last):
            return None
        news = changed or self._last is None or not _says_the_same(status, self._last)
        self._seq += 1
        self._last = msgspec.structs.replace(status, seq=self._seq)
        pause_s = IDLE_REPORT_INTERVAL_S if settled else REPORT_INTERVAL_S
        self.due_at = now + (NEWS_AGAIN_S if news else pause_s)
        return self._last


def _says_the_same(one: RankStatus, other: RankStatus) -> bool:
    """But for figures that move all the time."""
    return _without_figures(one) == _without_figures(other)


def _without_figures(status: RankStatus) -> RankStatus:
    return msgspec.structs.replace(
        status,
        seq=0,
        sync_reason="",
        tokens_per_s=0.0,
        baseline_tokens_per_s=0.0,
        last_gap_ms=0.0,
        memory_mib=0,
        download_done=0,
    )


class Download:
    """How much of a model is here while it is downloaded. Its events: the start, each tenth of the way, the end."""

    def __init__(self) -> None:
        self.done_bytes = self.total_bytes = 0
        self._tenth = -1

    def progress(self, model: str, done_bytes: int, total_bytes: int) -> list[Story]:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        tenth = 10 * done_bytes // total_bytes if total_bytes else 0
        if tenth <= self._tenth:
            return []
        self._tenth = tenth
        return [self._story("engine.downloading", model)]

    def ended(self, model: str) -> list[Story]:
        """All of it is here. Silent where nothing had to be downloaded."""
        stories = [self._story("engine.downloaded", model)] if self.total_bytes else []
        self.forget()
        return stories

    def forget(self) -> None:
        self.done_bytes = self.total_bytes = 0
        self._tenth = -1

    def _story(self, kind: str, model: str) -> Story:
        return Story(kind, {"model": model, "done_bytes": self.done_bytes, "total_bytes": self.total_bytes})


class Alarm:
    """At most one alert: why there can be no rank here."""

    def __init__(self) -> None:
        self._code = ""

    def raised(self, code: str, text: str) -> list[Story]:
        """Told once, however often it is tried again."""
        if self._code == code:
            return []
        stories = self.cleared()
        self._code = code
        return [*stories, Story("alert.raised", {"code": code, "severity": "error", "text": text})]

    def cleared(self) -> list[Story]:
        if not self._code:
            return []
        code, self._code = self._code, ""
        return [Story("alert.cleared", {"code": code})]


def prepare_order(plan: MeshPlan, me: NodeId, attempt: int, ring_key: bytes) -> Prepare:
    """The rank's place in the plan's ring, as its worker needs to know it."""
    listeners = {edge.target: f"{edge.target_address}:{edge.target_port}" for edge in plan.edges}
    own = [edge.source_address for edge in plan.edges if edge.source == me]
    addresses = {edge.source_address for edge in plan.edges} | {edge.target_address for edge in plan.edges}
    return Prepare(
        plan_hash=plan.hash,
        attempt=attempt,
        rank=plan.ring.index(me),
        size=len(plan.ring),
        hosts=tuple(listeners[node] for node in plan.ring) if plan.edges else (),
        addresses=tuple(sorted(addresses)),
        connect_from=own[0] if own else "",
        accept_from=next((edge.source_address for edge in plan.edges if edge.target == me), ""),
        key=ring_key,
    )
