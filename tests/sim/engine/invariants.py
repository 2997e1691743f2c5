"""What must hold of the engine after every event, against what the world knows to be true.

E1  every accepted request ends exactly once: with an answer, a refusal, or an error that has a cause
E2  no token is lost, doubled or changed on its way to a client
E3  orders only rise, and one order names one generation
E4  ranks that run together share a plan, an attempt and a model, and hold each layer once
E5  no request waits for ever once faults stop (judged in scenarios.py)
E6  queues stay within their bounds
E7  after peace every node holds the newest command, and the plan hosts its model (judged in scenarios.py)
E8  with faults that stay, where nodes are left that can serve, requests are served within a bound (fixed_faults.py)
E9  with faults that stay the number of plans is bounded (fixed_faults.py)
E11 no node answers messages with ever more messages
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from exod.core.engine import engine_events as events
from exod.core.engine.client_requests import MAX_PENDING
from exod.core.engine.engine_events import EngineCommand, EngineInput
from exod.core.engine.engine_messages import BeginRequest, RankPhase, RankStatus, client_id
from exod.core.engine.rank.held_requests import DEATHS_LIMIT
from exod.core.engine.request_progress import HUNG_LIMIT
from exod.core.engine.request_queue import MAX_WAITING
from exod.model import NodeId
from exoengine.protocol import Begin, GenerationRequest, Prepare
from tests.sim.engine.groups import BAD_PROMPT, GroupKey, token_at
from tests.sim.engine.worker import TOTAL_LAYERS

if TYPE_CHECKING:
    from tests.sim.engine.clients import Client, Delivery
    from tests.sim.engine.engine_host import EngineHost
    from tests.sim.engine.joint_world import JointWorld
    from tests.sim.engine.worker import Worker
    from tests.sim.world import Host

MAX_DUE = 50
"""So many turns of the timer without a pause are a loop."""

MOST_MESSAGES = 1000
"""To single nodes in a second. In eighty scenarios no node sent more than 126; two that answered each other came to
more than this within 20 ms.
"""


class EngineChecker:
    def __init__(self, world: JointWorld) -> None:
        self.world = world
        self.tokens = 0
        """Delivered to clients."""
        self.most_at_once = 0
        """Requests that one group had open."""
        self.groups = 0
        self.generations: dict[str, set[int]] = defaultdict(set)
        """Client's request -> orders under which ranks opened it."""
        self.models: set[str] = set()
        """Of all plans that were committed."""
        self.was_drained = self.was_slow = False
        self.deaths = 0
        """Of workers."""
        self.hung_groups = 0
        """In which a step passed its deadline."""
        self._names: dict[int, str] = {}
        """Order -> generation."""
        self._given: dict[NodeId, int] = {}
        """The last order that a coordinator's life gave."""
        self._told: dict[NodeId, RankStatus] = {}
        """The last status of each life of a node."""
        self._shapes: dict[str, dict[int, tuple[NodeId, int]]] = defaultdict(dict)
        """Plan -> rank -> node, size."""
        self._due: dict[NodeId, int] = defaultdict(int)
        self._sent: dict[NodeId, tuple[int, int]] = defaultdict(lambda: (0, 0))
        """A second of the world's time, and how many messages to single nodes the node sent in it."""

    def reborn(self, engine_host: EngineHost) -> None:
        self._told.pop(engine_host.host.id, None)

    # --- after each event of a core -----------------------------------------------------------------------------

    def after(self, engine_host: EngineHost, event: EngineInput | None, commands: list[EngineCommand]) -> None:
        host, core = engine_host.host, engine_host.core
        if core is None:
            return
        self._count_sent(host, sum(isinstance(command, events.SendTo) for command in commands))
        for command in commands:
            match command:
                case events.SendTo(node=node, message=message):
                    if node == host.id:
                        self._broken(host, "a core sends to its own node through the network")
                    if isinstance(message, BeginRequest):
                        self._named(host, message.order, message.request.request_id)
                        self._is_right(host, message.request.request_id, message.tokens)
                case events.TellAll(message=RankStatus() as status):
                    self._reported(engine_host, status)
                case events.TellWorker(message=Begin() as begin):
                    self._named(host, begin.order, begin.request.request_id)
        self._check_bounds(engine_host)
        if event is None:
            self._check_progress(engine_host)

    def _count_sent(self, host: Host, messages: int) -> None:
        second, before = self._sent[host.id]
        sent = messages + (before if second == int(self.world.now) else 0)
        self._sent[host.id] = int(self.world.now), sent
        if sent > MOST_MESSAGES:
            self._broken(host, f"E11: {sent} messages in a second")

    def _reported(self, engine_host: EngineHost, status: RankStatus) -> None:
        host, before = engine_host.host, self._told.get(status.sender)
        self._told[status.sender] = status
        if before is not None:
            if status.seq <= before.seq:
                self._broken(host, f"E3: status {status.seq} after {before.seq}")
            for field in ("begun_order", "finished_order"):
                if getattr(status, field) < getattr(before, field):
                    self._broken(
                        host, f"E3: {field} fell from {getattr(before, field)} to {getattr(status, field)}"
                    )
        if status.finished_order > status.begun_order:
            self._broken(host, f"E3: finished {status.finished_order}, begun {status.begun_order}")
        if status.phase is RankPhase.FORMED and status.plan_hash:
            worker = engine_host.worker
            group = worker.group if worker is not None else None
            if group is not None and group.key != (status.plan_hash, status.attempt):
                self._broken(host, f"E4: reports {status.plan_hash}/{status.attempt}, and stands in {group.key}")

    def _check_bounds(self, engine_host: EngineHost) -> None:
        core, host = engine_host.core, engine_host.host
        assert core is not None
        asked = len(self.world.clients)
        if core.scheduler.waiting > MAX_WAITING + asked:
            self._broken(host, f"E6: {core.scheduler.waiting} requests wait")
        if len(core.clients) > min(asked, MAX_PENDING):
            self._broken(host, f"E6: {len(core.clients)} requests of {asked} that were asked are pending")
        # Those under way, and those of another coordinator whose ends were lost.
        if len(core.rank.active) > 2 * self.world.serving.max_concurrent:
            self._broken(host, f"E6: the rank holds {list(core.rank.active)}")
        accepted = [name for name, client in engine_host.clients.items() if client.accepted]
        dropped = [name for name in accepted if not core.clients.waits_for(name)]
        if dropped or len(accepted) != len(core.clients):
            self._broken(
                host, f"E1: {accepted} have no end, and the core waits for {len(core.clients)}, not {dropped}"
            )

    def _check_progress(self, engine_host: EngineHost) -> None:
        core, host = engine_host.core, engine_host.host
        assert core is not None
        deadline = core.next_deadline()
        if deadline is None or deadline > host.local(self.world.now):
            self._due[host.id] = 0
            return
        self._due[host.id] += 1
        if self._due[host.id] > MAX_DUE:
            self._broken(host, f"what is due stays due: the event loop would spin: {self.world.engine_states()}")

    # --- clients: E1, E2 ----------------------------------------------------------------------------------------

    def delivered(self, engine_host: EngineHost, client: Client | None, delivery: Delivery) -> None:
        host = engine_host.host
        if client is None:
            self._broken(host, f"E1: {type(delivery).__name__} for {delivery.request_id}, which has ended")
        elif isinstance(delivery, events.DeliverToken):
            self.tokens += 1
            index, token = delivery.token.index, delivery.token
            if index != len(client.tokens):
                self._broken(host, f"E2: {client.name} is given token {index} after {len(client.tokens)} tokens")
            if (token.token, token.text) != (token_at(client.name, index), f"{token_at(client.name, index)} "):
                self._broken(host, f"E2: token {index} of {client.name} was changed")
        elif isinstance(delivery, events.DeliverEnd):
            if delivery.end.reason != "length":
                self._broken(host, f"E1: {client.name} ended as {delivery.end.reason}, and its client waits")
            if len(client.tokens) != client.request.max_tokens:
                text = f"{len(client.tokens)} tokens of {client.request.max_tokens}"
                self._broken(host, f"E2: {client.name} ended after {text}")
        elif isinstance(delivery, events.DeliverError) and not self._has_cause(client, delivery.code):
            self._broken(host, f"E1: {client.name} ended without a cause: {delivery.code}: {delivery.text}")

    def _has_cause(self, client: Client, code: str) -> bool:
        match code:
            case "empty_prompt":
                return client.request.prompt == BAD_PROMPT
            case "model_changed":
                return len(self.models) > 1
            case "client_too_slow":
                return client.stopped_reading
            case "draining":
                return self.was_drained
            case "too_slow":
                return self.was_slow and self.world.now - client.asked_at >= self.world.recovery_deadline_s
            case "step_failed":
                return self.hung_groups >= HUNG_LIMIT
            case "recovery_failed":
                return self.world.now - client.asked_at >= self.world.recovery_deadline_s
            case "request_given_up":
                return self.deaths >= DEATHS_LIMIT
            case "not_ready":  # no process lived, or no node could load the model
                return self.deaths > 0 or self.world.loads_failed.total() + self.world.searches_failed > 0
            case "queue_full":
                return len(self.world.clients) > MAX_WAITING
            case _:
                return False

    # --- orders: E3 ---------------------------------------------------------------------------------------------

    def begun(self, node: NodeId, begin: Begin, is_known: bool) -> None:
        """A worker is given a request that it does not know. `is_known`: does it know the order?"""
        host, name = self.world.by_id[node], begin.request.request_id
        if is_known:
            self._broken(host, f"E3: the worker is given order {begin.order} by another name")
        self._named(host, begin.order, name)
        self._is_right(host, name, begin.tokens)

    def _named(self, host: Host, order: int, generation: str) -> None:
        known = self._names.setdefault(order, generation)
        if known != generation:
            self._broken(host, f"E3: order {order} names {known} and {generation}")

    def _is_right(self, host: Host, generation: str, tokens: tuple[int, ...]) -> None:
        if any(token != token_at(generation, index) for index, token in enumerate(tokens)):
            self._broken(host, f"E2: {generation} is begun with tokens of another answer")

    def opened(self, order: int, requests: list[GenerationRequest]) -> None:
        names = {request.request_id for request in requests}
        if len(names) != 1:
            self.world.broken(None, f"E3: ranks know different requests by order {order}: {names}")
        self.generations[client_id(requests[0].request_id)].add(order)
        group = self.world.rendezvous.newest
        if group is not None:
            self.most_at_once = max(self.most_at_once, len(group.open))
            if len(group.open) > self.world.serving.max_concurrent:
                self.world.broken(None, f"E6: the ranks have opened {sorted(group.open)} at once")

    # --- groups: E4 ---------------------------------------------------------------------------------------------

    def died(self) -> None:
        self.deaths += 1

    def hung(self) -> None:
        self.hung_groups += 1

    def arrived(self, node: NodeId, prepare: Prepare) -> None:
        host = self.world.by_id[node]
        shape = self._shapes[prepare.plan_hash]
        known = shape.setdefault(prepare.rank, (host.id, prepare.size))
        if known != (host.id, prepare.size):
            self._broken(host, f"E4: two nodes are rank {prepare.rank} of {prepare.plan_hash}: {known}, {host.id}")
        if prepare.size > 1 and prepare.connect_from not in [one.address for one in host.addresses]:
            self._broken(host, f"E4: is to connect from {prepare.connect_from!r}, which is not its own")

    def formed(self, key: GroupKey, workers: list[Worker]) -> None:
        self.groups += 1
        names = ", ".join(self.world.by_id[worker.node].name for worker in workers)
        self.world.note(None, f"group {key[0][:6]}/{key[1]} stands: {names}")
        prepares = [worker.prepared for worker in workers]
        if any(one is None or (one.plan_hash, one.attempt) != key for one in prepares):
            self.world.broken(None, f"E4: a group of different plans: {prepares}")
        loads = [worker.model for worker in workers]
        ends = [0, *(load.last_layer for load in loads if load is not None)]
        starts = [*(load.first_layer for load in loads if load is not None), TOTAL_LAYERS]
        if starts != ends or len({load.folder for load in loads if load is not None}) != 1:
            self.world.broken(None, f"E4: a group whose ranks hold {loads}")

    def _broken(self, host: Host, text: str) -> None:
        self.world.broken(host, text)
