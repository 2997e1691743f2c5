"""A worker process that generates nothing but numbers.

Behaves as engine/exoengine does towards its daemon: what is answered, what is not, what is told again, who finishes
first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

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
from tests.core.engine.fake_groups import Generation, Group, Hall, token_at

PAUSE_S = 3.0
FINISHED_KEPT = 64
TOTAL_LAYERS = 12


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
        self._layer_s = 0.0
        self.loads = 0
        """How often it was told to load."""
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
                load=self._model,
                load_s=0.1,
                layer_s=self._layer_s,
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
                self.waiting, self.finished, self._orders = {}, {}, {}
                self._logs, self._begins = {}, {}
                self.loads += 1
                load_s = self.hall.random.uniform(*self.hall.load_s)
                self._layer_s = load_s / (message.last_layer - message.first_layer)
                self.hall.loop.call_later(load_s, self._has_loaded, message)
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
        assert not self.knows(begin.order), f"{self.name} is told of order {begin.order} by another name"
        self._orders[key] = begin.order
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
            self._say(Loaded(load.folder, layers, TOTAL_LAYERS, "f", 1, 0.1, 4096, self._layer_s))

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
        self._say(Formed(*group.key, 0 if self.waiting else -1))

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
