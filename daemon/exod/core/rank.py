"""The life of this node's own rank: from a committed plan to a worker that stands in the plan's group.

Goal-driven: `_advance` compares what the plan asks for with what the worker has, and takes the next step: find
the model, start the process, load the span, prepare, form. Every wait has a deadline; past it the worker is
killed and replaced, with a pause that doubles and is forgotten when a group was formed. What the worker holds
(weights, KV cache) outlives plans: a new plan with the same span only forms a new group.

Never talks to anyone: commands say what the engine host must do.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.engine_messages import BeginRequest, FormOrder, RankPhase, RankStatus
from exod.core.plan import PlanError, layer_spans
from exod.model import MeshPlan, NodeId
from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
    Cancel,
    Finished,
    Form,
    Formed,
    FromWorker,
    Heartbeat,
    Hello,
    Left,
    LinkHealth,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Prepare,
    Prepared,
    RequestFailed,
    SyncSettings,
    TokenOut,
    ToWorker,
)

START_DEADLINE_S: Final = 60.0
"""Importing MLX and transformers takes a second or two; a cold disk on a busy machine many more."""

LOAD_SILENCE_S: Final = 120.0
"""Loading reports its progress every second or so; a disk that says nothing for two minutes has failed."""

PREPARE_DEADLINE_S: Final = 10.0
FORM_DEADLINE_S: Final = 8.0
"""Below the coordinator's deadlines, so that the process was replaced when the next attempt comes. MLX's init
holds the GIL and its accept has no timeout: only killing the process ends it."""

ABORT_DEADLINE_S: Final = 8.0
HEARTBEAT_SILENCE_S: Final = 8.0
"""A worker's control thread says something every second, except while init holds the GIL (bounded above). A
stopped or wedged process is replaced after this; a busy machine is given several beats."""

RESTART_PAUSE_FIRST_S: Final = 0.2
RESTART_PAUSE_LIMIT_S: Final = 15.0
FAILED_RETRY_S: Final = 60.0
"""A folder that cannot be loaded is looked at again once a minute: people mend it while we run."""

REPORT_INTERVAL_S: Final = 1.0
"""A status may be lost with its connection: repeated once a second while something is under way."""

IDLE_REPORT_INTERVAL_S: Final = 5.0


class ResolveModel(msgspec.Struct, frozen=True):
    """Command: find (or download) this model and read what it is."""

    model: str


class StartWorker(msgspec.Struct, frozen=True):
    pass


class KillWorker(msgspec.Struct, frozen=True):
    text: str


class LeaveWorker(msgspec.Struct, frozen=True):
    """Command: nothing is asked of the worker any more: let it leave, then end."""


class TellWorker(msgspec.Struct, frozen=True):
    message: ToWorker


class Report(msgspec.Struct, frozen=True):
    """Command: tell every node, this one included."""

    status: RankStatus


class Story(msgspec.Struct, frozen=True):
    """Command: an event of the contract."""

    type: str
    data: dict[str, object]


RankCommand = ResolveModel | StartWorker | KillWorker | LeaveWorker | TellWorker | Report | Story


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model before it is loaded."""

    model: str
    folder: str
    total_layers: int


class ActiveRequest(msgspec.Struct):
    begin: BeginRequest
    tokens: list[int]


class Rank:
    """This node's rank. One method for each thing that can happen; each returns commands."""

    def __init__(self, me: NodeId, incarnation: int, sync: SyncSettings) -> None:
        self._me = me
        self._incarnation = incarnation
        self._sync = sync
        self._plan: MeshPlan | None = None
        self._suspended = ""
        self._facts: ModelFacts | None = None
        self._resolving = ""
        self._failure: tuple[str, str] | None = None
        self._retry_at: float | None = None
        # the worker
        self._hello: Hello | None = None
        self._starting = False
        self._stopping = False
        self._held: tuple[str, tuple[int, int]] | None = None
        self._asked_load: tuple[str, tuple[int, int]] | None = None
        self._loaded: Loaded | None = None
        self._fingerprint = ""
        self._heartbeat: Heartbeat | None = None
        self._heard_at = 0.0
        self._deadline: tuple[float, str] | None = None
        self._restart_at = 0.0
        self._pause_s = 0.0
        self.restarts = 0
        # the group
        self._phase = RankPhase.OFF
        self._attempt = 0
        self._trouble = ""
        self._lost_group_at: float | None = None
        self._link_health: LinkHealth | None = None
        # requests
        self.active: dict[str, ActiveRequest] = {}
        self._begun_order = 0
        self._finished_order = 0
        # reports
        self._seq = 0
        self._reported: RankStatus | None = None
        self._report_at = 0.0
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
        return self._heartbeat

    @property
    def hello(self) -> Hello | None:
        return self._hello

    @property
    def failure(self) -> tuple[str, str] | None:
        return self._failure

    @property
    def begun_order(self) -> int:
        return self._begun_order

    def span(self) -> tuple[int, int] | None:
        """The layers that the plan gives this rank; None while unknown."""
        plan, facts = self._plan, self._facts
        if plan is None or facts is None or self._me not in plan.ring:
            return None
        return layer_spans(plan.split, plan.memory_mib, facts.total_layers)[plan.ring.index(self._me)]

    # --- what happens ---------------------------------------------------------------------------------------

    def commit(self, plan: MeshPlan, now: float) -> list[RankCommand]:
        """All members agreed on this plan."""
        if self._plan is None or plan.model != self._plan.model:
            self._facts, self._failure, self._retry_at, self._resolving = None, None, None, ""
        self._plan, self._suspended = plan, ""
        self._attempt = 0
        commands = self._drop_group("a new plan was agreed", now)
        return commands + self._advance(now)

    def suspend(self, plan_hash: str, reason: str, now: float) -> list[RankCommand]:
        """The plan cannot be used: whatever runs over its edges is aborted at once."""
        if self._plan is None or self._plan.hash != plan_hash:
            return []
        self._suspended = reason
        return self._drop_group(reason, now) + self._advance(now)

    def model_found(self, facts: ModelFacts, now: float) -> list[RankCommand]:
        if facts.model != self._resolving:
            return []
        self._resolving, self._facts, self._failure = "", facts, None
        return self._advance(now)

    def model_failed(self, model: str, code: str, text: str, now: float) -> list[RankCommand]:
        if model != self._resolving:
            return []
        self._resolving = ""
        return self._fail(code, text, now) + self._advance(now)

    def worker_gone(self, text: str, now: float) -> list[RankCommand]:
        """The worker's process ended, or it could not be started."""
        expected = self._stopping
        self._forget_worker()
        self._stopping = False
        if not expected:
            self.restarts += 1
            self._trouble = text
            self._pause_s = min(RESTART_PAUSE_LIMIT_S, max(RESTART_PAUSE_FIRST_S, self._pause_s * 2))
            self._restart_at = now + self._pause_s
        if self._lost_group_at is None and self.active:
            self._lost_group_at = now
        return self._advance(now)

    def worker_said(self, message: FromWorker, now: float) -> list[RankCommand]:
        self._heard_at = now
        match message:
            case Hello():
                return self._greeted(message, now)
            case LoadProgress(done_bytes=done, total_bytes=total):
                self.progress = (done, total)
                self._deadline = (now + LOAD_SILENCE_S, "loading made no progress")
                return []
            case Loaded():
                return self._has_loaded(message, now)
            case LoadFailed(code=code, text=text):
                self._asked_load, self._deadline = None, None
                return self._fail(code, text, now) + self._advance(now)
            case Prepared(plan_hash=plan_hash, attempt=attempt) if self._is_present(plan_hash, attempt):
                self._deadline = None
                return self._set_phase(RankPhase.PREPARED, now)
            case Formed(plan_hash=plan_hash, attempt=attempt) if self._is_present(plan_hash, attempt):
                return self._has_formed(message, now)
            case Aborted():
                return self._has_aborted(message, now)
            case TokenOut(request_id=request_id, index=index, token=token):
                request = self.active.get(request_id)
                if request is not None and index == len(request.tokens):
                    request.tokens.append(token)
                return []
            case Finished(request_id=request_id) | RequestFailed(request_id=request_id):
                return self._ended(request_id, now)
            case Heartbeat():
                self._heartbeat = message
                return self._report(now)
            case Prepared() | Formed():
                self._deadline = None  # of a plan that is no more: it answered, so it does not hang
                return []
            case Left():
                return []

    def order(self, order: FormOrder, now: float) -> list[RankCommand]:
        """The coordinator's word. Orders of other plans or older attempts are ignored."""
        plan = self._plan
        if plan is None or self._suspended or order.plan_hash != plan.hash or order.sender != plan.coordinator:
            return []
        if self._me not in plan.ring or self._loaded is None or order.attempt < self._attempt:
            return []
        if order.step == "prepare" and order.attempt > self._attempt:
            return self._prepare(plan, order.attempt, now)
        if order.step == "form" and order.attempt == self._attempt and self._phase is RankPhase.PREPARED:
            if self._deadline is not None:
                return []  # said again while forming
            self._deadline = (now + FORM_DEADLINE_S, "forming the group did not end")
            return [TellWorker(Form(plan.hash, order.attempt, FORM_DEADLINE_S))]
        return []

    def begin(self, begin: BeginRequest, now: float) -> list[RankCommand]:
        """The next request of all ranks; one that was begun already changes nothing."""
        if begin.order <= self._begun_order:
            return []
        self._begun_order = begin.order
        self.active[begin.request.request_id] = ActiveRequest(begin, [])
        commands: list[RankCommand] = []
        if self._loaded is not None:
            commands.append(TellWorker(Begin(begin.order, begin.request)))
        return commands + self._report(now, changed=True)

    def cancel(self, request_id: str) -> list[RankCommand]:
        if request_id in self.active and self._hello is not None:
            return [TellWorker(Cancel(request_id))]
        return []

    def link_health(self, healthy: bool, reason: str) -> list[RankCommand]:
        health = LinkHealth(healthy, reason)
        if health == self._link_health:
            return []
        self._link_health = health
        return [TellWorker(health)] if self._hello is not None else []

    def handle_timer(self, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._deadline is not None and now >= self._deadline[0]:
            commands += self._kill(self._deadline[1])
        elif self._is_silent(now):
            commands += self._kill(f"the worker said nothing for {HEARTBEAT_SILENCE_S:.0f} s")
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at, self._failure, self._facts = None, None, None
        return commands + self._advance(now) + self._report(now)

    def next_deadline(self) -> float:
        candidates = [self._report_at]
        if self._deadline is not None:
            candidates.append(self._deadline[0])
        if self._retry_at is not None:
            candidates.append(self._retry_at)
        if self._hello is None and not self._starting and self._wants_worker():
            candidates.append(self._restart_at)
        return min(candidates)

    # --- the next step --------------------------------------------------------------------------------------

    def _wants_worker(self) -> bool:
        plan = self._plan
        return plan is not None and self._me in plan.ring and bool(plan.model)

    def _advance(self, now: float) -> list[RankCommand]:
        """One step towards what the plan asks for, whatever is missing first."""
        plan = self._plan
        if plan is None or not self._wants_worker():
            return self._retire(now)
        if self._failure is not None:
            return self._set_phase(RankPhase.FAILED, now)
        if self._facts is None:
            return self._resolve(plan.model, now)
        try:
            span = self.span()
        except PlanError as error:
            return self._fail("cannot_split", str(error), now) + self._set_phase(RankPhase.FAILED, now)
        assert span is not None
        if self._hello is None:
            return self._start(now)
        wanted = (self._facts.folder, span)
        if self._held != wanted:
            return self._load(wanted, now)
        if self._phase in (RankPhase.OFF, RankPhase.RESOLVING, RankPhase.LOADING, RankPhase.FAILED):
            return self._set_phase(RankPhase.LOADED, now)
        return self._report(now)

    def _retire(self, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._hello is not None and not self._stopping:
            self._stopping = True
            commands.append(LeaveWorker())
        self._failure = None
        return commands + self._set_phase(RankPhase.OFF, now)

    def _resolve(self, model: str, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._resolving != model:
            self._resolving = model
            commands.append(ResolveModel(model))
        return commands + self._set_phase(RankPhase.RESOLVING, now)

    def _start(self, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if not self._starting and not self._stopping and now >= self._restart_at:
            self._starting = True
            self._deadline = (now + START_DEADLINE_S, "the worker did not start")
            commands.append(StartWorker())
        return commands + self._set_phase(RankPhase.LOADING, now)

    def _load(self, wanted: tuple[str, tuple[int, int]], now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._asked_load != wanted:
            self._asked_load, self._held, self._loaded = wanted, None, None
            self._deadline = (now + LOAD_SILENCE_S, "loading made no progress")
            folder, (first, last) = wanted
            commands.append(TellWorker(Load(folder, first, last, self._sync)))
        return commands + self._set_phase(RankPhase.LOADING, now)

    def _prepare(self, plan: MeshPlan, attempt: int, now: float) -> list[RankCommand]:
        self._attempt = attempt
        self._deadline = (now + PREPARE_DEADLINE_S, "leaving the old group did not end")
        listeners = {edge.target: f"{edge.target_address}:{edge.target_port}" for edge in plan.edges}
        addresses = {edge.source_address for edge in plan.edges} | {edge.target_address for edge in plan.edges}
        prepare = Prepare(
            plan_hash=plan.hash,
            attempt=attempt,
            rank=plan.ring.index(self._me),
            size=len(plan.ring),
            hosts=tuple(listeners[node] for node in plan.ring) if plan.edges else (),
            addresses=tuple(sorted(addresses)),
        )
        return [*self._set_phase(RankPhase.LOADED, now), TellWorker(prepare)]

    # --- what the worker reports ----------------------------------------------------------------------------

    def _greeted(self, hello: Hello, now: float) -> list[RankCommand]:
        """A worker is connected: a new one, or one that an earlier daemon of this node left running."""
        self._hello, self._starting, self._deadline = hello, False, None
        self._held, self._asked_load = None, None
        for request in hello.requests:
            known = self.active.get(request.request.request_id)
            if known is None:
                begin = BeginRequest(self._me, request.order, self._me, request.request)
                self.active[request.request.request_id] = ActiveRequest(begin, list(request.tokens))
            elif len(request.tokens) > len(known.tokens):
                known.tokens[:] = request.tokens
            self._begun_order = max(self._begun_order, request.order)
        commands: list[RankCommand] = []
        if hello.formed:
            commands.append(TellWorker(Abort("its daemon was restarted: a new plan follows")))
        if self._link_health is not None:
            commands.append(TellWorker(self._link_health))
        return commands + self._advance(now)

    def _has_loaded(self, loaded: Loaded, now: float) -> list[RankCommand]:
        if (loaded.folder, loaded.layers) != self._asked_load:
            return []
        self._held, self._loaded, self._deadline = self._asked_load, loaded, None
        self._fingerprint = loaded.fingerprint
        commands: list[RankCommand] = [
            TellWorker(Begin(request.begin.order, request.begin.request, tuple(request.tokens)))
            for request in sorted(self.active.values(), key=lambda request: request.begin.order)
        ]
        story = Story(
            "engine.loaded",
            {
                "model": self._facts.model if self._facts else loaded.folder,
                "layers": list(loaded.layers),
                "load_s": round(loaded.load_s, 3),
                "weight_bytes": loaded.weight_bytes,
            },
        )
        return [*commands, story, *self._advance(now)]

    def _has_formed(self, formed: Formed, now: float) -> list[RankCommand]:
        self._deadline = None
        self._pause_s = 0.0
        self._trouble = ""
        commands = self._set_phase(RankPhase.FORMED, now)
        if self._lost_group_at is not None:
            gap_ms = round((now - self._lost_group_at) * 1e3, 1)
            data: dict[str, object] = {"gap_ms": gap_ms, "step": formed.resumed_step, "attempt": formed.attempt}
            commands.append(Story("engine.reformed", data))
        self._lost_group_at = None
        return commands

    def _has_aborted(self, aborted: Aborted, now: float) -> list[RankCommand]:
        """Of whichever group: the worker stands in none now."""
        self._deadline = None
        if not self._is_present(aborted.plan_hash, aborted.attempt):
            return []
        self._trouble = aborted.text
        if self._lost_group_at is None:
            self._lost_group_at = now
        story = Story("engine.aborted", {"code": aborted.code, "text": aborted.text, "step": aborted.step})
        return [story, *self._set_phase(RankPhase.ABORTED, now)]

    def _ended(self, request_id: str, now: float) -> list[RankCommand]:
        request = self.active.pop(request_id, None)
        if request is not None:
            self._finished_order = max(self._finished_order, request.begin.order)
        return self._report(now, changed=True)

    def _is_present(self, plan_hash: str, attempt: int) -> bool:
        return self._plan is not None and plan_hash == self._plan.hash and attempt == self._attempt

    def _is_silent(self, now: float) -> bool:
        if self._hello is None or self._stopping or self._deadline is not None:
            return False
        return now - self._heard_at > HEARTBEAT_SILENCE_S

    # --- leaving a group, a worker --------------------------------------------------------------------------

    def _drop_group(self, reason: str, now: float) -> list[RankCommand]:
        if self._phase not in (RankPhase.PREPARED, RankPhase.FORMED):
            if self._phase is RankPhase.ABORTED:
                self._set_quietly(RankPhase.LOADED)
            return []
        if self._lost_group_at is None:
            self._lost_group_at = now
        self._deadline = (now + ABORT_DEADLINE_S, "aborting the group did not end")
        self._set_quietly(RankPhase.LOADED)
        return [TellWorker(Abort(reason))]

    def _kill(self, text: str) -> list[RankCommand]:
        self._deadline = None
        if self._hello is None and not self._starting:
            return []
        # The next heartbeat is counted from here: one kill for each silence.
        self._hello, self._starting = None, True
        return [KillWorker(text), Story("engine.restarted", {"text": text, "restarts": self.restarts + 1})]

    def _forget_worker(self) -> None:
        self._hello, self._starting = None, False
        self._held, self._asked_load, self._loaded, self._deadline = None, None, None, None
        self._heartbeat = None

    def _fail(self, code: str, text: str, now: float) -> list[RankCommand]:
        self._failure = (code, text)
        self._retry_at = now + FAILED_RETRY_S
        return [Story("alert.raised", {"code": code, "severity": "error", "text": text})]

    # --- reports --------------------------------------------------------------------------------------------

    def _set_quietly(self, phase: RankPhase) -> None:
        self._phase = phase

    def _set_phase(self, phase: RankPhase, now: float) -> list[RankCommand]:
        """The one setter of the phase that others see."""
        changed = self._phase is not phase
        self._phase = phase
        return self._report(now, changed)

    def _report(self, now: float, changed: bool = False) -> list[RankCommand]:
        """This rank's status, when something in it changed or the last one is old."""
        status = self._status()
        previous = self._reported
        if previous is not None and not changed:
            changed = _without_figures(status) != _without_figures(previous)
        if previous is not None and not changed and now < self._report_at:
            return []
        self._seq += 1
        status = msgspec.structs.replace(status, seq=self._seq)
        self._reported = status
        settled = self._phase in (RankPhase.OFF, RankPhase.FORMED, RankPhase.FAILED) and not self.active
        self._report_at = now + (IDLE_REPORT_INTERVAL_S if settled else REPORT_INTERVAL_S)
        return [Report(status)]

    def _status(self) -> RankStatus:
        plan, beat, hello = self._plan, self._heartbeat, self._hello
        code, text = self._failure or ("", self._suspended or self._trouble)
        try:
            span = self.span()
        except PlanError:
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
            fingerprint=self._fingerprint if self._loaded is not None else "",
            versions=", ".join(f"{name} {versions[name]}" for name in sorted(versions)),
            layers=span,
            pid=hello.pid if hello is not None else 0,
            restarts=self.restarts,
            begun_order=self._begun_order,
            finished_order=self._finished_order,
            generating=bool(self.active),
            sync_mode=beat.sync_mode if beat is not None else "safe",
            sync_reason=beat.sync_reason if beat is not None else "",
            tokens_per_s=beat.tokens_per_s if beat is not None else 0.0,
            baseline_tokens_per_s=beat.baseline_tokens_per_s if beat is not None else 0.0,
            last_gap_ms=beat.last_gap_ms if beat is not None else 0.0,
            memory_mib=beat.memory_bytes >> 20 if beat is not None else 0,
        )


def _without_figures(status: RankStatus) -> RankStatus:
    """What must be told at once when it changes: all but figures that move all the time."""
    return msgspec.structs.replace(
        status, seq=0, tokens_per_s=0.0, baseline_tokens_per_s=0.0, last_gap_ms=0.0, memory_mib=0
    )
