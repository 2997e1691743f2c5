"""A cluster in virtual time: the real driver of the engine on each node, with modelled workers and a modelled mesh.

The network loses and doubles messages. The mesh gives every node that is up each plan, some time after it changed.
The workers are those of the joint simulation (`tests/sim/engine/worker.py`). Everything that happens is noted, so
that a failure can be read as a story.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from exod.core.base.events import PeerConnected
from exod.core.engine.engine_events import (
    EngineMessageReceived,
    ModelFacts,
    ModelFound,
    PeerLost,
    PlanCommitted,
    PlanSuspended,
    WorkerGone,
    WorkerSaid,
)
from exod.core.engine.engine_messages import EngineMessage, RankPhase
from exod.core.engine_core import EngineCore
from exod.daemon_api.interface import GenerationEnd, TextDelta
from exod.engine_service.engine_driver import EngineDriver
from exod.errors import RequestError
from exod.model import Edge, Epoch, Kind, Member, MeshPlan, NodeId, path_id
from exoengine.protocol import (
    NO_EDGES,
    NOTHING_MEASURED,
    GenerationRequest,
    Leave,
    SyncSettings,
    ToWorker,
)
from tests.core.engine.engine_samples import sizes
from tests.core.engine.virtual_time import VirtualLoop
from tests.core.engine.worker_surroundings import WorkerSurroundings
from tests.sim.engine.groups import token_at
from tests.sim.engine.worker import TOTAL_LAYERS, Worker

STORY_LINES = 120


class FakeProcess:
    """Stands in for `services.workers.WorkerProcess` of one daemon."""

    def __init__(self, world: World, node: Node, host: EngineDriver) -> None:
        self._world, self._node, self._host = world, node, host
        self._connected = False
        self._ended: asyncio.Event | None = None

    @property
    def pid(self) -> int | None:
        return self._node.worker.pid if self._connected and self._node.worker else None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._world.started(self._node)
        self._ended = asyncio.Event()
        worker = self._node.worker
        if worker is not None and worker.alive:
            self._world.loop.call_later(0.05, self._connect, worker)
            return
        delay = self._world.random.uniform(0.3, 2.0)
        self._world.loop.call_later(delay, self._spawn)

    def _spawn(self) -> None:
        if self._node.host is self._host:
            worker = self._node.worker = Worker(self._world.surroundings, self._node.id, self._world.next_pid())
            worker.step_costs, worker.edge_costs = self._world.costs
            self._connect(self._node.worker)

    def _connect(self, worker: Worker) -> None:
        if self._node.host is not self._host:
            return
        if not worker.alive:
            self._gone("it ended before it was adopted")
            return
        self._connected = True
        worker.connect(lambda message: self._host.feed(WorkerSaid(message)), self._gone)

    def _gone(self, text: str) -> None:
        self._connected = False
        if self._node.host is self._host:
            self._world.ended(self._node)
            assert self._ended is not None
            self._ended.set()
            self._host.feed(WorkerGone(text))

    def wake(self) -> None:
        if self._node.worker is not None:
            self._node.worker.resume("signal")

    def tell(self, message: ToWorker) -> None:
        worker = self._node.worker
        if self._connected and worker is not None:
            self._world.note(f"{self._node.name} -> worker: {type(message).__name__} {_brief(message)}")
            worker.hear(message)

    def kill(self, text: str, at_once: bool = False) -> None:
        if self._node.worker is not None:
            self._node.worker.die(f"killed: {text}")

    async def leave(self, deadline_s: float = 10.0) -> None:
        worker, ended = self._node.worker, self._ended
        if worker is None or ended is None:
            return
        self.tell(Leave(deadline_s))
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await ended.wait()
        worker.die("it did not leave when asked")


class SimulatedHost(EngineDriver):
    """The real one, with a model that is found without a disk."""

    world: World

    async def _resolve(self, model: str) -> None:
        await asyncio.sleep(self.world.random.uniform(0.01, 0.3))
        facts = ModelFacts(model, f"/models/{model}", self.world.sizes)
        self.feed(ModelFound(facts))


@dataclass(eq=False)
class Node:
    id: NodeId
    name: str
    incarnation: int = 1_000
    host: SimulatedHost | None = None
    job: asyncio.Task[None] | None = None
    worker: Worker | None = None
    last_end: float | None = None


@dataclass(eq=False)
class Client:
    node: Node
    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    outcome: str = ""
    """`length`, `cancelled` (by itself), `lost` (its node died), or an error's code."""
    job: asyncio.Task[None] | None = None


class World:
    def __init__(self, seed: int, size: int) -> None:
        self.random = Random(seed)
        self.seed = seed
        self.loop = VirtualLoop()
        self._story: deque[str] = deque(maxlen=STORY_LINES)
        self.surroundings = WorkerSurroundings(self.loop, self.random, self.note)
        self.nodes = [Node(NodeId(f"{index + 1:016x}"), "ABCDEFGH"[index]) for index in range(size)]
        self.clients: list[Client] = []
        self.loss = 0.0
        self.rankless: set[NodeId] = set()
        """Nodes that host no rank in plans from now on."""
        self.plan: MeshPlan | None = None
        self.sizes = sizes(TOTAL_LAYERS)
        self.costs = NOTHING_MEASURED, NO_EDGES
        """What each worker measures."""
        self.memory_mib = 1
        self.parallel = "auto"
        """Of plans from now on."""
        self.choices: list[tuple[str, bool]] = []
        """What a coordinator chose, and whether any client waited for an answer then."""
        self.problems: list[str] = []
        self._epoch = 0
        self._last_due: dict[tuple[NodeId, NodeId], float] = {}
        self._pids = 100
        self.loop.set_exception_handler(self._broken)

    # --- the story ---

    @property
    def now(self) -> float:
        return self.loop.time()

    def note(self, text: str) -> None:
        self._story.append(f"{self.now - 1000:9.3f}  {text}")

    def story(self) -> str:
        return f"seed {self.seed}\n" + "\n".join(self._story)

    def _broken(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(repr(context.get("exception") or context["message"]))
        self.note(f"!! {self.problems[-1]}")

    def check(self, condition: bool, text: str) -> None:
        assert condition, f"{text}\n{self.story()}"

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def started(self, node: Node) -> None:
        self.note(f"{node.name} starts a worker")

    def ended(self, node: Node) -> None:
        node.last_end = self.now

    # --- nodes ---

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.host is not None]

    def start_daemon(self, node: Node) -> None:
        node.incarnation += 1 + int(self.now * 1000)
        host = SimulatedHost(
            EngineCore(node.id, node.incarnation, SyncSettings(), 600.0, 52420),
            Path("/nowhere"),
            {},
            send=lambda to, message: self._send(node, to, message),
            tell_all=lambda message: [
                self._send(node, other.id, message) for other in self.nodes if other is not node
            ],
            on_event=lambda kind, data: self._told(node, kind, data),
            on_change=lambda: None,
            on_model_wish=lambda model: None,
            on_ring_port=lambda port: None,
            on_edge=lambda seen: None,
            on_choice=lambda way, model, ranks: self._chosen(way),
            clock=self.loop.time,
        )
        host.world = self
        host.worker = FakeProcess(self, node, host)  # type: ignore[assignment]
        node.host = host
        node.job = self.loop.create_task(host.run())
        self.note(f"{node.name}'s daemon starts, incarnation {node.incarnation}")
        for other in self.up():
            if other is not node and other.host is not None:
                self.loop.call_later(0.1, self._connected, other, node)

    def _told(self, node: Node, kind: str, data: dict[str, object]) -> None:
        self.note(f"{node.name} tells {kind} {data}")
        if kind == "internal.error":
            self.problems.append(f"{node.name}: {data}")

    def _connected(self, one: Node, other: Node) -> None:
        if one.host is not None and other.host is not None:
            one.host.feed(PeerConnected(other.id))
            other.host.feed(PeerConnected(one.id))

    def kill_daemon(self, node: Node) -> None:
        """SIGKILL: the worker stays, clients get a closed stream."""
        assert node.job is not None
        self.note(f"{node.name}'s daemon is killed")
        host, node.host = node.host, None
        assert host is not None
        host.stop()
        node.job.cancel()
        for client in self.clients:
            if client.node is node and not client.outcome and client.job is not None:
                client.outcome = "lost"
                client.job.cancel()
        if node.worker is not None:
            node.worker.disconnect()
        for other in self.up():
            self.loop.call_later(0.3, self._lost, other, node)

    def _lost(self, at: Node, node: Node) -> None:
        if at.host is not None and node.host is None:
            at.host.feed(PeerLost(node.id))

    def _send(self, sender: Node, to: NodeId, message: EngineMessage) -> bool:
        for _ in range(2 if self.random.random() < self.loss / 2 else 1):
            if self.random.random() >= self.loss:
                due = self.now + self.random.uniform(0.001, 0.02 if self.loss else 0.002)
                if not self.loss:  # one connection keeps the order; with faults, messages change connections
                    due = max(due, self._last_due.get((sender.id, to), 0.0) + 1e-6)
                    self._last_due[sender.id, to] = due
                self.loop.call_at(due, self._deliver, sender.id, to, message)
        return True

    def _deliver(self, sender: NodeId, to: NodeId, message: EngineMessage) -> None:
        node = next(node for node in self.nodes if node.id == to)
        if node.host is not None:
            self.note(f"{self._name(sender)} -> {node.name}: {type(message).__name__} {_brief(message)}")
            node.host.feed(EngineMessageReceived(sender, message))

    def _name(self, node: NodeId) -> str:
        return next(one.name for one in self.nodes if one.id == node)

    # --- the mesh ---

    def commit(self, model: str = "m", within_s: float = 0.3) -> None:
        """All nodes that are up agree on a new plan, each at its own moment."""
        members = sorted(self.up(), key=lambda node: node.id)
        if not members:
            return
        self._epoch += 1
        ring = tuple(node.id for node in members if node.id not in self.rankless)
        plan = MeshPlan(
            epoch=Epoch(self._epoch, members[0].incarnation),
            coordinator=members[0].id,
            members=tuple(Member(node.id, node.incarnation) for node in members),
            ring=ring,
            edges=_edges(ring),
            model=model,
            split="even",
            memory_mib=(self.memory_mib,) * len(ring),
            parallel=self.parallel,
            hash=f"plan{self._epoch}",
        )
        self.plan = plan
        self.note(f"plan {plan.hash} of {[node.name for node in members]}")
        for node in members:
            self.loop.call_later(self.random.uniform(0, within_s), self._commit, node, node.incarnation, plan)

    def _commit(self, node: Node, incarnation: int, plan: MeshPlan) -> None:
        host = node.host
        if host is not None and node.incarnation == incarnation and plan is self.plan:
            self.note(f"{node.name} commits {plan.hash}")
            host.feed(PlanCommitted(plan, "a plan"))

    def _chosen(self, way: str) -> None:
        """The next plan follows it."""
        self.choices.append((way, not self.all_answered()))
        self.parallel = "tensor" if way == "tensor" else "auto"
        self.loop.call_later(0.1, self.commit)

    def suspend(self) -> None:
        """The links of the present plan break."""
        plan = self.plan
        if plan is None:
            return
        self.note(f"the links of {plan.hash} are cut")
        self.surroundings.cut_plans.add(plan.hash)
        for node in self.up():
            self.loop.call_later(self.random.uniform(0.1, 0.4), self._suspend, node, plan)

    def _suspend(self, node: Node, plan: MeshPlan) -> None:
        if node.host is not None:
            node.host.feed(PlanSuspended(plan.hash, "a link died"))

    # --- clients ---

    def ask(self, node: Node, tokens: int) -> Client:
        request = GenerationRequest(f"r{len(self.clients)}", tokens, prompt="x")
        client = Client(node, request)
        self.clients.append(client)
        client.job = self.loop.create_task(self._listen(client))
        self.note(f"a client asks {node.name} for {tokens} tokens: {request.request_id}")
        return client

    async def _listen(self, client: Client) -> None:
        assert client.node.host is not None
        stream = client.node.host.generate(client.request)
        try:
            async for delta in stream:
                if isinstance(delta, TextDelta):
                    self.check(
                        delta.index == len(client.tokens), f"{client.request.request_id}: skipped or repeated"
                    )
                    client.tokens.append(token_at(client.request.request_id, delta.index))
                    client.text += delta.text
                elif isinstance(delta, GenerationEnd):
                    client.outcome = client.outcome or delta.finish_reason
        except RequestError as error:
            client.outcome = client.outcome or error.code
        finally:
            with suppress(RuntimeError):
                await stream.aclose()
            self.note(f"{client.request.request_id} ended: {client.outcome}, {len(client.tokens)} tokens")

    def hang_up(self, client: Client) -> None:
        if not client.outcome and client.job is not None:
            self.note(f"the client of {client.request.request_id} goes away")
            client.outcome = "cancelled"
            client.job.cancel()

    # --- time ---

    def run_for(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.check(not self.problems, "; ".join(self.problems))

    def run_until(self, condition: Any, within_s: float, text: str) -> float:
        """Runs until it holds; how long that took."""
        begun = self.now
        while not condition():
            self.check(self.now - begun < within_s, f"not within {within_s} s: {text}\n{self.describe()}")
            self.run_for(0.05)
        return self.now - begun

    def all_formed(self) -> bool:
        assert self.plan is not None
        hosts = [node.host for node in self.nodes if node.id in self.plan.ring]
        return all(
            host is not None
            and host.core.plan is self.plan
            and host.core.rank.phase is RankPhase.FORMED
            and not host.core.suspended
            for host in hosts
        )

    def all_answered(self) -> bool:
        return all(client.outcome for client in self.clients)

    def is_quiet(self) -> bool:
        """Nothing is held for anybody."""
        return all(
            not host.core.rank.active
            and not host.core.scheduler.active
            and not host.core.scheduler.waiting
            and not len(host.core.clients)
            for node in self.nodes
            if (host := node.host) is not None
        )

    def describe(self) -> str:
        lines = []
        for node in self.nodes:
            if node.host is None:
                lines.append(f"{node.name}: down")
                continue
            core, worker = node.host.core, node.worker
            lines.append(
                f"{node.name}: {core.rank.phase} plan {core.plan.hash if core.plan else None} "
                f"active {list(core.rank.active)} formation {core.formation.state} "
                f"attempt {core.formation.attempt} queue {core.scheduler.waiting} "
                f"scheduler {[one.order for one in core.scheduler.active]} "
                f"waiting in worker {list(worker.waiting) if worker and worker.alive else None}"
            )
        return "\n".join(lines)

    def close(self) -> None:
        """For a test that passed: one that fails leaves the loop to be collected."""
        for client in self.clients:
            if client.job is not None:
                client.job.cancel()
        for node in self.nodes:
            if node.job is not None:
                node.job.cancel()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.loop.run_until_complete(asyncio.sleep(0.1))
        self.loop.close()


def _edges(ring: tuple[NodeId, ...]) -> tuple[Edge, ...]:
    if len(ring) < 2:
        return ()
    addresses = {node: f"10.0.0.{int(node, 16)}" for node in ring}
    pairs = zip(ring, ring[1:] + ring[:1], strict=True)
    return tuple(
        Edge(
            source,
            target,
            path_id(addresses[min(source, target)], addresses[max(source, target)]),
            "b0",
            addresses[source],
            "b0",
            addresses[target],
            52420,
            Kind.THUNDERBOLT,
        )
        for source, target in pairs
    )


def _brief(message: object) -> str:
    fields = ("phase", "plan_hash", "attempt", "step", "begun_order", "finished_order", "order", "request_id")
    inner = getattr(message, "request", None)
    name = f"{inner.request_id} " if inner is not None else ""
    return name + " ".join(f"{name}={getattr(message, name)}" for name in fields if hasattr(message, name))
