"""The virtual world: time, hosts with their clocks and state files, and the shell that a real host would have.

A Host plays the services: it sends what the core commands, answers route checks, keeps the incarnation file, drains
its inbox before timers and tells the lag, as the real shell does. The cores are the unchanged product. Each host's
monotonic clock has an offset of its own, so a stamp that crossed the wire would be nonsense at once.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from exod.core.base import events
from exod.core.base.config import CoreConfig
from exod.core.base.events import Command, Input, RingFault
from exod.core.node import NodeCore
from exod.model import ClusterWish, LocalAddress, MeshPlan, NodeCard, NodeId
from tests.sim.network import Network, Wire

KEY = bytes(range(32))
EPOCH_MS = 1_700_000_000_000
ROUTE_CHECK_S = 0.0005
RING_TURN_S = 1.0
"""A rank that does not get through says so once a second."""
WAKE_UP_S = 0.0004
"""Mean lateness of the event loop."""
STORY_LINES = 400
MODEL = "embedded:count"
RING_PORT = 52420
_NEWS = (events.Emit, events.CommitPlan, events.SuspendPlan, events.PersistEpoch, events.RaiseIncarnation)
"""Commands after which a daemon looks at its mesh again and tells its engine what follows."""


class EngineSide(Protocol):
    """The engine's part of a host: it follows the daemon's life and the mesh."""

    def started(self) -> None: ...
    def killed(self) -> None: ...
    def frozen(self, asleep: bool) -> None: ...
    def thawed(self) -> None: ...
    def connected(self, event: events.PeerConnected) -> None: ...
    def peer_card(self, card: NodeCard) -> None: ...
    def committed(self, plan: MeshPlan, reason: str) -> None: ...
    def suspended(self, plan_hash: str, reason: str) -> None: ...
    def mesh_changed(self) -> None: ...
    def message(self, sender: NodeId, message: Any) -> None: ...


class NoEngine:
    """A host of which only the mesh is simulated."""

    def started(self) -> None:
        pass

    def killed(self) -> None:
        pass

    def frozen(self, asleep: bool) -> None:
        pass

    def thawed(self) -> None:
        pass

    def connected(self, event: events.PeerConnected) -> None:
        pass

    def peer_card(self, card: NodeCard) -> None:
        pass

    def committed(self, plan: MeshPlan, reason: str) -> None:
        pass

    def suspended(self, plan_hash: str, reason: str) -> None:
        pass

    def mesh_changed(self) -> None:
        pass

    def message(self, sender: NodeId, message: Any) -> None:
        pass


class Host:
    """One machine: its addresses, its clock, its state file, and the daemon's life on it."""

    def __init__(self, world: World, place: int, *, engine: bool = True) -> None:
        self.world = world
        self.place = place
        self.name = f"studio{place + 1}"
        self.id = NodeId(f"{place + 1:016x}")
        self.engine = engine
        """Does its card offer to host a rank?"""
        self.engine_side: EngineSide = NoEngine()
        self.model = MODEL
        """What its configuration names."""
        self.wish: ClusterWish | None = None
        """The newest command that it knows; kept on its disk."""
        self.hosted = ""
        self.found: str | None = None
        """The model that it has found, whose sizes its card tells; None where only the mesh is simulated."""
        self.ring_port = RING_PORT
        self.unfit = ""
        """Why it cannot serve as a rank, as its card says."""
        self.addresses: list[LocalAddress] = []
        self.hidden: set[str] = set()
        """Addresses that are lost just now."""
        self.clock_offset_s = world.rng.uniform(0.0, 1e6)
        self.wall_offset_ms = 0
        self.saved_incarnation = 0
        self.saved_epoch = 0
        self.routes: dict[str, str | None] = {}
        """Remote address -> where an unbound connect leaves from, where that is wrong."""
        self.core: NodeCore | None = None
        self.life = 0
        self.frozen_since: float | None = None
        self.asleep = False
        self.stirred_at = -1e9
        """When it last was frozen, asleep or started: silence about then is explained."""
        self.running: str | None = None
        self._inbox: deque[Input] = deque()
        self._timer_at = -1.0

    def local(self, now: float) -> float:
        return now + self.clock_offset_s

    @property
    def wall_ms(self) -> int:
        return EPOCH_MS + int(self.world.now * 1e3) + self.wall_offset_ms

    @property
    def card(self) -> NodeCard:
        found = (self.hosted or self.model) if self.found is None else self.found
        shown = tuple(one for one in self.addresses if one.address not in self.hidden)
        return NodeCard(
            id=self.id,
            name=self.name,
            incarnation=self.saved_incarnation,
            version="0",
            mesh_port=52410,
            ring_port=self.ring_port,
            api_port=52415,
            addresses=shown,
            engine=self.engine,
            memory_mib=1024,
            model=self.model,
            wish=self.wish,
            hosted=self.hosted,
            unfit=self.unfit,
            found_model=found,
            found_mib=1 if found else 0,
        )

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self, *, file: str = "kept") -> None:
        """`file`: "kept", "lost", or "old" (restored from a backup). Where one runs, a second refuses:
        the folder is taken.
        """
        if self.core is not None:
            return
        world = self.world
        if file == "lost":
            self.saved_incarnation = self.saved_epoch = 0
            self.wish = None
        elif file == "old":
            self.saved_incarnation = max(0, self.saved_incarnation - 3)
        if self.wish is not None:
            self.wish = msgspec.structs.replace(self.wish, draining=False)
        self.saved_incarnation = max(self.saved_incarnation + 1, self.wall_ms)
        self.life += 1
        self.hosted, self.ring_port, self.unfit = "", RING_PORT, ""
        self.found = None if self.found is None else ""
        self.frozen_since = None
        self.asleep = False
        self.stirred_at = world.now
        self._inbox.clear()
        self._timer_at = -1.0
        seed = world.rng.getrandbits(32)
        self.core = NodeCore(self.card, KEY, world.config, "linux", seed, self.saved_epoch, self.local(world.now))
        world.tell(self, f"starts, incarnation {self.saved_incarnation}, state file {file}")
        world.reborn(self)
        self.engine_side.started()
        self._arm()

    def crash(self) -> None:
        self.core = None
        self.running = None
        self.stirred_at = self.world.now
        self.world.tell(self, "crashes")
        self.engine_side.killed()
        self.world.control.dropped(self)

    def freeze(self, asleep: bool = False) -> None:
        if self.core is None or self.frozen_since is not None:
            return
        self.frozen_since = self.world.now
        self.asleep = asleep
        self.stirred_at = self.world.now
        self.world.tell(self, "sleeps" if asleep else "is stopped")
        self.engine_side.frozen(asleep)

    def thaw(self, *, told: bool = True) -> None:
        """Not `told`: the shell does not know that it stood still, and the timer comes before what waits."""
        if self.core is None or self.frozen_since is None:
            return
        lag = self.world.now - self.frozen_since
        self.frozen_since = None
        self.asleep = False
        self.stirred_at = self.world.now
        self.world.tell(self, f"goes on after {lag:.2f} s")
        if told:
            self._feed(events.LoopLagged(lag))
        else:
            self._on_timer(self.life, self.world.now, True)
        while self._inbox and self.core is not None:
            self._feed(self._inbox.popleft())
        self._on_timer(self.life, self.world.now, True)
        self.engine_side.thawed()

    # --- the shell ----------------------------------------------------------------------------------------------

    def take(self, event: Input) -> None:
        """An input arrives; a stopped daemon finds it in its socket later, a sleeping host never."""
        if self.core is None or self.asleep:
            return
        if self.frozen_since is not None:
            if len(self._inbox) < 2_000:
                self._inbox.append(event)
            return
        self._feed(event)

    def _feed(self, event: Input) -> None:
        core = self.core
        if core is None:
            return
        if type(event) is events.PeerCardReceived:
            self.engine_side.peer_card(event.card)
        now = self.local(self.world.now)
        checker = self.world.checker
        mark = checker.before(self, event)
        commands = core.handle(event, now)
        self._carry_out(commands)
        if type(event) is events.PeerConnected:
            self.engine_side.connected(event)
        checker.after(self, event, commands, mark)
        self._arm()

    def _on_timer(self, life: int, at: float, forced: bool = False) -> None:
        if life != self.life or self.core is None or self.frozen_since is not None:
            return
        if not forced and at != self._timer_at:
            return
        self._timer_at = -1.0
        mark = self.world.checker.before(self, None)
        commands = self.core.handle_timer(self.local(self.world.now))
        self._carry_out(commands)
        self.world.checker.after(self, None, commands, mark)
        self._arm()

    def _arm(self) -> None:
        if self.core is None:
            return
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        at = max(deadline - self.clock_offset_s, self.world.now) + WAKE_UP_S * self.world.rng.random()
        if 0.0 <= self._timer_at <= at:
            return
        self._timer_at = at
        self.world.at(at, self._on_timer, self.life, at)

    def _carry_out(self, commands: list[Command]) -> None:
        world = self.world
        if any(isinstance(command, _NEWS) for command in commands):
            self.engine_side.mesh_changed()
        for command in commands:
            match command:
                case events.SendDatagram():
                    self._send_datagram(command)
                case events.SendMessage():
                    world.messages += 1
                    world.control.send(self, command.peer, command.message)
                case events.CheckRoute():
                    local = command.path.split("-")[0 if self.id < command.peer else 1]
                    leaves_from = self.routes.get(command.remote_address, local)
                    answer = events.RouteChecked(command.peer, command.path, leaves_from)
                    world.after(ROUTE_CHECK_S, self.take_of_life, self.life, answer)
                case events.Emit():
                    world.told_event(self, command.event)
                case events.CommitPlan():
                    self.running = command.plan.hash
                    world.committed.add(command.plan.epoch.number)
                    world.after(RING_TURN_S, self._ring_turn, self.life, command.plan)
                    world.tell(
                        self,
                        f"COMMITS {command.plan.hash[:6]} epoch {command.plan.epoch.number}: "
                        f"{command.reason}; agreed in {command.agree_ms:.0f} ms",
                    )
                    self.engine_side.committed(command.plan, command.reason)
                case events.SuspendPlan():
                    self.running = None
                    world.tell(self, f"suspends {command.plan_hash[:6]}: {command.reason}")
                    self.engine_side.suspended(command.plan_hash, command.reason)
                case events.PersistEpoch():
                    self.saved_epoch = max(self.saved_epoch, command.number)
                case events.RaiseIncarnation():
                    self.saved_incarnation = max(self.saved_incarnation, command.seen) + 1
                    world.tell(self, f"jumps to incarnation {self.saved_incarnation}")
                    world.after(0.002, self.show_card, self.life)
                case events.LogRejected():
                    world.rejected[command.code] = world.rejected.get(command.code, 0) + 1

    def _ring_turn(self, life: int, plan: MeshPlan) -> None:
        """What this node's rank meets on its connection to the next one, as long as it runs by the plan."""
        if life != self.life or self.running != plan.hash:
            return
        for edge in plan.edges:
            if edge.source == self.id:
                wire = self.world.network.wires[edge.source_address, edge.target_address]
                back = self.world.network.wires[edge.target_address, edge.source_address]
                fault = (
                    RingFault.SILENT if wire.cut else wire.ring if wire.ring is not RingFault.MOVED else back.ring
                )
                moved = 65_536 if fault is RingFault.MOVED else 1_448
                self.take(events.RingEvidence(plan.hash, edge.target, fault, moved, moved / 1e6 / wire.mb_per_s))
        self.world.after(RING_TURN_S, self._ring_turn, life, plan)

    def take_of_life(self, life: int, event: Input) -> None:
        if life == self.life:
            self.take(event)

    def take_engine_message(self, life: int, sender: NodeId, message: Any) -> None:
        if life == self.life and self.core is not None and not self.asleep:
            self.engine_side.message(sender, message)

    def show_card(self, life: int) -> None:
        """This node's card changed: hand it to the core and to every connected peer."""
        if life != self.life or self.core is None:
            return
        if self.frozen_since is not None:
            self.world.after(0.1, self.show_card, life)
            return
        self._feed(events.CardChanged(self.card))
        self.world.control.spread_card(self)

    def _send_datagram(self, command: events.SendDatagram) -> None:
        world = self.world
        now = self.local(world.now)
        self.core.handle(events.DatagramSent(command.path, command.peer, command.seq, now), now)
        world.datagrams += 1
        wire = world.network.wires.get((command.local_address, command.remote_address))
        if wire is None or command.local_address in self.hidden:
            return
        target = world.by_address[command.remote_address]
        world.recorded(command)
        for delay in wire.arrivals(world.rng):
            world.after(delay + command.delay_s, target.arrive, command, target.life)

    def arrive(self, command: events.SendDatagram, life: int) -> None:
        if command.remote_address in self.hidden or life != self.life:
            return
        self.take(
            events.DatagramReceived(
                command.remote_address, command.local_address, command.data, self.local(self.world.now)
            )
        )


class World:
    """Time and everything in it. `checker` sees every input and what came of it."""

    def __init__(
        self, seed: int, nodes: int, *, config: CoreConfig | None = None, engines: int | None = None
    ) -> None:
        from tests.sim.control_plane import ControlPlane
        from tests.sim.invariants import Checker

        self.seed = seed
        self.rng = random.Random(seed)
        self.config = config or CoreConfig()
        self.now = 0.0
        self.network = Network()
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.committed: set[int] = set()
        """The epochs whose plan some node has committed."""
        self.rejected: dict[str, int] = {}
        self.datagrams = 0
        self.messages = 0
        self.steps = 0
        self.tape: deque[events.SendDatagram] = deque(maxlen=200)
        self.hosts = [Host(self, place, engine=engines is None or place < engines) for place in range(nodes)]
        self.by_id = {host.id: host for host in self.hosts}
        self.by_address: dict[str, Host] = {}
        self.control = ControlPlane(self)
        self.checker = Checker(self)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ticket = 0

    # --- time ---------------------------------------------------------------------------------------------------

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        self._ticket += 1
        heapq.heappush(self._queue, (time, self._ticket, call, arguments))

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, call, *arguments)

    def run(self, until: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= until:
            time, _, call, arguments = heapq.heappop(queue)
            if time > self.now:
                self.now = time
            self.steps += 1
            call(*arguments)
        self.now = until

    def run_while(self, wanted: Callable[[], bool], within: float) -> bool:
        """Run until `wanted` is true, at most `within` seconds. Returns whether it came true."""
        end = self.now + within
        while not wanted():
            if self.now >= end:
                return False
            self.run(min(end, self.now + 0.05))
        return True

    # --- what the world tells -----------------------------------------------------------------------------------

    def tell(self, host: Host | None, text: str) -> None:
        self.story.append(f"{self.now:9.3f}  {'' if host is None else host.name:<8} {text}")

    def told_event(self, host: Host, event: Any) -> None:
        data = event.data
        subject = data.get("peer_name") or data.get("name") or event.subject
        shown = {
            key: value
            for key, value in data.items()
            if key in ("from", "to", "interface", "rtt_ms", "reason", "cause") and value is not None
        }
        words = " ".join(
            f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}" for key, value in shown.items()
        )
        if event.type != "mesh.agreed":
            self.tell(host, f"{event.type} {subject} {words}")

    def recorded(self, command: events.SendDatagram) -> None:
        """What an eavesdropper could play again."""
        if self.rng.random() < 0.02:
            self.tape.append(command)

    def reborn(self, host: Host) -> None:
        self.checker.reborn(host)

    # --- geography ----------------------------------------------------------------------------------------------

    def ways(self, one: Host, other: Host) -> Iterable[tuple[str, str]]:
        """Address pairs that are wired, cable first."""
        for mine in one.addresses:
            for theirs in other.addresses:
                if (mine.address, theirs.address) in self.network.wires:
                    yield mine.address, theirs.address

    def carries(self, way: tuple[str, str]) -> bool:
        """Does a connection between these two addresses get anything through?"""
        ends = [self.by_address[address] for address in way]
        if any(end.asleep or address in end.hidden for end, address in zip(ends, way, strict=True)):
            return False
        return not any(wire.cut or wire.loss > 0.5 for wire in self.network.both(*way))

    def wires(self) -> Iterable[tuple[tuple[str, str], Wire]]:
        return self.network.wires.items()
