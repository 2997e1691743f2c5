"""Carries the engine's core: feeds it what happens on this node, and carries out what it commands.

Moves bytes and nothing else: the worker process, messages to other daemons, the clients' streams, the search for a
model, one timer. Decides nothing: `core/engine_core.py` does. A bug in the core costs what was being done, not the
daemon: it is logged and reported, and deadlines mend what is stuck.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final

import structlog

from exod.core.base.events import RingEvidence
from exod.core.engine import engine_events as events
from exod.core.engine.edge_evidence import ring_evidence
from exod.core.engine.engine_events import EngineCommand, EngineInput
from exod.core.engine.engine_messages import EngineMessage, RankPhase
from exod.core.engine_core import EngineCore
from exod.daemon_api.interface import GenerationDelta
from exod.daemon_api.shared_tick import until_next
from exod.engine_service.client_streams import ClientStreams
from exod.engine_service.model_search import Find, find_here_or_at_hub, search
from exod.engine_service.rdma_proof import prove
from exod.engine_service.text_desk import TextDesk
from exod.engine_service.worker_process import WorkerProcess
from exod.model import NodeId
from exoengine.model_files.memory_fit import ModelSizes
from exoengine.model_files.model_folder import ModelFolderError
from exoengine.protocol import EdgeSeen, FromWorker, GenerationRequest, Hello, RdmaSetup

log = structlog.get_logger()

SHORTEST_PAUSE_S: Final = 0.01
"""A deadline that is due at once again and again must not take the whole loop; all of them are longer."""

PAUSE_AFTER_ERROR_S: Final = 1.0
"""A timer that fails is due again at once: it must not fill the log."""

WIRED_EVERY_S: Final = 2.0
"""One system call; a rank that waits for memory to be freed starts as soon."""

DRAIN_SETTLES_S: Final = 0.5
"""What the coordinator began before it heard of the drain shows in the ranks' reports by then."""

WorkToBegin = (
    events.StartWorker | events.LeaveWorker | events.SweepWorkers | events.ResolveModel | events.ProveTransport
)
"""Commands that take a task of their own."""


class EngineDriver:
    """`send(node, message)` reaches another node; `tell_all` every other node; `on_event(type, data)` takes the
    contract's events, `on_edge` what the rank met on an edge of the ring; `on_change` says that something in the
    status changed; `on_ring_port` takes the port that the ring is to listen on from the next plan on,
    `on_model_wish` the model that this node's card is to name, `on_choice` how (way, model, ranks).
    """

    def __init__(
        self,
        core: EngineCore,
        folder: Path,
        environment: dict[str, str],
        send: Callable[[NodeId, EngineMessage], object],
        tell_all: Callable[[EngineMessage], None],
        on_event: Callable[[str, dict[str, object]], None],
        on_change: Callable[[], None],
        on_model_wish: Callable[[str], None],
        on_ring_port: Callable[[int], None],
        on_edge: Callable[[RingEvidence], None],
        on_choice: Callable[[str, str, tuple[NodeId, ...]], None] = lambda way, model, ranks: None,
        clock: Callable[[], float] = time.monotonic,
        keeps_spare: bool = False,
    ) -> None:
        self.core = core
        self._send, self._tell_all = send, tell_all
        self._on_event, self._on_change = on_event, on_change
        self._on_model_wish, self._on_ring_port, self._on_edge = on_model_wish, on_ring_port, on_edge
        self._on_choice = on_choice
        self._clock = clock
        self._folder, self._environment = folder, environment
        self.streams = ClientStreams(self.feed)
        self.worker = WorkerProcess(
            folder, environment, self._worker_said, self._worker_gone, keeps_spare=keeps_spare
        )
        self.on_model: Callable[[str, ModelSizes], None] = lambda model, sizes: None
        """Takes what is known of a model that was found."""
        self.on_recommended: Callable[[int], None] = lambda size: None
        """Takes how many bytes of the GPU's memory MLX says that a process should use at most."""
        self.on_unfit: Callable[[str], None] = lambda text: None
        """Takes why this node cannot serve as a rank; empty where it can again."""
        self.find: Find = find_here_or_at_hub
        """Brings a model to this node's disk."""
        self.wired_bytes: Callable[[], int | None] = lambda: None
        """How much memory is wired on this host; None where the system does not tell."""
        self.texts = TextDesk(self.worker.tell)
        self._search: asyncio.Task[None] | None = None
        self._inputs: deque[EngineInput | None] = deque()
        self._is_taking = False
        self._progress = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._early: list[WorkToBegin] = []
        """What a plan asked for before `run`: a start that took long finds its first plan due at once."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_leaving = False

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carries out commands until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            early, self._early = self._early, []
            for command in early:
                self._begin(command)
            self._rearm()
            await self._watch_wired()

    async def _watch_wired(self) -> None:
        """Until cancelled."""
        while (wired := self.wired_bytes()) is not None:
            self.feed(events.MemoryWired(wired))
            await asyncio.sleep(until_next(WIRED_EVERY_S))
        await asyncio.get_running_loop().create_future()

    async def leave(self) -> None:
        """The rank leaves its group and its process ends, within the worker's deadline."""
        self.feed(events.Leaving())
        self.stop()
        await self.worker.leave()

    def rank_work(self) -> tuple[int | None, bool]:
        """The worker's pid, and does its rank load or answer?"""
        busy = self.core.rank.phase is RankPhase.LOADING or bool(self.core.rank.active)
        return self.worker.pid, busy

    def stop(self) -> None:
        """No timer is due any more, and no work is begun."""
        self._is_leaving = True
        if self._timer is not None:
            self._timer.cancel()
        self._stop_search()

    # --- inputs ---------------------------------------------------------------------------------------------

    def feed(self, event: EngineInput) -> bool:
        """Gives the core an input, and carries out what it commands; one that comes meanwhile is taken after it.
        False where that failed.
        """
        well = self._take(event)
        self._rearm()
        return well

    def _take(self, event: EngineInput | None) -> bool:
        """None: the timer."""
        self._inputs.append(event)
        if self._is_taking:
            return True
        self._is_taking, well = True, True
        try:
            while self._inputs:
                well = self._handle(self._inputs.popleft()) and well
        finally:
            self._is_taking = False
        self._progress.set()
        return well

    def _handle(self, event: EngineInput | None) -> bool:
        now = self._clock()
        try:
            commands = self.core.handle_timer(now) if event is None else self.core.handle(event, now)
        except Exception as error:
            self._failed(_name(event), error)
            return False
        for command in commands:
            with self._surviving(f"a {type(command).__name__}"):
                self._carry_out(command)
        return True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """The deltas of one generation; closing it cancels. Raises RequestError where it cannot be served: a prompt
        that does not fit is found before it waits for anything.
        """
        async with aclosing(self.streams.generate(await self.texts.prepared(request))) as deltas:
            async for delta in deltas:
                yield delta

    async def drain(self, ask: Callable[[], None]) -> None:
        """`ask` tells all nodes to admit no more requests; returns when nothing is generated and nothing waits."""
        ask()
        await asyncio.sleep(DRAIN_SETTLES_S)
        while not self.core.is_drained:
            self._progress.clear()
            await self._progress.wait()

    def _worker_said(self, message: FromWorker) -> None:
        if isinstance(message, EdgeSeen):
            evidence = ring_evidence(message, self.core.plan, self.core.statuses)
            if evidence is not None:
                self._on_edge(evidence)
            return
        if isinstance(message, Hello) and message.recommended_bytes > 0:
            self.on_recommended(message.recommended_bytes)
        if not self.texts.said(message):
            self.feed(events.WorkerSaid(message))

    def _worker_gone(self, text: str) -> None:
        self.texts.gone()
        self.feed(events.WorkerGone(text, self.worker.killed_for_memory))

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> None:
        log.error("internal_error", task=what, exc_info=error)
        self._on_event("internal.error", {"task": what, "error": f"{type(error).__name__}: {error}"})

    # --- the timer ------------------------------------------------------------------------------------------

    def _rearm(self) -> None:
        """One timer for the earliest deadline. One that is set already, and earlier, is left as it is."""
        due = self.core.next_deadline()
        if self._tasks is None or due is None:
            return
        # One that is overdue must come although inputs never pause: it is not put off by each of them.
        at = max(due, self._clock() + SHORTEST_PAUSE_S)
        if self._timer is None or at < self._timer_at:
            self._set_timer(at)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_leaving:
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(at - self._clock(), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._take(None):
            self._rearm()
        else:
            self._set_timer(self._clock() + PAUSE_AFTER_ERROR_S)

    # --- commands -------------------------------------------------------------------------------------------

    def _carry_out(self, command: EngineCommand) -> None:
        match command:
            case events.TellWorker(message=message):
                self.texts.told(message)
                self.worker.tell(message)
            case events.KillWorker(text=text, at_once=at_once):
                self.worker.kill(text, at_once)
            case events.WakeWorker():
                self.worker.wake()
            case (
                events.StartWorker()
                | events.LeaveWorker()
                | events.SweepWorkers()
                | events.ResolveModel()
                | events.ProveTransport()
            ):
                self._begin(command)
            case events.StopSearch():
                self._stop_search()
            case events.SendTo(node=node, message=to_send):
                self._send(node, to_send)
            case events.TellAll(message=to_tell):
                self._tell_all(to_tell)
            case events.WishModel(model=model):
                self._on_model_wish(model)
            case events.AnnounceRingPort(port=port):
                log.warning("ring_port_taken", next=port)
                self._on_ring_port(port)
            case events.AnnounceUnfit(text=text):
                log.info("rank_fitness", fit=not text)  # the alert has the reason
                self.on_unfit(text)
            case events.ChooseParallel(way=way, model=model, ranks=ranks):
                self._on_choice(way, model, ranks)
            case events.EmitEvent(type=kind, data=data):
                self._on_event(kind, data)
            case events.StatusChanged():
                self._on_change()
            case events.LogIgnored(sender=sender, kind=kind):
                log.warning("engine_message_ignored", sender=sender, kind=kind)
            case _:
                self.streams.deliver(command)

    def _begin(self, command: WorkToBegin) -> None:
        if self._is_leaving:
            return
        if self._tasks is None:
            self._early.append(command)
            return
        match command:
            case events.StartWorker():
                self.worker.start(self._tasks)
            case events.LeaveWorker():
                self._spawn(self._tasks, self.worker.leave(), "worker leaves")
            case events.SweepWorkers():
                self._spawn(self._tasks, asyncio.to_thread(self.worker.sweep), "sweep")
            case events.ProveTransport(number=number, rank=rank, setup=setup):
                self._spawn(self._tasks, self._prove(number, rank, setup), "proof of RDMA")
            case events.ResolveModel(model=model):
                self._search = self._spawn(self._tasks, self._resolve(model), "resolve model")

    def _spawn(
        self, tasks: asyncio.TaskGroup, work: Coroutine[object, object, None], name: str
    ) -> asyncio.Task[None]:
        async def outlived() -> None:
            with self._surviving(name):
                await work

        return tasks.create_task(outlived(), name=name)

    def _stop_search(self) -> None:
        if self._search is not None:
            self._search.cancel()
        self._early = [command for command in self._early if not isinstance(command, events.ResolveModel)]

    async def _prove(self, number: int, rank: int, setup: RdmaSetup) -> None:
        text = await prove(rank, setup, self._folder, self._environment)
        self.feed(events.RdmaProved(number, text))

    async def _resolve(self, model: str) -> None:
        """Finds or downloads the model, and reads what it is."""

        def downloaded(done_bytes: int, total_bytes: int) -> None:
            self.feed(events.ModelProgress(model, done_bytes, total_bytes))

        try:
            folder, summary = await search(model, downloaded, self.find)
        except ModelFolderError as error:
            self.feed(events.ModelNotFound(model, error.code, str(error)))
        else:
            self.on_model(model, summary)
            self.feed(events.ModelFound(events.ModelFacts(model, str(folder), summary)))


def _name(event: EngineInput | None) -> str:
    """For the log, where handling it failed."""
    match event:
        case None:
            return "a timer"
        case events.EngineMessageReceived(sender=sender, message=message):
            return f"a {type(message).__name__} of {sender}"
        case events.WorkerSaid(message=said):
            return f"the worker's {type(said).__name__}"
        case _:
            return f"a {type(event).__name__}"
