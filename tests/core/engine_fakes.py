"""A worker process that generates nothing but numbers, and the groups that such processes form.

Behaves as engine/exoengine does towards its daemon: what is answered, what is not, what is told again, who finishes
first. The token at a place of an answer follows from the client's request and the place alone.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from exod.core.engine_messages import client_id
from exoengine.protocol import (
    Abort,
    Aborted,
    ActiveRequest,
    Begin,
    Cancel,
    Finished,
    Form,
    Formed,
    FromWorker,
    GenerationRequest,
    Heartbeat,
    Hello,
    Leave,
    Left,
    LinkHealth,
    Load,
    Loaded,
    Prepare,
    Prepared,
    TokenOut,
    ToWorker,
)

STEP_S = 0.05
STEP_DEADLINE_S = 5.0
PAUSE_S = 3.0
FINISHED_KEPT = 8
TOTAL_LAYERS = 12


def token_at(request_id: str, index: int) -> int:
    return zlib.crc32(f"{client_id(request_id)}/{index}".encode()) % 50_000


@dataclass
class Generation:
    order: int
    request: GenerationRequest
    tokens: list[int]
    cancelled: bool = False
    finished: str = ""


class Group:
    """Ranks that stand in one group. Alive until the first fault."""

    def __init__(self, hall: Hall, key: tuple[str, int], workers: list[FakeWorker]) -> None:
        self.hall, self.key, self.workers = hall, key, workers
        self.alive = True
        self.open: int | None = None
        self._on_the_way = 0
        self._moved_at = hall.loop.time()
        hall.loop.call_later(STEP_S, self._turn)

    def _turn(self) -> None:
        if not self.alive:
            return
        now = self.hall.loop.time()
        self.hall.loop.call_later(STEP_S, self._turn)
        if any(worker.is_stopped or self.hall.is_cut(self.key[0]) for worker in self.workers):
            if self.open is not None and now - self._moved_at > STEP_DEADLINE_S:
                self.fail("deadline", "a step took too long")
            return
        if self._on_the_way:
            return
        if any(worker.pause_wanted for worker in self.workers):
            self._pause()
            return
        lead = self.workers[0]
        if self.open is None:
            if not lead.waiting:
                self._moved_at = now
                return
            order = min(lead.waiting)
            if not all(worker.knows(order) for worker in self.workers):
                if now - self._moved_at > STEP_DEADLINE_S:
                    self.fail("deadline", f"opening {order} took too long")
                return
            self.open, self._moved_at = order, now
            self._agree(order)
        else:
            self._moved_at = now
            self._step(self.open)

    def _agree(self, order: int) -> None:
        standing = [worker.generation(order) for worker in self.workers]
        ids = {generation.request.request_id for generation in standing}
        assert len(ids) == 1, f"ranks know different requests by order {order}: {ids}"
        self.hall.opened(standing[0].request.request_id, order)
        longest = max((generation.tokens for generation in standing), key=len)
        cancelled = any(generation.cancelled or generation.finished == "cancelled" for generation in standing)
        for worker, generation in zip(self.workers, standing, strict=True):
            for token in longest[len(generation.tokens) :]:
                worker.add(generation, token)
            if cancelled:
                worker.finish(generation, "cancelled")
        self._close_where_finished(order)

    def _step(self, order: int) -> None:
        """The last rank knows first, then rank 0, then the others; a fault may come in between."""
        generations = [worker.generation(order) for worker in self.workers]
        if any(generation.cancelled for generation in generations):
            for worker, generation in zip(self.workers, generations, strict=True):
                worker.finish(generation, "cancelled")
            self._close_where_finished(order)
            return
        index = len(generations[0].tokens)
        token = token_at(generations[0].request.request_id, index)
        knowing = [self.workers[-1], *self.workers[:-1]]
        self._on_the_way = len(knowing)
        for place, worker in enumerate(knowing):
            self.hall.loop.call_later(0.001 * place, self._outcome, worker, order, index, token)

    def _outcome(self, worker: FakeWorker, order: int, index: int, token: int) -> None:
        if not self.alive:
            return
        if worker.is_stopped:
            self.hall.loop.call_later(STEP_S, self._outcome, worker, order, index, token)
            return
        worker.add(worker.generation(order), token)
        self._on_the_way -= 1
        if not self._on_the_way:
            self._close_where_finished(order)

    def _close_where_finished(self, order: int) -> None:
        if all(worker.generation(order).finished for worker in self.workers):
            self.open = None

    def _pause(self) -> None:
        self.alive = False
        for worker in self.workers:
            worker.paused()

    def fail(self, code: str, text: str, by: FakeWorker | None = None) -> None:
        if not self.alive:
            return
        self.alive = False
        for worker in self.workers:
            if worker is not by:
                self.hall.loop.call_later(0.01, worker.lost, self, code, text)


@dataclass
class Hall:
    """Where ranks meet."""

    loop: asyncio.AbstractEventLoop
    random: Random
    note: Callable[[str], None]
    cut_plans: set[str] = field(default_factory=set)
    meeting: dict[tuple[str, int], list[FakeWorker]] = field(default_factory=dict)
    shapes: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    generations: dict[str, set[int]] = field(default_factory=dict)
    form_s: float = 0.2

    def is_cut(self, plan_hash: str) -> bool:
        return plan_hash in self.cut_plans

    def opened(self, request_id: str, order: int) -> None:
        self.generations.setdefault(client_id(request_id), set()).add(order)

    def arrive(self, worker: FakeWorker, prepare: Prepare) -> None:
        shape = self.shapes.setdefault(prepare.plan_hash, {})
        known = shape.setdefault(prepare.rank, (worker.name, prepare.size))
        assert known == (worker.name, prepare.size), f"two ranks {prepare.rank} in one plan: {known}, {worker.name}"
        key = (prepare.plan_hash, prepare.attempt)
        present = self.meeting.setdefault(key, [])
        present.append(worker)
        present.sort(key=lambda one: one.prepared.rank if one.prepared else 0)
        if len(present) == prepare.size and not self.is_cut(prepare.plan_hash):
            self.loop.call_later(self.form_s * self.random.uniform(0.1, 1.0), self._form, key)

    def depart(self, worker: FakeWorker) -> None:
        for present in self.meeting.values():
            if worker in present:
                present.remove(worker)

    def _form(self, key: tuple[str, int]) -> None:
        workers = self.meeting.get(key, [])
        if not workers or workers[0].prepared is None or len(workers) != workers[0].prepared.size:
            return
        if any(worker.is_stopped for worker in workers) or self.is_cut(key[0]):
            return
        del self.meeting[key]
        self.note(f"group {key[0]}/{key[1]} stands: {[worker.name for worker in workers]}")
        group = Group(self, key, workers)
        for worker in workers:
            worker.joined(group)


class FakeWorker:
    """One process. Lives on when its daemon dies."""

    def __init__(self, hall: Hall, name: str, pid: int) -> None:
        self.hall, self.name, self.pid = hall, name, pid
        self.alive = True
        self.is_stopped = False
        self.hangs = False
        """Stopped by a fault of its own: nobody can wake it."""
        self.pause_wanted = False
        self.prepared: Prepare | None = None
        self.waiting: dict[int, Generation] = {}
        self.finished: dict[int, Generation] = {}
        self._orders: dict[str, int] = {}
        self._newest = 0
        self._model: Load | None = None
        self._group: Group | None = None
        self._plan: tuple[str, int] | None = None
        self._leaving = False
        self._logs: dict[str, list[FromWorker]] = {}
        self._begins: dict[str, Begin] = {}
        self._daemon: Callable[[FromWorker], None] | None = None
        self._gone: Callable[[str], None] | None = None
        self._inbox: list[ToWorker] = []
        self._outbox: list[FromWorker] = []
        self._socket: deque[tuple[Callable[[FromWorker], None], FromWorker]] = deque()
        self._beat()

    # --- the daemon's side ---

    def connect(self, hear: Callable[[FromWorker], None], gone: Callable[[str], None]) -> None:
        self._daemon, self._gone, self._outbox = hear, gone, []
        plan = self._plan or (None, 0)
        self._say(
            Hello(
                protocol=1,
                pid=self.pid,
                versions={"mlx": "1"},
                fingerprint="f" if self._model else None,
                plan_hash=plan[0],
                attempt=plan[1],
                formed=self._group is not None,
                requests=tuple(
                    ActiveRequest(
                        begin.order,
                        begin.request,
                        tuple(m.token for m in self._logs[key] if isinstance(m, TokenOut)),
                    )
                    for key, begin in self._begins.items()
                ),
                can_reform=True,
                load=self._model,
            )
        )
        for key in list(self._logs):
            for message in self._logs[key]:
                self._say(message)
            self._forget_if_told(key)
        self._say_beat()

    def disconnect(self) -> None:
        self._daemon = self._gone = None

    def hear(self, message: ToWorker) -> None:
        self._inbox.append(message)
        if not self.is_stopped:
            self.hall.loop.call_later(0.001, self._work)

    def die(self, text: str) -> None:
        if not self.alive:
            return
        self.alive = self.is_stopped = False
        self.hall.note(f"{self.name}'s worker {self.pid} ends: {text}")
        self.hall.depart(self)
        if self._group is not None:
            self._group.fail("peer_lost", "the connection to a peer was lost", by=self)
        if self._gone is not None:
            self.hall.loop.call_later(0.01, self._gone, text)

    def stop(self, hangs: bool) -> None:
        self.is_stopped, self.hangs = True, hangs

    def resume(self) -> None:
        if self.alive and self.is_stopped:
            self.is_stopped = False
            outbox, self._outbox = self._outbox, []
            for message in outbox:
                self._say(message)
            self.hall.loop.call_later(0.001, self._work)
            if self._group is not None and not self._group.alive:
                self.hall.loop.call_later(0.01, self.lost, self._group, "peer_lost", "a peer was lost")

    def _beat(self) -> None:
        if self.alive:
            self.hall.loop.call_later(1.0, self._beat)
            if self._daemon is not None and not self.is_stopped:
                self._say_beat()

    def _say_beat(self) -> None:
        group = self._group
        leads = group is not None and group.workers[0] is self and bool(self.waiting)
        busy = group is not None and (group.open is not None or leads)
        self._say(Heartbeat("generating" if busy else "ready", 0, 0.0, "fast", "", 0.0, 0.0, 0.0, 0, 0))

    def _say(self, message: FromWorker) -> None:
        if self.is_stopped:
            self._outbox.append(message)
        elif self._daemon is not None:
            self._socket.append((self._daemon, message))
            self.hall.loop.call_later(0.001, self._told)

    def _told(self) -> None:
        """In the order in which it was said."""
        daemon, message = self._socket.popleft()
        if self._daemon is daemon:
            daemon(message)

    def _tell(self, request_id: str, message: FromWorker) -> None:
        if request_id in self._logs:
            self._logs[request_id].append(message)
        self._say(message)
        self._forget_if_told(request_id)

    def _forget_if_told(self, request_id: str) -> None:
        log = self._logs.get(request_id)
        if log and isinstance(log[-1], Finished) and self._daemon is not None and not self.is_stopped:
            del self._logs[request_id], self._begins[request_id]

    # --- commands ---

    def _work(self) -> None:
        while self._inbox and self.alive and not self.is_stopped:
            self._act(self._inbox.pop(0))

    def _act(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._part("replaced", "another model is loaded")
                self._model = None
                self.waiting, self.finished, self._orders, self._newest = {}, {}, {}, 0
                self._logs, self._begins = {}, {}
                self.hall.loop.call_later(self.hall.random.uniform(0.3, 3.0), self._has_loaded, message)
            case Prepare():
                self.prepared = message
                self.hall.depart(self)
                if self._group is None:
                    self._answer_prepare()
                else:
                    self.pause_wanted = True
                    self.hall.loop.call_later(PAUSE_S, self._pause_is_over, self._group)
            case Form(plan_hash=plan_hash, attempt=attempt, deadline_s=deadline_s):
                prepared = self.prepared
                if prepared is not None and (prepared.plan_hash, prepared.attempt) == (plan_hash, attempt):
                    self.hall.arrive(self, prepared)
                    self.hall.loop.call_later(deadline_s, self._form_is_over, prepared)
            case Abort(reason=reason):
                if self._group is not None:
                    group = self._group
                    group.fail("peer_lost", "a peer gave the group up", by=self)
                    self.lost(group, "told", reason)
                elif self.prepared is not None and self._is_meeting():
                    self._form_is_over(self.prepared)
            case Begin():
                self._begin(message)
            case Cancel(request_id=request_id):
                generation = self.waiting.get(self._orders.get(request_id, -1))
                if generation is not None:
                    generation.cancelled = True
            case Leave():
                self._leaving = True
                if self._group is not None and self._group.open is not None:
                    self.pause_wanted = True
                    self.hall.loop.call_later(PAUSE_S, self._pause_is_over, self._group)
                else:
                    self._leave()
            case LinkHealth():
                pass

    def _begin(self, begin: Begin) -> None:
        if self._model is None:
            return
        key = begin.request.request_id
        if key not in self._logs:
            self._logs[key], self._begins[key] = [], begin
        if key in self._orders:
            known = self.finished.get(begin.order)
            if known is not None:
                self._tell_end(known)
            return
        assert begin.order > self._newest, f"{self.name} is told of order {begin.order} after {self._newest}"
        self._newest = self._orders[key] = begin.order
        expected = [token_at(key, index) for index in range(len(begin.tokens))]
        assert list(begin.tokens) == expected, f"{self.name} is given tokens of another answer for {key}"
        generation = Generation(begin.order, begin.request, list(begin.tokens))
        if len(generation.tokens) >= begin.request.max_tokens:
            generation.finished = "length"
            self.finished[begin.order] = generation
            self._tell_end(generation)
        else:
            self.waiting[begin.order] = generation

    def _has_loaded(self, load: Load) -> None:
        if self.is_stopped:
            self.hall.loop.call_later(0.5, self._has_loaded, load)
        elif self.alive:
            self._model = load
            layers = (load.first_layer, load.last_layer)
            self._say(Loaded(load.folder, layers, TOTAL_LAYERS, "f", 1, 0.1, 4096))

    def _answer_prepare(self) -> None:
        assert self.prepared is not None
        self._plan = (self.prepared.plan_hash, self.prepared.attempt)
        self.pause_wanted = False
        self._say(Prepared(*self._plan))

    def _pause_is_over(self, group: Group) -> None:
        if self.alive and not self.is_stopped and self._group is group and self.pause_wanted:
            group.fail("deadline", "no step's end came", by=self)
            self.lost(group, "deadline", "no step's end came")

    def _is_meeting(self) -> bool:
        return any(self in present for present in self.hall.meeting.values())

    def _form_is_over(self, prepared: Prepare) -> None:
        if self.alive and self._group is None and self.prepared is prepared and self._is_meeting():
            self.hall.depart(self)
            self.prepared = None
            self._say(Aborted(prepared.plan_hash, prepared.attempt, "deadline", "a neighbour did not come", -1))

    # --- the group's side ---

    def joined(self, group: Group) -> None:
        self._group, self.prepared, self.pause_wanted = group, None, False
        self._say(Formed(*group.key, 0.1, 0 if self.waiting else -1))

    def lost(self, group: Group, code: str, text: str) -> None:
        if self.alive and not self.is_stopped and self._group is group:
            self._part(code, text)
            if self._leaving:
                self._leave()
            elif self.prepared is not None:
                self._answer_prepare()

    def paused(self) -> None:
        if self._leaving:
            self._group = None
            self._leave()
        elif self.prepared is not None:
            self._group = None
            self._answer_prepare()
        else:
            self._part("paused", "the ranks leave the group for another plan")

    def _part(self, code: str, text: str) -> None:
        group, self._group = self._group, None
        self.pause_wanted = False
        if group is not None:
            if group.alive:
                group.fail("peer_lost", "the connection to a peer was lost", by=self)
            self._say(Aborted(*group.key, code, text, -1))

    def _leave(self) -> None:
        self._say(Left())
        self.hall.loop.call_later(0.01, self.die, "it left")

    def knows(self, order: int) -> bool:
        return order in self.waiting or order in self.finished

    def generation(self, order: int) -> Generation:
        return self.waiting.get(order) or self.finished[order]

    def add(self, generation: Generation, token: int) -> None:
        if generation.finished:
            return
        key = generation.request.request_id
        generation.tokens.append(token)
        self._tell(key, TokenOut(key, len(generation.tokens) - 1, token, f"{token} "))
        if len(generation.tokens) >= generation.request.max_tokens:
            self.finish(generation, "length")

    def finish(self, generation: Generation, reason: str) -> None:
        if generation.finished:
            return
        generation.finished = reason
        self.waiting.pop(generation.order, None)
        self.finished[generation.order] = generation
        while len(self.finished) > FINISHED_KEPT:
            old = self.finished.pop(next(iter(self.finished)))
            self._orders.pop(old.request.request_id, None)
        self._tell_end(generation)

    def _tell_end(self, generation: Generation) -> None:
        key, reason = generation.request.request_id, generation.finished
        self._tell(key, Finished(key, reason, "", 1, 0, len(generation.tokens), 0.0, 0.0))  # type: ignore[arg-type]
