"""A worker process that generates nothing but numbers. Both simulations of the engine use it (`surroundings.py`).

Behaves as engine/exoengine does towards its daemon: what it answers, what it ignores, what it sends again, which
rank finishes first, what outlives a daemon. Nothing of it is real but the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from exod.model import NodeId
from exoengine.protocol import (
    NO_EDGES,
    NOTHING_MEASURED,
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
    KeepWaiting,
    Leave,
    Left,
    LinkHealth,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Prepare,
    Prepared,
    RequestFailed,
    TokenOut,
    ToWorker,
)
from tests.sim.engine.groups import NOTICED_S, End, Generation, Group
from tests.sim.engine.surroundings import Surroundings

PAUSE_S = 3.0
"""How long ranks may take to come to a step's end."""
BEAT_S = 1.0
SOCKET_S = 0.001
"""Between a worker and its daemon."""
ORPHAN_S = 60.0
ORPHAN_FACTOR = 5.0
"""How long a worker waits for the next daemon, and longer while it generates."""
FINISHED_KEPT = 64
TOTAL_LAYERS = 12
LEAST_LOAD_S = 0.02
LONG_STEP_S = 0.5
"""From then on a heartbeat tells that a step is computed."""
STEP_END_S = 0.05
"""How often it is looked whether a long step has ended."""


class Worker:
    """One process. Lives on when its daemon dies."""

    def __init__(self, world: Surroundings, node: NodeId, pid: int) -> None:
        self.world, self.node, self.pid = world, node, pid
        self.alive = True
        self.stopped_by: set[str] = set()
        """Why it stands still: "signal" (its daemon can continue it), "hang", "sleep", "power"."""
        self.computes_until = 0.0
        """Until then it is in one step: nothing ends that but its end, or the process's."""
        self.step_s = 0.0
        """How long it computes at each step, where that is long."""
        self.computed = False
        """Is it through the present step?"""
        self.waits_until = 0.0
        """Until then its daemon lets no step be overdue."""
        self.pause_wanted = False
        self.prepared: Prepare | None = None
        self.waiting: dict[int, Generation] = {}
        self.finished: dict[int, Generation] = {}
        self._orders: dict[str, int] = {}
        self.model: Load | None = None
        self._loading: Load | None = None
        self._layer_s = 0.0
        self.step_costs, self.edge_costs = NOTHING_MEASURED, NO_EDGES
        self.loads = 0
        """How often it was told to load."""
        self.group: Group | None = None
        self._plan: tuple[str, int] | None = None
        self._leaving = False
        self._is_to_greet = False
        self._logs: dict[str, list[FromWorker]] = {}
        self._begins: dict[str, Begin] = {}
        self._alone_since = world.now
        self._daemon: Callable[[FromWorker], None] | None = None
        self._gone: Callable[[str], None] | None = None
        self._inbox: list[ToWorker] = []
        self._outbox: list[FromWorker] = []
        self._socket: deque[tuple[Callable[[FromWorker], None], FromWorker]] = deque()
        self._beat()

    @property
    def is_stopped(self) -> bool:
        return bool(self.stopped_by)

    # --- the daemon's side --------------------------------------------------------------------------------------

    def connect(self, hear: Callable[[FromWorker], None], gone: Callable[[str], None]) -> None:
        self._daemon, self._gone, self._outbox = hear, gone, []
        self._is_to_greet = self.is_stopped
        if not self.is_stopped:
            self._greet()

    def _greet(self) -> None:
        self._say(self._hello())
        for key in list(self._logs):
            for message in self._logs[key]:
                self._say(message)
            self._forget_if_told(key)
        self._say_beat()

    def _hello(self) -> Hello:
        plan = self._plan or (None, 0)
        requests = (
            ActiveRequest(begin.order, begin.request, self._told_tokens(key)) for key, begin in self._begins.items()
        )
        return Hello(
            protocol=1,
            pid=self.pid,
            versions={"mlx": "1"},
            fingerprint="f" if self.model else None,
            plan_hash=plan[0],
            attempt=plan[1],
            formed=self.group is not None,
            requests=tuple(requests),
            load=self.model,
            load_s=0.1,
            layer_s=self._layer_s,
            keeps_waiting=True,
        )

    def _told_tokens(self, key: str) -> tuple[int, ...]:
        """Those that it was begun with are not told again."""
        tokens = list(self._begins[key].tokens)
        for message in self._logs[key]:
            if isinstance(message, TokenOut) and message.index == len(tokens):
                tokens.append(message.token)
        return tuple(tokens)

    def disconnect(self) -> None:
        self._daemon = self._gone = None
        self._alone_since = self.world.now

    def hear(self, message: ToWorker) -> None:
        self._inbox.append(message)
        if not self.is_stopped:
            self.world.after(SOCKET_S, self._work)

    def die(self, text: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.world.witness.died()
        self.stopped_by.clear()
        self.world.note(self.node, f"worker {self.pid} ends: {text}")
        self.world.rendezvous.depart(self)
        if self.group is not None:
            self.group.fail("peer_lost", "the connection to a peer was lost", by=self)
        if self._gone is not None:
            self.world.after(NOTICED_S, self._gone, text)

    def lose_power(self) -> None:
        """The machine is gone, and nobody tells the others: what they sent is never answered."""
        self.alive = False
        self.stopped_by.add("power")
        self.world.rendezvous.depart(self)

    def stop(self, why: str) -> None:
        if self.alive:
            self.stopped_by.add(why)

    def resume(self, why: str) -> None:
        if not self.alive or why not in self.stopped_by:
            return
        self.stopped_by.discard(why)
        if self.is_stopped:
            return
        outbox, self._outbox = self._outbox, []
        for message in outbox:
            self._say(message)
        if self._is_to_greet:  # what its last daemon still sent was read before it says hello to the next one
            self._is_to_greet = False
            self._work()
            self._greet()
        self.world.after(SOCKET_S, self._work)
        if self.group is not None and not self.group.alive:
            self.world.after(NOTICED_S, self.lost, self.group, "peer_lost", "a peer was lost")

    def _beat(self) -> None:
        if not self.alive:
            return
        self.world.after(BEAT_S, self._beat)
        if self.is_stopped:
            return
        if self._daemon is not None:
            self._say_beat()
            if self._loading is not None:
                self._say(LoadProgress(1, 2))
        elif self.world.now - self._alone_since > ORPHAN_S * (ORPHAN_FACTOR if self._is_generating else 1.0):
            self.die("no daemon came for it")

    @property
    def computes(self) -> bool:
        return self.world.now < self.computes_until

    @property
    def _is_generating(self) -> bool:
        group = self.group
        leads = group is not None and group.workers[0] is self and bool(self.waiting)
        return group is not None and (bool(group.open) or leads)

    def _say_beat(self) -> None:
        state = "generating" if self._is_generating else "ready"
        in_step_s = self.group.in_step_s if self.group is not None else 0.0
        computing = self.computes and in_step_s > LONG_STEP_S
        self._say(Heartbeat(state, 0, in_step_s, "fast", "", 0.0, 0.0, 0.0, 0, 0, computing=computing))

    def _say(self, message: FromWorker) -> None:
        if self.is_stopped:
            self._outbox.append(message)
        elif self._daemon is not None:
            self._socket.append((self._daemon, message))
            self.world.after(SOCKET_S, self._told)

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
        is_over = bool(log) and isinstance(log[-1], Finished | RequestFailed)
        if is_over and self._daemon is not None and not self.is_stopped:
            del self._logs[request_id], self._begins[request_id]

    # --- commands -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """One after the other. Forming a group is ended early for another group, and for nothing else."""
        while self._inbox and self.alive and not self.is_stopped:
            if self.world.rendezvous.awaits(self) and self.prepared is not None:
                if not any(isinstance(message, Prepare | Abort | Leave) for message in self._inbox):
                    return
                self._give_up_forming(self.prepared, "told", "another group is wanted")
            self._act(self._inbox.pop(0))

    def _act(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._load(message)
            case Prepare():
                self._prepare(message)
            case Form(plan_hash=plan_hash, attempt=attempt, deadline_s=deadline_s):
                prepared = self.prepared
                if prepared is not None and (prepared.plan_hash, prepared.attempt) == (plan_hash, attempt):
                    self._form(prepared, deadline_s)
            case Abort(reason=reason):
                if self.group is not None:
                    group = self.group
                    group.fail("peer_lost", "a peer gave the group up", by=self)
                    self.lost(group, "told", reason)
            case Begin():
                self._begin(message)
            case Cancel(request_id=request_id):
                generation = self.waiting.get(self._orders.get(request_id, -1))
                if generation is not None:
                    generation.cancelled = True
            case Leave():
                self._leaving = True
                if self.group is not None and self.group.open:
                    self._want_pause(self.group)
                else:
                    self._leave()
            case KeepWaiting(for_s=for_s):
                self.waits_until = self.world.now + for_s
            case LinkHealth():
                pass

    def _load(self, load: Load) -> None:
        """What is in memory is not read again."""
        self._part("replaced", "another model is loaded")
        held = self.model if self.model is not None and self.model.folder == load.folder else None
        self.model, self._loading = None, load
        self.waiting, self.finished, self._orders = {}, {}, {}
        self._logs, self._begins = {}, {}
        self.loads += 1
        kept = range(max(held.first_layer, load.first_layer), min(held.last_layer, load.last_layer)) if held else ()
        wanted = load.last_layer - load.first_layer
        self._layer_s = self.world.engine_rng.uniform(*self.world.load_s) / wanted
        load_s = max(LEAST_LOAD_S, self._layer_s * (wanted - len(kept)))
        self.world.after(load_s, self._has_loaded, load)

    def _has_loaded(self, load: Load) -> None:
        if self._loading is not load or not self.alive:
            return
        if self.is_stopped:
            self.world.after(0.5, self._has_loaded, load)
            return
        self._loading = None
        if self.world.is_unreadable(self.node):
            self._say(LoadFailed(load.folder, "unreadable", "the disk cannot be read"))
            return
        self.model = load
        layers = (load.first_layer, load.last_layer)
        self._say(
            Loaded(
                load.folder, layers, TOTAL_LAYERS, "f", 1, 0.1, 4096, self._layer_s, part=load.part,
                parts=load.parts, step_costs=self.step_costs,
            )
        )  # fmt: skip

    def _prepare(self, prepare: Prepare) -> None:
        self.prepared = prepare
        if self.group is None:
            self._answer_prepare()
        else:
            self._want_pause(self.group)

    def _answer_prepare(self) -> None:
        """When the step that it computes has ended."""
        if self.computes and self.alive:
            self.world.after(STEP_END_S, self._answer_prepare)
            return
        if self.prepared is None or self.group is not None:
            return
        self._plan = (self.prepared.plan_hash, self.prepared.attempt)
        self.pause_wanted = False
        self._say(Prepared(*self._plan))

    def _want_pause(self, group: Group) -> None:
        self.pause_wanted = True
        self.world.after(PAUSE_S, self._pause_is_over, group)

    def _pause_is_over(self, group: Group) -> None:
        if self.alive and not self.is_stopped and self.group is group and self.pause_wanted:
            group.fail("deadline", "no step's end came", by=self)
            self.lost(group, "deadline", "no step's end came")

    def _form(self, prepared: Prepare, deadline_s: float) -> None:
        port = int(prepared.hosts[prepared.rank].rpartition(":")[2]) if prepared.hosts else 0
        if self.world.port_is_taken(self.node, port):
            self._give_up_forming(prepared, "listen", f"port {port} belongs to another process")
            return
        self.world.rendezvous.arrive(self, prepared)
        self.world.after(deadline_s, self._form_is_over, prepared)

    def _form_is_over(self, prepared: Prepare) -> None:
        waits = self.world.rendezvous.awaits(self)
        if self.alive and self.group is None and self.prepared is prepared and waits:
            self._give_up_forming(prepared, "deadline", "a neighbour did not come")
            self._work()

    def _give_up_forming(self, prepared: Prepare, code: str, text: str) -> None:
        self.world.rendezvous.depart(self)
        self.prepared = None
        self._say(Aborted(prepared.plan_hash, prepared.attempt, code, text, -1))

    def _begin(self, begin: Begin) -> None:
        if self.model is None:
            return
        key = begin.request.request_id
        if key not in self._logs:
            self._logs[key], self._begins[key] = [], begin
        if key in self._orders:
            known = self.finished.get(begin.order)
            if known is not None:
                self._tell_end(known)
            return
        self.world.witness.begun(self.node, begin, self.knows(begin.order))
        self._orders[key] = begin.order
        generation = Generation(begin.order, begin.request, list(begin.tokens))
        if len(generation.tokens) >= begin.request.max_tokens:
            self.waiting[begin.order] = generation
            self.finish(generation, "length")
        else:
            self.waiting[begin.order] = generation

    # --- the group's side ---------------------------------------------------------------------------------------

    def compute(self) -> None:
        """The next step of a slow rank begins, or has ended."""
        if self.step_s and not self.computed:
            self.computes_until, self.computed = self.world.now + self.step_s, True

    def joined(self, group: Group) -> None:
        self.computed = False
        self.group, self.prepared, self.pause_wanted = group, None, False
        self._say(Formed(*group.key, 0 if self.waiting else -1, self.edge_costs))
        self.world.after(0.0, self._work)

    def lost(self, group: Group, code: str, text: str) -> None:
        if self.alive and not self.is_stopped and self.group is group:
            self._part(code, text)
            if self._leaving:
                self._leave()
            elif self.prepared is not None:
                self._answer_prepare()

    def paused(self) -> None:
        if self._leaving:
            self.group = None
            self._leave()
        elif self.prepared is not None:
            self.group = None
            self._answer_prepare()
        else:
            self._part("paused", "the ranks leave the group for another plan")

    def _part(self, code: str, text: str) -> None:
        group, self.group = self.group, None
        self.pause_wanted = False
        if group is not None:
            if group.alive:
                group.fail("peer_lost", "the connection to a peer was lost", by=self)
            self._say(Aborted(*group.key, code, text, -1))

    def _leave(self) -> None:
        self._say(Left())
        self.world.after(NOTICED_S, self.die, "it left")

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

    def recall(self, order: int) -> None:
        """Another rank has not finished it: it is opened again."""
        if order in self.finished:
            self.waiting[order] = self.finished.pop(order)

    def finish(self, generation: Generation, end: End) -> None:
        self.waiting.pop(generation.order, None)
        self.finished[generation.order] = generation
        while len(self.finished) > FINISHED_KEPT:
            old = self.finished.pop(next(iter(self.finished)))
            self._orders.pop(old.request.request_id, None)
        if not generation.finished:
            generation.finished = end
            self._tell_end(generation)

    def _tell_end(self, generation: Generation) -> None:
        key = generation.request.request_id
        match generation.finished:
            case "failed":
                self._tell(key, RequestFailed(key, "empty_prompt", "there is nothing to go on from"))
            case "length" | "cancelled" as reason:
                self._tell(key, Finished(key, reason, "", 1, 0, len(generation.tokens), 0.0, 0.0))
