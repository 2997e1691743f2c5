"""What one rank knows of itself, and how it tells that to every node. Decides nothing: `rank.py` does."""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_messages import BeginRequest, RankPhase, RankStatus
from exod.core.engine.group_history import GroupLife
from exod.core.engine.held_requests import HeldRequest, HeldRequests
from exod.core.engine.layer_split import DoesNotFitError, layer_spans, shortage
from exod.core.engine.rank_commands import ModelFacts, RankCommand, Report, StopSearch
from exod.core.engine.rank_reports import Alarm, Download, Reporter
from exod.core.engine.sync_watch import SyncWatch
from exod.core.engine.worker_life import WorkerLife
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Heartbeat, Hello, LinkHealth, Load, Loaded, SyncSettings


class RankState:
    """`ring_key` is what the ranks of the cluster prove themselves to each other with when they connect."""

    def __init__(self, me: NodeId, incarnation: int, sync: SyncSettings, ring_key: bytes = b"") -> None:
        self._me = me
        self._incarnation = incarnation
        self._sync = sync
        self._ring_key = ring_key
        self._plan: MeshPlan | None = None
        self._suspended = ""
        self._facts: ModelFacts | None = None
        self._resolving = ""
        self._download = Download()
        self._failure: tuple[str, str] | None = None
        self._alarm = Alarm()
        self._retry_at: float | None = None
        # the worker
        self._worker = WorkerLife()
        self._asked_load: Load | None = None
        self._loaded: Loaded | None = None
        self._forgave = False
        self._keeps_until: float | None = None
        """Until then the worker's layers are kept although the plan wants more of them."""
        # the group
        self._group = GroupLife()
        self._plan_reason = ""
        """Why the present plan came."""
        self._phase = RankPhase.OFF
        self._attempt = 0
        self._forming = False
        self._trouble = ""
        self._idle_since: float | None = None
        self._barren = 0
        """Groups in a row that hung before a single token came of them."""
        self._to_retell = False
        self._link_health: LinkHealth | None = None
        self._requests = HeldRequests()
        self._reporter = Reporter()
        self._sync_watch = SyncWatch(sync.watchdog_s)
        self.progress = (0, 0)

    # --- what others read -----------------------------------------------------------------------------------

    @property
    def phase(self) -> RankPhase:
        return self._phase

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    @property
    def heartbeat(self) -> Heartbeat | None:
        return self._worker.heartbeat

    @property
    def hello(self) -> Hello | None:
        return self._worker.hello

    @property
    def gpu_wait_violations(self) -> int:
        """Fast steps that waited beyond a GPU's watchdog, as far as is known, in this daemon's life."""
        return self._sync_watch.violations

    @property
    def restarts(self) -> int:
        return self._worker.restarts

    @property
    def resolving(self) -> str:
        """The model that is being found or downloaded; empty where none is."""
        return self._resolving

    @property
    def failure(self) -> tuple[str, str] | None:
        return self._failure

    @property
    def active(self) -> dict[str, HeldRequest]:
        """By generation id (see `engine_messages.generation_id`)."""
        return self._requests.active

    @property
    def begun_order(self) -> int:
        return self._requests.begun_order

    def begun(self) -> BeginRequest | None:
        """The newest request under way, with what is known of its answer: for a coordinator that lacks it."""
        held = self._requests.newest()
        return msgspec.structs.replace(held.begin, tokens=tuple(held.tokens[:-1])) if held is not None else None

    def model_progress(self, model: str, done_bytes: int, total_bytes: int) -> list[RankCommand]:
        """So much of a model is downloaded. Others hear of it with the next report, in a second at most."""
        if model != self._resolving:
            return []
        return [*self._download.progress(model, done_bytes, total_bytes)]

    def _stop_search(self) -> list[RankCommand]:
        wanted, self._resolving = self._resolving, ""
        self._download.forget()
        return [StopSearch()] if wanted else []

    def _is_present(self, plan_hash: str, attempt: int) -> bool:
        return (
            self._plan is not None
            and not self._suspended
            and plan_hash == self._plan.hash
            and attempt == self._attempt
        )

    def _wanted(self) -> Load | None:
        """What the plan asks this rank's worker to hold; None while the model is unknown. ValueError as `span`."""
        span, plan, facts = self.span(), self._plan, self._facts
        if span is None or plan is None or facts is None:
            return None
        if text := shortage(plan, facts.sizes):
            raise DoesNotFitError(text)
        context = plan.context
        return Load(facts.folder, *span, self._sync, context.max_tokens, context.kv_bits, context.kv_group_size)

    def span(self) -> tuple[int, int] | None:
        """The layers that the plan gives this rank; None while unknown. ValueError where they cannot be shared."""
        plan, facts = self._plan, self._facts
        if plan is None or facts is None or self._me not in plan.ring:
            return None
        return layer_spans(plan, facts.sizes)[plan.ring.index(self._me)]

    # --- reports --------------------------------------------------------------------------------------------

    def _set_phase(self, phase: RankPhase, now: float) -> list[RankCommand]:
        """The one way into a phase that others see at once."""
        changed = self._phase is not phase
        self._phase = phase
        return self._report(now, changed)

    def _report(self, now: float, changed: bool = False) -> list[RankCommand]:
        """This rank's status, when something in it changed or the last one is old."""
        settled = self._phase in (RankPhase.OFF, RankPhase.FORMED, RankPhase.FAILED) and not self.active
        status = self._reporter.due(self._status(), settled, changed, now)
        return [Report(status)] if status is not None else []

    def _waiting_text(self) -> str:
        kept = self._keeps_until is not None
        return "it waits a moment for a node to come back before it loads more layers" if kept else ""

    def _status(self) -> RankStatus:
        plan, beat, hello = self._plan, self._worker.heartbeat, self._worker.hello
        code, text = self._failure or ("", self._suspended or self._waiting_text() or self._trouble)
        try:
            span = self.span()
        except ValueError:
            span = None
        versions = hello.versions if hello is not None else {}
        return RankStatus(
            sender=self._me,
            incarnation=self._incarnation,
            seq=0,
            phase=self._phase,
            plan_hash=plan.hash if plan is not None and not self._suspended else "",
            attempt=self._attempt,
            code=code,
            text=text,
            model=plan.model if plan is not None else "",
            fingerprint=self._loaded.fingerprint if self._loaded is not None else "",
            versions=", ".join(f"{name} {versions[name]}" for name in sorted(versions)),
            layers=span,
            pid=hello.pid if hello is not None else 0,
            restarts=self._worker.restarts,
            begun_order=self._requests.begun_order,
            finished_order=self._requests.finished_order,
            generating=bool(self.active),
            sync_mode=beat.sync_mode if beat is not None else "safe",
            sync_reason=beat.sync_reason if beat is not None else "",
            gpu_waited_s=self._sync_watch.waited_s,
            tokens_per_s=beat.tokens_per_s if beat is not None else 0.0,
            baseline_tokens_per_s=beat.baseline_tokens_per_s if beat is not None else 0.0,
            last_gap_ms=self._group.last_gap_ms,
            download_done=self._download.done_bytes,
            download_total=self._download.total_bytes,
            memory_mib=beat.memory_bytes >> 20 if beat is not None else 0,
        )
