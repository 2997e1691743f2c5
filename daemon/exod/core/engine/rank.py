"""The life of this node's own rank: from a committed plan to a worker that stands in the plan's group.

Goal-driven: `_advance` compares what the plan asks for with what the worker has, and takes the next step: find
the model, start the process, load the span, prepare, form. Every wait has a deadline; past it the worker is
killed and replaced (`worker_life.py`). What the worker holds (weights, KV cache, requests) outlives plans and
daemons: a new plan with the same span only forms a new group, at a step's end where nothing is broken.

Never talks to anyone: commands say what the engine host must do.
"""

from __future__ import annotations

from typing import Final, assert_never

from exod.core.engine.engine_messages import BeginRequest, FormOrder, RankPhase
from exod.core.engine.layer_split import DoesNotFitError
from exod.core.engine.rank_commands import (
    KillWorker,
    LeaveWorker,
    ModelFacts,
    RankCommand,
    ResolveModel,
    RingPortTaken,
    StartWorker,
    Story,
    TellWorker,
    WakeWorker,
)
from exod.core.engine.rank_reports import prepare_order
from exod.core.engine.rank_state import RankState
from exod.core.engine.worker_life import WorkerState
from exod.model import MeshPlan, NodeId
from exoengine.protocol import (
    Abort,
    Aborted,
    Begin,
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
    Prepared,
    RequestFailed,
    TokenOut,
)

LOAD_SILENCE_S: Final = 120.0
"""Loading reports its progress every second or so; a disk that says nothing for two minutes has failed."""

PREPARE_DEADLINE_S: Final = 10.0
"""A worker gives its ranks 3 s to come to a step's end, then aborts; a kernel that runs delays that."""

FORM_GIVEN_S: Final = 5.0
"""Connecting takes 0.2 s even over a VPN. That a neighbour does not come is no fault of this worker: it says so by
then, and lives."""

FORM_DEADLINE_S: Final = 8.0
"""A worker that does not even say so is replaced. Below the coordinator's deadline, so that the next attempt finds
a new process."""

FAILED_RETRY_S: Final = 60.0
"""A folder that cannot be loaded is looked at again once a minute: people mend it while we run."""

BARREN_LIMIT: Final = 3
"""So many groups that hung without a token are no accident: a new process starts from what the daemon knows."""

IDLE_DEADLINE_S: Final = 15.0
"""A group opens a request at once and gives up a rank that does not within 5 s: past this the worker lost it."""

LAG_S: Final = 0.5
"""A timer that comes later than this was held up by our own process: the worker's words wait unread."""

INCURABLE: Final = frozenset({"cannot_reform", "connector", "mlx_init"})
"""Reasons of an Aborted that no further attempt in the same process can mend."""

_IN_GROUP: Final = frozenset({RankPhase.PREPARING, RankPhase.PREPARED, RankPhase.FORMED})
_UNLOADED: Final = frozenset({RankPhase.OFF, RankPhase.RESOLVING, RankPhase.LOADING, RankPhase.FAILED})


class Rank(RankState):
    """This node's rank. One method for each thing that can happen; each returns commands."""

    # --- what the mesh says ---------------------------------------------------------------------------------

    def commit(self, plan: MeshPlan, reason: str, now: float) -> list[RankCommand]:
        """All members agreed on this plan. The old group goes on until the coordinator says `prepare`, so that it
        is left at a step's end; where it is broken, `suspend` came before.
        """
        before, self._plan, self._suspended, self._plan_reason = self._plan, plan, "", reason
        if before is not None and before.hash == plan.hash:
            return self._advance(now) + self._report(now, changed=True)
        commands: list[RankCommand] = []
        if before is None or plan.model != before.model:
            self._facts = None
            commands += self._stop_search()
            self._requests.void(self._requests.begun_order)  # another model must not go on with this one's words
            self._group.retired()
            commands += self._alarm.cleared()
        elif set(plan.ring) < set(before.ring) and self._loaded is not None:
            self._worker.keep(self._loaded, len(before.ring) / len(plan.ring), now)
        self._failure, self._retry_at = None, None  # another share of the layers may fit
        self._attempt = 0
        self._leave_attempt()
        return commands + self._advance(now) + self._report(now)

    def suspend(self, plan_hash: str, reason: str, now: float) -> list[RankCommand]:
        """The plan cannot be used: whatever runs over its edges is aborted at once."""
        if self._plan is None or self._plan.hash != plan_hash or self._suspended:
            return []
        self._suspended = reason
        commands: list[RankCommand] = []
        if self._worker.is_connected and (self._phase in _IN_GROUP or self._group.stands):
            commands.append(TellWorker(Abort(reason)))
        if self._group.stands:
            self._group.lost("fault", reason, now)
            commands.append(Story("engine.aborted", {"code": "suspended", "text": reason}))
        self._leave_attempt()
        return commands + self._report(now, changed=True)

    def _leave_attempt(self) -> None:
        """Nothing is left of the attempt but its number: what the worker still says of it is not waited for."""
        self._forming = False
        if self._phase in _IN_GROUP or self._phase is RankPhase.ABORTED:
            self._phase = RankPhase.LOADED
            self._worker.answered()

    def order(self, order: FormOrder, now: float) -> list[RankCommand]:
        """The coordinator's word. One that was followed already is answered by a report: the last may be lost."""
        plan = self._plan
        if plan is None or self._suspended or order.plan_hash != plan.hash or order.sender != plan.coordinator:
            return []
        if self._me not in plan.ring or self._loaded is None or not self._worker.is_connected:
            return self._report(now, changed=True)
        if order.step == "prepare" and order.attempt > self._attempt:
            return self._prepare(plan, order.attempt, now)
        if order.step == "form" and order.attempt == self._attempt and self._phase is RankPhase.PREPARED:
            if not self._forming:
                self._forming = True
                self._worker.expect(FORM_DEADLINE_S, "forming the group did not end", now)
                return [TellWorker(Form(plan.hash, order.attempt, FORM_GIVEN_S))]
            return []
        return self._report(now, changed=True)

    def link_health(self, healthy: bool, reason: str) -> list[RankCommand]:
        health = LinkHealth(healthy, reason)
        if health == self._link_health:
            return []
        self._link_health = health
        return [TellWorker(health)] if self._worker.is_connected else []

    def leaving(self) -> None:
        """The daemon ends and lets its worker leave: that is no crash."""
        if self._worker.is_connected:
            self._worker.leaving()

    # --- what is known of the model -------------------------------------------------------------------------

    def model_found(self, facts: ModelFacts, now: float) -> list[RankCommand]:
        if facts.model != self._resolving:
            return []
        self._resolving, self._facts, self._failure = "", facts, None
        return [*self._download.ended(facts.model), *self._advance(now)]

    def model_failed(self, model: str, code: str, text: str, now: float) -> list[RankCommand]:
        if model != self._resolving:
            return []
        self._resolving = ""
        self._download.forget()
        return self._fail(code, text, now) + self._advance(now)

    # --- requests -------------------------------------------------------------------------------------------

    def begin(self, begin: BeginRequest, now: float) -> list[RankCommand]:
        """The next request of all ranks. A coordinator begins one only when all before it have ended."""
        commands = self.ended(begin.order - 1, now) if begin.order > self._requests.begun_order else []
        if self._requests.begin(begin) and self._loaded is not None and self._worker.is_connected:
            commands.append(TellWorker(Begin(begin.order, begin.request, begin.tokens)))
        return commands + self._report(now, changed=True)

    def ended(self, order: int, now: float) -> list[RankCommand]:
        """Every request up to `order` has ended. A worker that still has one would wait for the others with it,
        for ever: it loads again, which makes it forget.
        """
        if not self._requests.void(order) or self._loaded is None:
            return []
        self._loaded = self._asked_load = None
        self._leave_attempt()
        return self._advance(now)

    def claim(self, request_id: str, origin: NodeId) -> None:
        self._requests.claim(request_id, origin)

    def cancel(self, request_id: str) -> list[RankCommand]:
        """Ends a client's request on all ranks. Kept until it has ended: the worker may be replaced before."""
        cancel = self._requests.cancel(request_id)
        if cancel is None or self._loaded is None or not self._worker.is_connected:
            return []
        return [TellWorker(cancel)]

    # --- time -----------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> list[RankCommand]:
        """To be called when `next_deadline` is due."""
        late_s = now - self.next_deadline()
        self._forgave = late_s > LAG_S and not self._forgave
        commands: list[RankCommand] = []
        if self._forgave:
            self._worker.forgive(late_s)
        elif text := self._worker.overdue(now):
            commands += self._kill(text, now)
        elif self._worker.wants_waking(now):
            commands.append(WakeWorker())
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at, self._failure, self._facts = None, None, None
        return commands + self._advance(now) + self._report(now)

    def next_deadline(self) -> float:
        worker_due = self._worker.next_deadline(wanted=self._facts is not None and self._failure is None)
        candidates = [self._reporter.due_at, worker_due, self._retry_at, self._keeps_until]
        return min(at for at in candidates if at is not None)

    # --- the next step --------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[RankCommand]:
        """One step towards what the plan asks for, whatever is missing first."""
        plan, self._keeps_until = self._plan, None
        if plan is None or self._me not in plan.ring or not plan.model:
            return self._retire(now)
        if self._failure is not None:
            return self._set_phase(RankPhase.FAILED, now)
        if self._facts is None:
            return self._resolve(plan.model, now)
        try:
            wanted = self._wanted()
        except ValueError as error:
            code = "does_not_fit" if isinstance(error, DoesNotFitError) else "cannot_split"
            return self._fail(code, str(error), now) + self._set_phase(RankPhase.FAILED, now)
        assert wanted is not None
        if not self._worker.is_connected:
            return self._start(now)
        if self._loaded is None or self._asked_load != wanted:
            self._keeps_until = self._worker.keeps_until(self._asked_load if self._loaded else None, wanted, now)
            if self._keeps_until is not None:
                return self._set_phase(RankPhase.LOADING, now)
            return self._load(wanted, now)
        if self._phase in _UNLOADED:
            return self._set_phase(RankPhase.LOADED, now)
        return self._report(now)

    def _retire(self, now: float) -> list[RankCommand]:
        """No rank is wanted here. What was not resolved or started yet is not; requests go with the process."""
        commands: list[RankCommand] = [*self._alarm.cleared(), *self._stop_search()]
        if self._worker.is_connected:
            self._worker.leaving()
            self._loaded = self._asked_load = None
            commands.append(LeaveWorker())
        self._failure, self._retry_at, self._facts = None, None, None
        self._group.retired()
        return commands + self._set_phase(RankPhase.OFF, now)

    def _resolve(self, model: str, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._resolving != model:
            self._resolving = model
            commands.append(ResolveModel(model))
        return commands + self._set_phase(RankPhase.RESOLVING, now)

    def _start(self, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._worker.may_start(now):
            self._worker.started(now)
            commands.append(StartWorker())
        return commands + self._set_phase(RankPhase.LOADING, now)

    def _load(self, wanted: Load, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self._asked_load != wanted:
            self._asked_load, self._loaded, self._to_retell = wanted, None, False
            self._group.left(self._plan.hash if self._plan is not None else "", self._plan_reason, now)
            self._worker.loading = True
            self._worker.expect(LOAD_SILENCE_S, "loading made no progress", now)
            commands.append(TellWorker(wanted))
        return commands + self._set_phase(RankPhase.LOADING, now)

    def _prepare(self, plan: MeshPlan, attempt: int, now: float) -> list[RankCommand]:
        self._attempt, self._forming = attempt, False
        hello = self._worker.hello
        if self._worker.group_used and hello is not None and not hello.can_reform:
            text = "this MLX cannot form a second group in one process"
            return self._kill(text, now) + self._advance(now)
        self._group.left(plan.hash, self._plan_reason, now)
        self._worker.group_used = True
        self._worker.expect(PREPARE_DEADLINE_S, "leaving the old group did not end", now)
        prepare = prepare_order(plan, self._me, attempt, self._ring_key)
        return [*self._set_phase(RankPhase.PREPARING, now), TellWorker(prepare)]

    # --- what becomes of the process ------------------------------------------------------------------------

    def worker_gone(self, text: str, now: float) -> list[RankCommand]:
        """The worker's process ended, or it could not be started."""
        text = self._worker.killed_for or text
        asked = self._worker.gone(now)
        self._group.lost("fault", text, now)
        self._loaded = self._asked_load = None
        self._sync_watch.gone()
        self._barren, self._to_retell = 0, False
        self._leave_attempt()
        commands: list[RankCommand] = []
        if not asked:
            self._trouble = text
            commands.append(Story("engine.restarted", {"text": text, "restarts": self._worker.restarts}))
        return commands + self._advance(now)

    def _kill(self, text: str, now: float) -> list[RankCommand]:
        self._worker.killed(text, now)
        return [KillWorker(text)]

    # --- what the worker says -------------------------------------------------------------------------------

    def worker_said(self, message: FromWorker, now: float) -> list[RankCommand]:
        self._worker.heard(now)
        match message:
            case TokenOut():
                self._barren = 0
                self._requests.token(message)
                return []
            case Finished() | RequestFailed():
                return self._report(now, changed=self._requests.ended(message))
            case Hello():
                return self._greeted(message, now)
            case _ if not self._worker.is_connected:
                return []  # the last words of one that was told to go
            case LoadProgress(done_bytes=done, total_bytes=total):
                self.progress = (done, total)
                if self._asked_load is not None and self._loaded is None:
                    self._worker.expect(LOAD_SILENCE_S, "loading made no progress", now)
                return []
            case Loaded():
                return self._has_loaded(message, now)
            case LoadFailed():
                return self._has_not_loaded(message, now)
            case Prepared(plan_hash=plan_hash, attempt=attempt):
                if not self._is_present(plan_hash, attempt) or self._phase is not RankPhase.PREPARING:
                    return []
                self._worker.answered()
                return self._set_phase(RankPhase.PREPARED, now)
            case Formed(plan_hash=plan_hash, attempt=attempt):
                if not self._is_present(plan_hash, attempt) or not self._forming:
                    return []
                return self._has_formed(message, now)
            case Aborted():
                return self._has_aborted(message, now)
            case Heartbeat():
                return self._has_beaten(message, now)
            case Left():
                return []
            case _:
                assert_never(message)

    def _greeted(self, hello: Hello, now: float) -> list[RankCommand]:
        """A worker is connected: a new one, or one that an earlier daemon of this node left running."""
        if self._worker.state is WorkerState.KILLED:
            return [KillWorker(self._worker.killed_for)]  # the kill came before there was anything to kill
        self._worker.greeted(hello, now)
        self._group.found(hello.plan_hash, hello.attempt, hello.formed)
        newest_first = sorted(hello.requests, key=lambda request: -request.order)
        stale = [request for request in newest_first if not self._requests.adopt(self._me, request)]
        commands: list[RankCommand] = []
        # With stale requests it must load again, as in `ended`: that makes it forget them.
        if not stale and hello.load is not None and hello.fingerprint is not None:
            held = self._asked_load = hello.load
            self._loaded = Loaded(
                folder=held.folder,
                layers=(held.first_layer, held.last_layer),
                total_layers=self._facts.sizes.total_layers if self._facts is not None else held.last_layer,
                fingerprint=hello.fingerprint,
                weight_bytes=0,
                load_s=hello.load_s,
                max_context_tokens=0,
                layer_s=hello.layer_s,
            )
            self._to_retell = True
        if self._link_health is not None:
            commands.append(TellWorker(self._link_health))
        return commands + self._advance(now)

    def _has_loaded(self, loaded: Loaded, now: float) -> list[RankCommand]:
        if self._loaded is not None:
            # An earlier daemon asked for it, just before it died: this is not what was greeted with.
            self._loaded = self._asked_load = None
            self._leave_attempt()
            return self._advance(now)
        asked = self._asked_load
        if asked is None or (loaded.folder, loaded.layers) != (asked.folder, (asked.first_layer, asked.last_layer)):
            return []
        self._loaded = loaded
        self._worker.loaded()
        commands: list[RankCommand] = [*self._alarm.cleared()]
        commands += [TellWorker(message) for message in self._requests.retell()]
        if self._link_health is not None:
            commands.append(TellWorker(self._link_health))  # a worker keeps it with the model
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

    def _has_not_loaded(self, failed: LoadFailed, now: float) -> list[RankCommand]:
        if self._asked_load is None or failed.folder != self._asked_load.folder or self._loaded is not None:
            return []
        self._asked_load = None
        self._worker.loading = False
        self._worker.answered()
        return self._fail(failed.code, failed.text, now) + self._advance(now)

    def _has_formed(self, formed: Formed, now: float) -> list[RankCommand]:
        self._forming = False
        self._worker.answered()
        self._worker.formed(now)
        self._trouble = ""
        stories = self._group.formed(formed, now)
        return [*self._set_phase(RankPhase.FORMED, now), *stories]

    def _has_aborted(self, aborted: Aborted, now: float) -> list[RankCommand]:
        """Of the present attempt: the worker stands in no group now. Of an older one: that is known, unless it
        still stood in that one's group.
        """
        commands: list[RankCommand] = []
        stood, paused = self._group.is_of(aborted.plan_hash, aborted.attempt), aborted.code == "paused"
        present = self._is_present(aborted.plan_hash, aborted.attempt) and self._phase in _IN_GROUP
        if stood:
            # Paused: another rank has the next plan already, or a next attempt of this one.
            self._group.lost("move" if paused else "fault", self._plan_reason if paused else aborted.text, now)
        if (present or stood) and not paused:
            data: dict[str, object] = {"code": aborted.code, "text": aborted.text, "step": aborted.step}
            commands.append(Story("engine.aborted", data))
        if not present:
            return commands
        was_formed = self._phase is RankPhase.FORMED
        if not paused:
            self._trouble = aborted.text
        if aborted.code == "listen":
            commands += self._port_taken()
        self._forming = False
        self._worker.answered()
        if was_formed and aborted.code == "deadline" and self.active:
            self._barren += 1
        if aborted.code in INCURABLE or self._barren >= BARREN_LIMIT:
            return [*commands, *self._kill(aborted.text, now), *self._advance(now)]
        return commands + self._set_phase(RankPhase.ABORTED, now)

    def _port_taken(self) -> list[RankCommand]:
        self._trouble += "; end the process that holds it, or set engine.ring_port"
        assert self._plan is not None
        return [RingPortTaken(edge.target_port) for edge in self._plan.edges if edge.target == self._me]

    def _has_beaten(self, beat: Heartbeat, now: float) -> list[RankCommand]:
        self._worker.heartbeat = beat
        self._group.beat(beat)
        return [*self._sync_watch.heard(beat, now), *self._judge_beat(beat, now)]

    def _judge_beat(self, beat: Heartbeat, now: float) -> list[RankCommand]:
        """The first beat of an adopted worker comes after all that its last daemon missed: what is still under way
        then is told to it, in case that daemon died before it could. What the worker knows, it leaves alone.
        """
        if self._to_retell:
            self._to_retell = False
            words = [TellWorker(message) for message in self._requests.retell()]
            return [*words, *self._report(now)]
        if self._phase is not RankPhase.FORMED or not self.active or beat.state != "ready":
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > IDLE_DEADLINE_S:
            self._idle_since = None
            return self._kill("the worker stands idle although a request is under way", now) + self._advance(now)
        return self._report(now)

    def _fail(self, code: str, text: str, now: float) -> list[RankCommand]:
        self._failure = (code, text)
        self._retry_at = now + FAILED_RETRY_S
        return [*self._alarm.raised(code, text)]
