"""What a rank tells every node of itself: its status, put together and repeated.

Decides when a status is worth sending again; nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.engine.rank.fitness import Fitness
from exod.core.engine.rank.group_history import GroupHistory
from exod.core.engine.rank.held_requests import HeldRequests
from exod.core.engine.rank.hosted_model import HostedModel
from exod.core.engine.rank.rank_phase import PhaseMachine
from exod.core.engine.rank.sync_watch import SyncWatch
from exod.core.engine.rank.worker_life import WorkerLife
from exod.core.engine.rank.worker_load import WorkerLoad
from exod.core.engine.transport.rank_transport import RankTransport
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Heartbeat

REPORT_INTERVAL_S: Final = 1.0
"""A status may be lost with its connection: repeated once a second while something is under way."""

IDLE_REPORT_INTERVAL_S: Final = 5.0
"""Where nothing is: a lost status is made good before a person notices."""

NEWS_AGAIN_S: Final = 0.5
"""News is sent twice: the whole cluster may wait for a status that was lost, a queue for the end of a request."""

_SETTLED: Final = frozenset({RankPhase.OFF, RankPhase.FORMED, RankPhase.FAILED})


class ReportStatus(msgspec.Struct, frozen=True):
    """Command of the rank to its node's core: tell every node, this one included."""

    status: RankStatus


class RankParts(msgspec.Struct, frozen=True):
    """The parts of one rank, each of which owns its own state."""

    model: HostedModel
    worker: WorkerLife
    load: WorkerLoad
    phases: PhaseMachine
    group: GroupHistory
    requests: HeldRequests
    sync_watch: SyncWatch
    fitness: Fitness
    transport: RankTransport


class StatusReports:
    """Numbers the statuses of one life, and spares the network those that say nothing new."""

    def __init__(self, me: NodeId, incarnation: int, parts: RankParts) -> None:
        self._me = me
        self._incarnation = incarnation
        self._parts = parts
        self._seq = 0
        self._last: RankStatus | None = None
        self.due_at = 0.0
        """When the last status is old."""

    def due(
        self, plan: MeshPlan | None, suspended: str, text: str, changed: bool, now: float
    ) -> list[ReportStatus]:
        """The status to send now, if any. `changed`: it must go out whether it says something new or not. `text` is
        why the rank does not run, where no failure and no suspended plan is the reason.
        """
        status = self._status(plan, suspended, text, now)
        news = changed or self._last is None or not _says_the_same(status, self._last)
        if not news and now < self.due_at:
            return []
        self._seq += 1
        self._last = msgspec.structs.replace(status, seq=self._seq)
        settled = status.phase in _SETTLED and not status.generating
        pause_s = IDLE_REPORT_INTERVAL_S if settled else REPORT_INTERVAL_S
        self.due_at = now + (NEWS_AGAIN_S if news else pause_s)
        return [ReportStatus(self._last)]

    def _status(self, plan: MeshPlan | None, suspended: str, text: str, now: float) -> RankStatus:
        parts = self._parts
        heartbeat, hello = parts.worker.heartbeat, parts.worker.hello
        unfit = parts.fitness.failure(now) if plan is not None and self._me in plan.ring else None
        failure = parts.model.shown_failure(now) or unfit or ("", suspended or text or parts.load.warning)
        try:
            span, of_parts = parts.model.span(plan), parts.model.parts(plan)
        except ValueError:
            span, of_parts = None, 1
        versions = hello.versions if hello is not None else {}
        reached = self._reached()
        return RankStatus(
            sender=self._me,
            incarnation=self._incarnation,
            seq=0,
            phase=parts.phases.phase,
            plan_hash=plan.hash if plan is not None and not suspended else "",
            attempt=parts.phases.attempt,
            code=failure[0],
            text=failure[1],
            newly_unfit=parts.fitness.is_new(now),
            model=plan.model if plan is not None else "",
            fingerprint=parts.load.held.fingerprint if parts.load.held is not None else "",
            versions=", ".join(f"{name} {versions[name]}" for name in sorted(versions)),
            layers=span,
            parts=of_parts,
            pid=hello.pid if hello is not None else 0,
            restarts=parts.worker.restarts,
            begun_order=parts.requests.begun_order,
            finished_order=parts.requests.finished_order,
            under_way=parts.requests.under_way,
            ended=parts.requests.ended_orders,
            unanswered=parts.requests.unanswered_orders,
            generating=bool(parts.requests.active),
            progress=parts.requests.progress(heartbeat.positions if heartbeat is not None else ()),
            computing=heartbeat is not None and heartbeat.computing,
            in_step_s=heartbeat.in_step_s if heartbeat is not None else 0.0,
            gave_up=parts.group.gave_up if parts.phases.phase is RankPhase.ABORTED else "",
            sync_mode=reached.sync_mode if reached is not None else "safe",
            sync_reason=reached.sync_reason if reached is not None else "",
            gpu_waited_s=parts.sync_watch.waited_s,
            tokens_per_s=reached.tokens_per_s if reached is not None else 0.0,
            baseline_tokens_per_s=reached.baseline_tokens_per_s if reached is not None else 0.0,
            last_gap_ms=parts.group.last_gap_ms,
            memory_mib=heartbeat.memory_bytes >> 20 if heartbeat is not None else 0,
            recommended_mib=hello.recommended_bytes >> 20 if hello is not None else 0,
            costs=parts.load.costs,
            edges=parts.group.edges,
            wired_mib=parts.load.wired_bytes >> 20,
            download_done=parts.model.download.done_bytes,
            download_total=parts.model.download.total_bytes,
            over_rdma=parts.transport.is_entangled,
            no_rdma=parts.transport.no_rdma,
            proof=parts.transport.proof,
            transport_text=parts.transport.text,
        )

    def _reached(self) -> Heartbeat | None:
        """The process's figures, once it holds the model that is wanted: what it reached with another says nothing
        of this one.
        """
        facts, load = self._parts.model.facts, self._parts.load
        if facts is None or load.held is None or load.asked is None or load.asked.folder != facts.folder:
            return None
        return self._parts.worker.heartbeat


def _says_the_same(one: RankStatus, other: RankStatus) -> bool:
    """Figures that change all the time are left out of the comparison."""
    return _without_figures(one) == _without_figures(other)


def _without_figures(status: RankStatus) -> RankStatus:
    return msgspec.structs.replace(
        status,
        seq=0,
        sync_reason="",
        progress=(),
        in_step_s=0.0,
        tokens_per_s=0.0,
        baseline_tokens_per_s=0.0,
        last_gap_ms=0.0,
        memory_mib=0,
        download_done=0,
    )
