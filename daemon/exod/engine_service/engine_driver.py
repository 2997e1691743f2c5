"""Hosts the engine on this node: its own rank, and as coordinator the group and the queue of the whole cluster.

Wires the pure parts (`rank.py`, `group_formation.py` and `request_queue.py` of the core) to the worker process, the
other daemons and the clients' requests. Decides nothing that they can decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from exod.core.engine.engine_messages import (
    BeginRequest,
    Begun,
    CancelRequest,
    EngineMessage,
    FormOrder,
    ModelWish,
    Queued,
    RankPhase,
    RankStatus,
    RelayAgain,
    RelayedOutput,
    RequestsEnded,
    SubmitRefused,
    SubmitRequest,
    TellBegun,
    client_id,
)
from exod.core.engine.group_formation import Formation, OrderRank, disagreement
from exod.core.engine.rank import Rank
from exod.core.engine.rank_commands import (
    KillWorker,
    LeaveWorker,
    ModelFacts,
    RankCommand,
    Report,
    ResolveModel,
    RingPortTaken,
    StartWorker,
    StopSearch,
    Story,
    TellWorker,
    WakeWorker,
)
from exod.core.engine.request_queue import Scheduler, SchedulerCommand
from exod.core.engine.ring_port import RingPorts
from exod.engine_service.model_search import search
from exod.engine_service.relay import Relay
from exod.engine_service.request_streams import RequestDesk
from exod.engine_service.worker_process import WorkerProcess
from exod.model import MeshPlan, NodeId
from exoengine.model_files.model_folder import ModelFolderError, ModelSummary
from exoengine.protocol import Finished, FromWorker, RequestFailed, SyncSettings, TokenOut

log = structlog.get_logger()

TICK_S: Final = 0.25
"""The coarsest that a deadline of this room is kept; all of them are seconds."""

PAUSE_AFTER_ERROR_S: Final = 1.0
"""A timer that fails is due again at once: it must not fill the log."""


class EngineHost:
    """This node's part in the engine, and the coordinator's where it is one.
    `send(node, message)` reaches another node; `tell_all` every other node; `on_story(type, data)` takes the
    contract's events; `on_change` says that something in the status changed; `on_ring_port` takes the port that the
    ring is to listen on from now, for the next plan.
    """

    def __init__(
        self,
        me: NodeId,
        incarnation: int,
        sync: SyncSettings,
        recovery_deadline_s: float,
        folder: Path,
        environment: dict[str, str],
        send: Callable[[NodeId, EngineMessage], bool],
        tell_all: Callable[[EngineMessage], None],
        on_story: Callable[[str, dict[str, object]], None],
        on_change: Callable[[], None],
        on_model_wish: Callable[[str], None],
        ring_port: int,
        on_ring_port: Callable[[int], None],
        ring_key: bytes = b"",
    ) -> None:
        self._me = me
        self._send, self._tell_all = send, tell_all
        self._on_story, self._on_change, self._on_model_wish = on_story, on_change, on_model_wish
        self._on_ring_port = on_ring_port
        self._ring_ports = RingPorts(ring_port)
        self.rank = Rank(me, incarnation, sync, ring_key)
        self.formation = Formation(me)
        self.scheduler = Scheduler(me, incarnation)
        self.desk = RequestDesk(me, recovery_deadline_s, self._submit, self.cancel, self.trouble)
        self._relay = Relay()
        self.worker = WorkerProcess(folder, environment, self._worker_said, self._worker_gone)
        self.plan: MeshPlan | None = None
        self.suspended = ""
        self.statuses: dict[NodeId, RankStatus] = {}
        self._incarnations: dict[NodeId, int] = {}
        self.summary: ModelSummary | None = None
        self._search: asyncio.Task[None] | None = None
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self._progress = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._early: list[tuple[Coroutine[object, object, None], str]] = []
        """What a plan asked for before `run`: a start that took long finds its first plan due at once."""
        self._timer: asyncio.Handle | None = None
        self._closing = False

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carries out commands until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while self._early:
                self._spawn(*self._early.pop(0))
            self._tick()
            await asyncio.get_running_loop().create_future()

    def _tick(self) -> None:
        pause_s = PAUSE_AFTER_ERROR_S
        with self._surviving("a timer"):
            now = time.monotonic()
            if now >= self.rank.next_deadline():
                self._carry_out(self.rank.handle_timer(now))
            self._give_orders(self.formation.handle_timer(now))
            self._schedule(now)
            if len(self.desk):
                self.desk.handle_timer()
            pause_s = self._pause_s(now)
        if not self._closing:
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._tick)

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """A bug in here costs what was being done, not the daemon: it is told, and deadlines mend what is stuck."""
        try:
            yield
        except Exception as error:
            log.error("internal_error", task=what, exc_info=error)
            self._on_story("internal.error", {"task": what, "error": f"{type(error).__name__}: {error}"})

    def _pause_s(self, now: float) -> float:
        """Until the next deadline: an idle engine wakes once in a few seconds, not four times in each."""
        busy = len(self.desk) or self.scheduler.active is not None or self.formation.next_deadline() is not None
        until_due = self.rank.next_deadline() - now
        return max(0.01, min(until_due, TICK_S if busy else until_due))

    def _nudge(self) -> None:
        """Something changed: what was due later may be due now."""
        if self._timer is not None and not self._closing:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._tick)

    async def leave(self) -> None:
        """The rank leaves its group and its process ends, within the worker's deadline."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._search is not None:
            self._search.cancel()
        self.rank.leaving()
        await self.worker.leave()

    # --- what the mesh says ---------------------------------------------------------------------------------

    def commit(self, plan: MeshPlan, reason: str) -> None:
        """All members agreed on `plan`."""
        now = time.monotonic()
        was_coordinator = self.plan is not None and self.plan.coordinator == self._me
        lives = [
            (one.coordinator, one.epoch.coordinator_incarnation) for one in (self.plan, plan) if one is not None
        ]
        coordinator_changed = self.plan is None or lives[0] != lives[1]
        if self.plan is not None and self.plan.model != plan.model:
            self.scheduler.give_up()
            self.desk.model_changed(plan.model)
        if self.plan is None and (self._me not in plan.ring or not plan.model):
            self._spawn(asyncio.to_thread(self.worker.sweep), "sweep")
        self.plan, self.suspended = plan, ""
        self._carry_out(self.rank.commit(plan, reason, now))
        if plan.coordinator == self._me and not was_coordinator:
            begun = self.rank.begun()
            self.scheduler.take_over([begun] if begun is not None else [], self.rank.begun_order, now)
        elif plan.coordinator != self._me:
            self.scheduler.give_up()
        self.scheduler.members([member.id for member in plan.members], now)
        self._give_orders(self.formation.follow(plan, now))
        if coordinator_changed or self._me not in plan.ring:
            self.desk.coordinator_changed()
        self._changed(now)

    def suspend(self, plan_hash: str, reason: str) -> None:
        """The plan cannot be used until the next commit."""
        if self.plan is None or self.plan.hash != plan_hash:
            return
        now = time.monotonic()
        self.suspended = reason
        self._carry_out(self.rank.suspend(plan_hash, reason, now))
        self._give_orders(self.formation.follow(None, now))
        self._changed(now)

    def link_health(self, healthy: bool, reason: str) -> None:
        self._carry_out(self.rank.link_health(healthy, reason))

    def peer_lost(self, peer: NodeId) -> None:
        """The node is down: what it said of its rank is void."""
        self.statuses.pop(peer, None)
        self.formation.forget(peer)
        self._on_change()

    def peer_connected(self, peer: NodeId) -> None:
        """A node that just came must not wait for the next report."""
        status = self.statuses.get(self._me)
        if status is not None:
            self._send(peer, status)

    # --- what other daemons say -----------------------------------------------------------------------------

    def handle(self, sender: NodeId, message: EngineMessage) -> None:
        with self._surviving(f"a {type(message).__name__} of {sender}"):
            self._handle(sender, message)

    def _handle(self, sender: NodeId, message: EngineMessage) -> None:
        now = time.monotonic()
        match message:
            case RankStatus() if message.sender == sender:
                self._status(message, now)
            case FormOrder() if message.sender == sender:
                self._carry_out(self.rank.order(message, now))
            case BeginRequest() if message.sender == sender and self._is_coordinator(sender):
                self._begin(message, now)
            case TellBegun() if message.sender == sender and self._is_coordinator(sender):
                begun = self.rank.begun()
                if begun is not None:
                    self._to(sender, Begun(begun))
            case Begun(begin=begin) if self._is_coordinator(self._me):
                self.scheduler.adopt(begin, now)
                self._nudge()
            case RequestsEnded(order=order) if message.sender == sender and self._is_coordinator(sender):
                self._carry_out(self.rank.ended(order, now))
            case SubmitRequest() if message.origin == sender:
                self._submitted(message, now)
            case Queued(request_id=request_id):
                self.desk.queued(request_id)
            case SubmitRefused(request_id=request_id):
                self.desk.output(request_id, message)
            case CancelRequest(request_id=request_id):
                self.scheduler.cancel(request_id)
                self._carry_out(self.rank.cancel(request_id))
            case RelayAgain(request_id=request_id, token_count=token_count):
                self.rank.claim(request_id, sender)
                for relayed in self._relay.after(request_id, token_count):
                    self._send(sender, relayed)
            case RelayedOutput(outputs=outputs, token_count=token_count):
                for output in outputs:
                    request_id = client_id(output.request_id)
                    before = output.index if isinstance(output, TokenOut) else token_count
                    self.desk.output(request_id, output, before)
                    if isinstance(output, TokenOut) and not self.desk.waits_for(request_id):
                        self._send(sender, CancelRequest(request_id))
                        break
            case ModelWish(model=model):
                self._on_model_wish(model)
            case _:
                log.warning("engine_message_ignored", sender=sender, kind=type(message).__name__)

    def _begin(self, begin: BeginRequest, now: float) -> None:
        """One of ours that no client waits for any more (the cancel was lost, or this daemon is new) is ended."""
        self._carry_out(self.rank.begin(begin, now))
        request_id = client_id(begin.request.request_id)
        if begin.origin == self._me and not self.desk.waits_for(request_id):
            self.cancel(request_id)

    def _is_coordinator(self, node: NodeId) -> bool:
        return self.plan is not None and self.plan.coordinator == node

    def _status(self, status: RankStatus, now: float) -> None:
        known = self.statuses.get(status.sender)
        if known is not None and (known.incarnation, known.seq) >= (status.incarnation, status.seq):
            return
        self.statuses[status.sender] = status
        if self._incarnations.get(status.sender, status.incarnation) < status.incarnation:
            self._origin_restarted(status.sender)
        self._incarnations[status.sender] = status.incarnation
        self._give_orders(self.formation.rank_status(status, now))
        self._changed(now)

    def _origin_restarted(self, origin: NodeId) -> None:
        """Its clients are gone with its earlier life: what they asked for is ended."""
        for held in list(self.rank.active.values()):
            if held.begin.origin == origin:
                self._carry_out(self.rank.cancel(held.begin.request.request_id))

    # --- requests -------------------------------------------------------------------------------------------

    def _submit(self, submit: SubmitRequest) -> bool:
        """To the present coordinator, which may be this node. Without a rank here, rank 0 relays the answer."""
        if self.plan is None:
            return False
        if self.plan.ring and self._me not in self.plan.ring:
            self._send(self.plan.ring[0], RelayAgain(submit.request.request_id, len(submit.tokens)))
        return self._to(self.plan.coordinator, submit)

    def _submitted(self, submit: SubmitRequest, now: float) -> None:
        if not self._is_coordinator(self._me):
            return  # the origin repeats it to whoever coordinates by then
        self._tell(self.scheduler.submit(submit, now))
        self._schedule(now)
        self._nudge()

    def cancel(self, request_id: str) -> None:
        """Ends a request everywhere: any rank that is told ends it on all, the coordinator drops it waiting."""
        self.scheduler.cancel(request_id)
        self._carry_out(self.rank.cancel(request_id))
        if self.plan is not None and self.plan.coordinator != self._me:
            self._to(self.plan.coordinator, CancelRequest(request_id))

    def trouble(self) -> str:
        """What the engine waits for, in words; empty where it runs."""
        if self.plan is None:
            return "no mesh is agreed yet"
        if self.suspended:
            return self.suspended
        if not self.plan.model:
            return "no model is loaded"
        if not self.plan.ring:
            return "no node of the mesh hosts a rank"
        if text := self._failures() or self.disagreement():
            return text
        ranks = self._ranks()
        waited_for = [status for status in ranks if status is None or status.phase is not RankPhase.FORMED]
        if not waited_for:
            return ""
        # One that says why is the cause; the others wait for it, and may look worse.
        status = next((one for one in waited_for if one is not None and one.text), waited_for[0])
        if status is None:
            return "a rank has not reported under the present plan"
        return f"the rank of {status.sender} is {status.phase}" + f": {status.text}" * bool(status.text)

    def _failures(self) -> str:
        """Why ranks of the plan cannot be, whoever's they are: said once where it is the same on all."""
        ranks = self._ranks()
        failed = [status for status in ranks if status is not None and status.phase is RankPhase.FAILED]
        if len(failed) == len(ranks) and len({status.text for status in failed}) == 1:
            return failed[0].text
        return "; ".join(f"{status.sender}: {status.text}" for status in failed)

    def disagreement(self) -> str:
        """Why the plan's ranks must not form a group, as every node sees it; empty where they may."""
        return disagreement(self._ranks())

    async def drained(self) -> None:
        """Returns when nothing is generated and nothing waits."""
        while self.rank.active or self.scheduler.waiting:
            self._progress.clear()
            await self._progress.wait()

    def ranks(self) -> list[RankStatus]:
        """The statuses of the plan's ranks that reported under it, in rank order."""
        return [status for status in self._ranks() if status is not None]

    def _ranks(self) -> list[RankStatus | None]:
        """For each rank of the plan its status; None for one that is not known under this plan."""
        if self.plan is None:
            return []
        found = [self.statuses.get(node) for node in self.plan.ring]
        return [status if status and status.plan_hash == self.plan.hash else None for status in found]

    def _schedule(self, now: float) -> None:
        """The coordinator's queue: what is next, and to whom it must be said (again)."""
        plan = self.plan
        if plan is None or plan.coordinator != self._me:
            return
        known = [status for node in plan.ring if (status := self.statuses.get(node)) is not None]
        if len(known) == len(plan.ring):
            self._tell(self.scheduler.advance(known, self.formation.formed, now))

    # --- the worker -----------------------------------------------------------------------------------------

    def _worker_said(self, message: FromWorker) -> None:
        with self._surviving(f"the worker's {type(message).__name__}"):
            if isinstance(message, TokenOut | Finished | RequestFailed):
                self._deliver(message)
            self._carry_out(self.rank.worker_said(message, time.monotonic()))
        if not isinstance(message, TokenOut):
            self._nudge()

    def _worker_gone(self, text: str) -> None:
        with self._surviving("the worker's end"):
            self._carry_out(self.rank.worker_gone(text, time.monotonic()))
        self._nudge()

    def _deliver(self, output: TokenOut | Finished | RequestFailed) -> None:
        """To this node's client; rank 0 relays to an origin that hosts no rank."""
        self.desk.output(client_id(output.request_id), output)
        if isinstance(output, Finished):
            self.prompt_tokens += output.prompt_tokens
            self.cached_tokens += output.cached_tokens
            self.completion_tokens += output.completion_tokens
        request = self.rank.active.get(output.request_id)
        plan = self.plan
        if request is None or plan is None or not plan.ring or plan.ring[0] != self._me:
            return
        if request.begin.origin in plan.ring:
            self._relay.forget(client_id(output.request_id))
            return
        relayed = self._relay.note(output, len(request.tokens))
        if request.begin.origin:
            self._send(request.begin.origin, relayed)

    # --- carrying out ---------------------------------------------------------------------------------------

    def _carry_out(self, commands: Iterable[RankCommand]) -> None:
        for command in commands:
            match command:
                case TellWorker(message=message):
                    self.worker.tell(message)
                case RingPortTaken(port=port):
                    if self._ring_ports.taken(port, time.monotonic()):
                        log.warning("ring_port_taken", port=port, next=self._ring_ports.port)
                        self._on_ring_port(self._ring_ports.port)
                case Report(status=status):
                    if status.phase is RankPhase.FORMED:
                        self._ring_ports.listened()
                    self._tell_all(status)
                    self._status(status, time.monotonic())
                case Story(type=kind, data=data):
                    self._on_story(kind, data)
                case ResolveModel(model=model):
                    self._search = self._spawn(self._resolve(model), "resolve model")
                case StopSearch() if self._search is not None:
                    self._search.cancel()
                case StartWorker():
                    if self._tasks is not None and not self._closing:
                        self.worker.start(self._tasks)
                case KillWorker(text=text):
                    self.worker.kill(text)
                case WakeWorker():
                    self.worker.wake()
                case LeaveWorker():
                    self._spawn(self.worker.leave(), "worker leaves")

    async def _outliving(self, work: Coroutine[object, object, None], name: str) -> None:
        with self._surviving(name):
            await work

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None] | None:
        if self._closing:
            work.close()
        elif self._tasks is None:
            self._early.append((work, name))
        else:
            return self._tasks.create_task(self._outliving(work, name), name=name)
        return None

    async def _resolve(self, model: str) -> None:
        """Finds or downloads the model, and reads what it is."""
        try:
            folder, summary = await search(
                model, lambda *sizes: self._carry_out(self.rank.model_progress(model, *sizes))
            )
        except ModelFolderError as error:
            self._carry_out(self.rank.model_failed(model, error.code, str(error), time.monotonic()))
        else:
            self.summary = summary
            facts = ModelFacts(model, str(folder), summary)
            self._carry_out(self.rank.model_found(facts, time.monotonic()))
        self._nudge()

    def _give_orders(self, orders: Iterable[OrderRank]) -> None:
        for order in orders:
            self._to(order.to, order.order)

    def _tell(self, commands: Iterable[SchedulerCommand]) -> None:
        for command in commands:
            self._to(command.to, command.message)

    def _to(self, node: NodeId, message: EngineMessage) -> bool:
        """This node hears itself too, after what it does now."""
        if node != self._me:
            return self._send(node, message)
        asyncio.get_running_loop().call_soon(self.handle, self._me, message)
        return True

    def _changed(self, now: float) -> None:
        self._schedule(now)
        self._progress.set()
        self._on_change()
