"""The life of this node's own rank: from a committed plan to a worker that stands in the plan's group.

Goal-driven: `_advance` compares what the plan asks for with what the worker has, and takes the next step: find the
model, start the process, load the span, prepare, form. Every wait has a deadline; past it the worker is killed and
replaced (`worker_life.py`). What the worker holds (weights, KV cache, requests) outlives plans and daemons: a new
plan with the same span only forms a new group, at a step's end where nothing is broken.

Never sends anything: commands say what is to be done.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, assert_never

from exod.core.base.facts import OUT_OF_MEMORY
from exod.core.engine import engine_events as events
from exod.core.engine.engine_messages import BeginRequest, FormOrder, RankPhase, RankStatus
from exod.core.engine.layer_split import DoesNotFitError
from exod.core.engine.rank.fitness import Fitness
from exod.core.engine.rank.group_history import GroupHistory, aborted_event, with_nodes
from exod.core.engine.rank.held_requests import HeldRequest, HeldRequests, RequestGivenUp
from exod.core.engine.rank.hosted_model import HostedModel
from exod.core.engine.rank.prepare_order import prepare_order
from exod.core.engine.rank.rank_phase import PhaseMachine, RankEvent
from exod.core.engine.rank.rank_status import RankParts, ReportStatus, StatusReports
from exod.core.engine.rank.ring_port import RingPortTaken, ports_taken
from exod.core.engine.rank.stuck_group import StuckGroup
from exod.core.engine.rank.sync_watch import LinkTold, SyncWatch
from exod.core.engine.rank.worker_life import FORMING, LOADING, PREPARING, WorkerEvent, WorkerLife, WorkerState
from exod.core.engine.rank.worker_load import WorkerLoad, load_layers, loaded_event
from exod.core.engine.transport.rank_transport import RankTransport
from exod.model import MeshPlan, NodeId
from exoengine import protocol

FORM_GIVEN_S: Final = 5.0
"""Connecting takes 0.2 s even over a VPN. That a neighbour does not come is no fault of this worker: it says so by
then, and lives."""

RankCommand = events.EngineCommand | ReportStatus | RingPortTaken | RequestGivenUp


class Rank:
    """This node's rank. One method for each thing that can happen; each returns commands.

    `ring_key` is what the ranks of the cluster prove themselves to each other with when they connect.
    """

    def __init__(
        self, me: NodeId, incarnation: int, sync: protocol.SyncSettings, ring_key: bytes = b"",
        serving: protocol.Serving = protocol.DEFAULT_SERVING,
    ) -> None:  # fmt: skip
        self._me = me
        self.ring_key = ring_key
        self._plan: MeshPlan | None = None
        self._plan_reason = ""
        """Why the present plan came."""
        self._suspended = ""
        self._link = LinkTold()
        self.model = HostedModel(me, sync, serving)
        self.worker = WorkerLife()
        self.load = WorkerLoad()
        self._phases = PhaseMachine()
        self._group = GroupHistory()
        self.requests = HeldRequests()
        self.sync_watch = SyncWatch(sync.watchdog_s, sync.sync)
        self.fitness, self.transport = Fitness(), RankTransport()
        held = (self.model, self.worker, self.load, self._phases, self._group, self.requests)
        parts = RankParts(*held, self.sync_watch, self.fitness, self.transport)
        self._reports = StatusReports(me, incarnation, parts)
        self._keeps_until: float | None = None
        """Until then the worker's layers are kept although the plan wants more of them."""
        self._trouble = ""
        """Why the rank does not run; empty once it does."""
        self.stuck = StuckGroup()
        self._must_catch_up = False
        """Was the process adopted, and not yet told what its last daemon may not have told it?"""

    # --- what others read -----------------------------------------------------------------------------------

    @property
    def phase(self) -> RankPhase:
        return self._phases.phase

    @property
    def loaded(self) -> protocol.Loaded | None:
        return self.load.held

    @property
    def active(self) -> dict[str, HeldRequest]:
        """By generation id (see `engine_messages.generation_id`)."""
        return self.requests.active

    def span(self) -> tuple[int, int] | None:
        """The layers that the plan gives this rank; None while unknown. ValueError where they cannot be divided."""
        return self.model.span(self._plan)

    # --- what the mesh says ---------------------------------------------------------------------------------

    def commit(self, plan: MeshPlan, reason: str, now: float) -> list[RankCommand]:
        """All members agreed on this plan. The old group goes on until the coordinator says `prepare`, so that it
        is left at a step's end; where it is broken, `suspend` came before.
        """
        before, self._plan, self._suspended, self._plan_reason = self._plan, plan, "", reason
        if before is not None and before.hash == plan.hash:
            self._phases.plan_hash = plan.hash
            return self._advance(now) + self._report(now, changed=True)
        commands: list[RankCommand] = []
        if before is None or plan.model != before.model:
            commands += self.model.forget()
            if self.requests.void(self.requests.begun_order):  # no other model goes on with this one's answers,
                self.load.forget()  # nor this one, where it is wanted again before its worker has loaded another
            self._group.retired()
            self.fitness.wanted_anew()
            self.worker.memory.wanted_anew()
        elif set(plan.ring) < set(before.ring) and self.load.held is not None:
            self.worker.keep(self.load.held, len(before.ring) / len(plan.ring), now)
        self.model.clear_failure()
        self._leave_attempt(now)
        self._phases.follow(plan.hash)
        return commands + self._advance(now) + self._report(now)

    def suspend(self, plan_hash: str, reason: str, now: float) -> list[RankCommand]:
        """The plan cannot be used: whatever runs over its edges is aborted at once."""
        if self._plan is None or self._plan.hash != plan_hash or self._suspended:
            return []
        self._suspended = reason
        commands: list[RankCommand] = []
        if self.worker.is_connected and (self._phases.in_group or self._group.stands):
            commands += self._give_up(reason, now)
        if self._group.stands:
            self._group.lost("fault", reason, now)
            commands.append(events.EmitEvent("engine.aborted", {"code": "suspended", "text": reason}))
        self._leave_attempt(now)
        self._phases.plan_hash = ""
        return commands + self._report(now, changed=True)

    def _leave_attempt(self, now: float) -> None:
        """Only the attempt's number is kept: the worker's messages about it are not waited for."""
        if self._phases.accepts(RankEvent.ATTEMPT_LEFT):
            self._phases.apply(RankEvent.ATTEMPT_LEFT, now)
            self.worker.done()

    def order(self, order: FormOrder, now: float) -> list[RankCommand]:
        """What the coordinator orders. One that was followed already is answered by a report: that may be lost."""
        plan = self._plan
        if plan is None or self._suspended or order.plan_hash != plan.hash or order.sender != plan.coordinator:
            return []
        if self._me not in plan.ring or self.load.held is None or not self.worker.is_connected:
            return self._report(now, changed=True)
        if order.step == "prepare" and order.attempt > self._phases.attempt:
            return self._prepare(plan, order, now)
        if order.step == "form" and order.attempt == self._phases.attempt and self.phase is RankPhase.PREPARED:
            if not self._phases.forming:
                self._phases.forming = True
                self.transport.forming(plan.hash)
                self.worker.expect(FORMING, now)
                return [events.TellWorker(protocol.Form(plan.hash, order.attempt, FORM_GIVEN_S))]
            return []
        return self._report(now, changed=True)

    def heard_of(self, other: RankStatus, now: float) -> list[RankCommand]:
        """Another rank may have given up the group. This worker may not notice: the end of a connection may be
        lost, too.
        """
        broke = other.phase is RankPhase.ABORTED and self._group.is_of(other.plan_hash, other.attempt)
        lost = self.transport.is_lost_with(other, self._plan)
        wants = self.worker.is_connected and (broke or lost)
        return self._give_up("another rank gave the group up", now) if wants else []

    def _give_up(self, reason: str, now: float) -> list[RankCommand]:
        """What the worker waits for ends at once: the group, or the process where nothing else ends it."""
        if not self.transport.is_entangled:
            return [events.TellWorker(protocol.Abort(reason))]
        self.transport.killed = True
        return self._kill(f"its group over RDMA cannot be aborted ({reason})", now)

    def link_health(self, told: events.LinkHealthChanged) -> list[RankCommand]:
        changed = self._link.changed(told.healthy, told.reason, told.cables)
        return [*self._link.for_worker()] if changed and self.worker.is_connected else []

    def leaving(self, now: float) -> None:
        """The daemon ends and lets its worker leave: that is no crash."""
        if self.worker.is_connected:
            self.worker.asked_to_leave(now)

    def model_found(self, facts: events.ModelFacts, now: float) -> list[RankCommand]:
        if not self.model.found(facts):
            return []
        self.fitness.model_found()
        return [*self.model.download.ended(facts.model), *self._advance(now)]

    def model_not_found(self, model: str, code: str, text: str, now: float) -> list[RankCommand]:
        if not self.model.not_found(model):
            return []
        self.model.fail(code, text, now)
        self.fitness.model_refused(text, now)
        return self._advance(now)

    def asked_again(self, model: str | None, now: float) -> list[RankCommand]:
        """A person asked for `model` by command. Where that is the one that failed here, it is tried at once."""
        if self._plan is None or model != self._plan.model or self.load.held is not None:
            return []
        self.fitness.wanted_anew()
        self.worker.memory.wanted_anew()
        self.model.try_again()
        return self._advance(now)

    # --- requests -------------------------------------------------------------------------------------------

    def begin(self, begin: BeginRequest, now: float) -> list[RankCommand]:
        """One more request of all ranks."""
        commands = self.ended(begin.ended_order, (), now)
        told = self.requests.begin(begin)
        if self.load.held is not None and self.worker.is_connected:
            commands += [events.TellWorker(one) for one in told]
        return commands + self._report(now, changed=True)

    def ended(self, order: int, orders: Collection[int], now: float) -> list[RankCommand]:
        """All up to `order` and all `orders` have. A worker that still has one would wait for ever: it loads."""
        stale = self.requests.void(order, orders)
        if not stale or self.load.held is None:
            return self._report(now)
        self.load.forget()
        self._leave_attempt(now)
        return self._advance(now)

    def cancel(self, request_id: str) -> list[RankCommand]:
        """Ends a client's request on all ranks. Kept until it has ended: the worker may be replaced before."""
        cancel = self.requests.cancel(request_id)
        if cancel is None or self.load.held is None or not self.worker.is_connected:
            return []
        return [events.TellWorker(cancel)]

    def handle_timer(self, now: float) -> list[RankCommand]:
        """To be called when `next_deadline` is due."""
        commands: list[RankCommand] = []
        if not self.worker.is_unheard(now - self.next_deadline()):
            if text := self.worker.overdue(now):
                commands += self._kill(text, now)
            elif self.worker.wants_waking(now):
                commands.append(events.WakeWorker())
        self.model.retry_if_due(now)
        return commands + self._advance(now) + self._report(now)

    def next_deadline(self) -> float:
        wanted = self.model.facts is not None and self.model.failure is None
        worker_due = self.worker.next_deadline(wanted)
        candidates = [self._reports.due_at, worker_due, self.model.retry_at, self._keeps_until]
        candidates.append(self.fitness.next_deadline(self._plan, self.phase, self.worker))
        return min(at for at in candidates if at is not None)

    # --- the next step --------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[RankCommand]:
        """One step towards what the plan asks for, whatever is missing first."""
        plan, self._keeps_until = self._plan, None
        if plan is None or self._me not in plan.ring or not plan.model:
            return self._without_rank(now)
        if self.model.failure is not None:
            return self._move(RankEvent.MODEL_FAILED, now)
        if self.model.facts is None:
            return [*self.model.resolve(plan.model), *self._move(RankEvent.MODEL_UNKNOWN, now)]
        try:
            share = self.model.share(plan)
        except ValueError as error:
            code = "does_not_fit" if isinstance(error, DoesNotFitError) else "cannot_split"
            self.model.fail(code, str(error), now)
            return self._move(RankEvent.MODEL_FAILED, now)
        assert share is not None
        if not self.worker.is_connected:
            return [*self.worker.start(now), *self._move(RankEvent.LAYERS_MISSING, now)]
        if self.load.held is None or self.load.asked != share:
            held = self.load.asked if self.load.held else None
            self._keeps_until = self.worker.keeps_until(held, share, now)
            if self._keeps_until is not None:
                return self._move(RankEvent.LAYERS_MISSING, now)
            return self._load_share(share, now)
        if self._phases.accepts(RankEvent.LAYERS_HELD):
            return self._move(RankEvent.LAYERS_HELD, now)
        return self._report(now)

    def _without_rank(self, now: float) -> list[RankCommand]:
        """A node that was left out tries beside the ring what did not work."""
        plan = self._plan
        if plan is not None and self.fitness.looks_again(plan, now):
            return list(self.model.resolve(plan.model))
        if self.fitness.text and self.model.is_searching:
            return self._report(now)
        steps = self.fitness.rehearse(plan, self.worker, self.load, now)
        return self._retire(now) if steps is None else [*steps, *self._move(RankEvent.NOT_WANTED, now)]

    def _retire(self, now: float) -> list[RankCommand]:
        """No rank is wanted here. What was not resolved or started yet is not; requests go with the process."""
        commands: list[RankCommand] = [*self.model.forget()]
        if self.worker.is_connected:
            self.worker.asked_to_leave(now)
            self.load.forget()
            commands.append(events.LeaveWorker())
        self.model.clear_failure()
        self._group.retired()
        return commands + self._move(RankEvent.NOT_WANTED, now)

    def _load_share(self, share: protocol.Load, now: float) -> list[RankCommand]:
        commands: list[RankCommand] = []
        if self.load.asked != share:
            self._must_catch_up = False
            self._group.left(self._plan.hash if self._plan is not None else "", self._plan_reason, now)
            if self.transport.is_entangled:
                return commands + self._give_up("it is to load again", now)
            commands += load_layers(share, self.load, self.worker, now)
        return commands + self._move(RankEvent.LAYERS_MISSING, now)

    def _prepare(self, plan: MeshPlan, order: FormOrder, now: float) -> list[RankCommand]:
        if not self._phases.accepts(RankEvent.PREPARE_ORDERED):
            return self._report(now, changed=True)
        self._phases.attempt = order.attempt
        self.transport.ordered(order)
        self._group.left(plan.hash, self._plan_reason, now)
        self.worker.expect(PREPARING, now)
        prepare = prepare_order(plan, self._me, order.attempt, self.ring_key, self._link.cables, order.rdma)
        return [*self._move(RankEvent.PREPARE_ORDERED, now), events.TellWorker(prepare)]

    def _move(self, event: RankEvent, now: float) -> list[RankCommand]:
        """The one way into a phase that others see at once."""
        return self._report(now, changed=self._phases.apply(event, now))

    def _report(self, now: float, changed: bool = False) -> list[RankCommand]:
        """Its status, when something in it changed or the last one is old."""
        waits = "it waits a moment for a node to come back before it loads more layers"
        text = waits if self._keeps_until is not None else self._trouble
        return [*self.fitness.news(), *self._reports.due(self._plan, self._suspended, text, changed, now)]

    # --- what becomes of the process ------------------------------------------------------------------------

    def worker_gone(self, text: str, now: float, for_memory: bool = False) -> list[RankCommand]:
        """The worker's process ended, or it could not be started."""
        text = text if for_memory else self.worker.killed_for or text
        asked = self.worker.ended(now)
        if for_memory and not asked and (last := self.worker.killed_for_memory(text, now)):
            self.model.give_up(OUT_OF_MEMORY, last)
        blamed = not self.transport.ended() and self.load.held is not None and not asked
        given_up = self.requests.process_died(text) if blamed else []
        if self.load.held is None and not asked:
            self.fitness.process_ended(text, self.load.asked, now)
        self._group.lost("fault", text, now)
        self.load.forget()
        self.sync_watch.gone()
        self.stuck.process_ended()
        self._must_catch_up = False
        self._leave_attempt(now)
        commands: list[RankCommand] = [*given_up]
        if not asked:
            self._trouble = text
            commands.append(events.EmitEvent("engine.restarted", {"text": text, "restarts": self.worker.restarts}))
        return commands + self._advance(now)

    def _kill(self, text: str, now: float) -> list[RankCommand]:
        self.worker.killed(text, now)
        return [events.KillWorker(text, at_once=self.transport.is_entangled)]

    # --- what the worker says -------------------------------------------------------------------------------

    def worker_said(self, message: protocol.FromWorker, now: float) -> list[RankCommand]:
        self.worker.heard(now)
        match message:
            case protocol.TokenOut():
                self.stuck.token()
                self.requests.token(message)
                return []
            case protocol.Finished() | protocol.RequestFailed():
                return self._report(now, changed=self.requests.ended(message))
            case protocol.Hello():
                return self._hello(message, now)
            case _ if not self.worker.is_connected:
                return []  # of one that was told to go
            case protocol.LoadProgress(done_bytes=done, total_bytes=total):
                self.load.progress = (done, total)
                if self.load.is_under_way:
                    self.worker.expect(LOADING, now)
                return []
            case protocol.Loaded():
                return self._has_loaded(message, now)
            case protocol.LoadFailed():
                return self._has_not_loaded(message, now)
            case protocol.Prepared(plan_hash=plan_hash, attempt=attempt):
                if not self._phases.is_present(plan_hash, attempt) or self.phase is not RankPhase.PREPARING:
                    return []
                self.worker.done()
                self.transport.prepared()
                return self._move(RankEvent.PREPARED, now)
            case protocol.Formed(plan_hash=plan_hash, attempt=attempt):
                if not self._phases.is_present(plan_hash, attempt) or not self._phases.forming:
                    return []
                return self._has_formed(message, now)
            case protocol.Aborted():
                return self._has_aborted(message, now)
            case protocol.Heartbeat():
                return self._heartbeat(message, now)
            case protocol.Left() | protocol.TextAnswered() | protocol.EdgeSeen():
                return []
            case _:
                assert_never(message)

    def _hello(self, hello: protocol.Hello, now: float) -> list[RankCommand]:
        """A worker is connected: a new one, or one that an earlier daemon of this node left running."""
        if self.worker.state is WorkerState.KILLED:
            return [events.KillWorker(self.worker.killed_for)]  # the kill came before there was anything to kill
        if not self.worker.accepts(WorkerEvent.SAID_HELLO):
            return []
        self.worker.said_hello(hello, now)
        self.fitness.greeted(in_ring=self._plan is not None and self._me in self._plan.ring)
        self.stuck.greeted(hello)
        self._group.found(hello)
        self.transport.greeted(hello)
        newest_first = sorted(hello.requests, key=lambda request: -request.order)
        stale = [request for request in newest_first if not self.requests.adopt(self._me, request)]
        # With stale requests it must load again, as in `ended`: that makes it forget them.
        if not stale:
            facts = self.model.facts
            self._must_catch_up = self.load.adopt(hello, facts.sizes.total_layers if facts is not None else None)
        return [*self._link.for_worker(), *self._advance(now)]

    def _has_loaded(self, loaded: protocol.Loaded, now: float) -> list[RankCommand]:
        if self.load.held is not None:
            # An earlier daemon asked for it, just before it died: its hello named what it held before that.
            self.load.forget()
            self._leave_attempt(now)
            return self._advance(now)
        if not self.load.loaded(loaded):
            return []
        self.worker.loaded()
        self.fitness.holds_layers()
        self.model.failure_is_over()
        commands: list[RankCommand] = [events.TellWorker(one) for one in self.requests.for_a_new_process()]
        commands += self._link.for_worker()
        facts = self.model.facts
        event = loaded_event(facts.model if facts is not None else loaded.folder, loaded)
        return [*commands, event, *self._advance(now)]

    def _has_not_loaded(self, failed: protocol.LoadFailed, now: float) -> list[RankCommand]:
        share = self.load.asked
        if share is None or not self.load.failed(failed):
            return []
        self.worker.loading = False
        self.worker.done()
        self.model.fail(failed.code, failed.text, now)
        self.fitness.load_failed(failed.text, share, now)
        return self._advance(now)

    def _has_formed(self, formed: protocol.Formed, now: float) -> list[RankCommand]:
        self.worker.done()
        self.worker.formed(now)
        self.stuck.formed()
        self._trouble = ""
        told = self._group.formed(formed, now)
        return [*self._move(RankEvent.FORMED, now), *told]

    def _has_aborted(self, aborted: protocol.Aborted, now: float) -> list[RankCommand]:
        """Of the present attempt: the worker stands in no group now. Of an older one: that is known, unless it
        still stood in that one's group.
        """
        paused = aborted.code == "paused"
        present = self._phases.is_present(aborted.plan_hash, aborted.attempt) and self._phases.in_group
        stood = self._group.aborted(aborted, self._plan_reason, now)
        commands: list[RankCommand] = [aborted_event(aborted)] if (present or stood) and not paused else []
        if self.transport.aborted(aborted):
            return commands + self._give_up(aborted.text, now)
        if not present:
            return commands
        if not paused:
            self._trouble = with_nodes(aborted.text, self._plan)
        if aborted.code == "listen" and self._plan is not None:
            self._trouble += "; end the process that holds it, or set engine.ring_port"
            commands += ports_taken(self._plan, self._me)
        self.worker.done()
        if self.stuck.aborted(aborted, self._should_generate()):
            return [*commands, *self._kill(aborted.text, now), *self._advance(now)]
        return commands + self._move(RankEvent.ABORTED, now)

    def _heartbeat(self, heartbeat: protocol.Heartbeat, now: float) -> list[RankCommand]:
        self.worker.heartbeat = heartbeat
        self._group.heartbeat(heartbeat)
        return [*self.sync_watch.heard(heartbeat, now), *self._judge_heartbeat(heartbeat, now)]

    def _judge_heartbeat(self, heartbeat: protocol.Heartbeat, now: float) -> list[RankCommand]:
        """The first heartbeat of an adopted worker comes after all that its last daemon missed: what is still under
        way then is told to it, in case that daemon died before it could. What the worker knows, it leaves alone.
        """
        if self._must_catch_up:
            self._must_catch_up = False
            messages = [events.TellWorker(message) for message in self.requests.for_a_new_process()]
            return [*messages, *self._report(now)]
        if self.stuck.idles(heartbeat, self._should_generate(), now):
            return self._kill("the worker stands idle although a request is under way", now) + self._advance(now)
        return self._report(now)

    def _should_generate(self) -> bool:
        return self.phase is RankPhase.FORMED and bool(self.active)
