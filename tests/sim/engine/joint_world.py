"""The virtual world with engines: every host runs a NodeCore and an EngineCore, and has a worker and clients.

All that the engine's side draws comes from a generator of its own, so a seed's mesh behaves as it does alone for as
long as the engine tells it nothing.
"""

from __future__ import annotations

import random
from collections import Counter

from exod.core.base.cluster_wish import hosted_model
from exod.core.base.events import RingFault
from exod.core.engine.engine_messages import RankPhase
from exod.model import NodeId
from exoengine.protocol import DEFAULT_SERVING, GenerationRequest, Serving
from tests.sim.engine.clients import Client
from tests.sim.engine.engine_host import EngineHost
from tests.sim.engine.groups import GroupKey, Rendezvous
from tests.sim.engine.invariants import EngineChecker
from tests.sim.invariants import InvariantBrokenError
from tests.sim.maps import wire_up
from tests.sim.network import MEDIA, Medium
from tests.sim.world import Host, World

NOT_TOLD = frozenset({"engine.sync"})


class JointWorld(World):
    def __init__(
        self,
        seed: int,
        nodes: int,
        *,
        media: tuple[Medium, ...] = MEDIA,
        engines: int | None = None,
        recovery_deadline_s: float = 600.0,
        load_s: tuple[float, float] = (0.3, 3.0),
        serving: Serving = DEFAULT_SERVING,
    ) -> None:
        super().__init__(seed, nodes, engines=engines)
        self.engine_rng = random.Random(seed * 1_000_003 + 17)
        self.recovery_deadline_s = recovery_deadline_s
        self.load_s = load_s
        self.serving = serving
        self.power_loss = 0.0
        """How often a daemon's death is that of its whole machine."""
        self.message_loss = 0.0
        """Of the engine's messages, beside what the network loses; some come twice or late then."""
        self.ports: dict[NodeId, set[int]] = {}
        """Ring ports that another process holds."""
        self.unreadable: set[NodeId] = set()
        """Whose disk cannot be read: a load fails."""
        self.loads_failed: Counter[NodeId] = Counter()
        self.missing: set[NodeId] = set()
        """Where no model is found."""
        self.searches_failed = 0
        self.search_s: dict[NodeId, float] = {}
        """How long a search takes where that is not a moment: a large folder on a slow disk, a download."""
        self.full: set[NodeId] = set()
        """Where no process can be started."""
        self.clients: list[Client] = []
        self._pids = 100
        self.witness = self.engine_checker = EngineChecker(self)
        self.rendezvous = Rendezvous(self)
        self.engine_hosts = [EngineHost(self, host) for host in self.hosts]
        for host, engine_host in zip(self.hosts, self.engine_hosts, strict=True):
            host.engine_side = engine_host
        wire_up(self, media)

    # --- what the machines are like -----------------------------------------------------------------------------

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def port_is_taken(self, node: NodeId, port: int) -> bool:
        return port in self.ports.get(node, ())

    def is_unreadable(self, node: NodeId) -> bool:
        self.loads_failed[node] += node in self.unreadable
        return node in self.unreadable

    def is_missing(self, host: Host) -> bool:
        self.searches_failed += host.id in self.missing
        return host.id in self.missing

    def cannot_start(self, host: Host) -> bool:
        return host.id in self.full

    def group_carries(self, key: GroupKey, ways: list[tuple[str, str]]) -> bool:
        """Probes may pass a wire that carries nothing of the ring."""
        wires = (wire for way in ways for wire in self.network.both(*way))
        return all(self.carries(way) for way in ways) and all(wire.ring is RingFault.MOVED for wire in wires)

    def has_lost_address(self, ways: list[tuple[str, str]]) -> bool:
        return any(address in self.by_address[address].hidden for way in ways for address in way)

    def ring_delay_s(self, ways: list[tuple[str, str]]) -> float:
        return sum(self.network.wires[way].delay_s for way in ways)

    # --- the story ----------------------------------------------------------------------------------------------

    def note(self, node: NodeId | None, text: str) -> None:
        self.tell(None if node is None else self.by_id[node], text)

    def told_engine_event(self, host: Host, kind: str, data: dict[str, object]) -> None:
        if kind not in NOT_TOLD:
            self.tell(host, f"{kind} {' '.join(f'{key}={value}' for key, value in data.items())}")

    def broken(self, host: Host | None, text: str) -> None:
        raise InvariantBrokenError(self, f"{host.name}: {text}" if host is not None else text)

    # --- clients ------------------------------------------------------------------------------------------------

    def ask(self, place: int, tokens: int, *, prompt: str = "x", reads_every_s: float = 0.0) -> Client:
        request = GenerationRequest(f"r{len(self.clients)}", tokens, prompt=prompt)
        return self.engine_hosts[place].ask(request, reads_every_s=reads_every_s)

    # --- where it stands ----------------------------------------------------------------------------------------

    def all_formed(self) -> bool:
        """All hosts follow one plan, which names them all, and its ranks stand in one group."""
        plans = {host.running for host in self.hosts}
        if len(plans) != 1 or None in plans:
            return False
        for engine_host in self.engine_hosts:
            core = engine_host.core
            if core is None or core.plan is None or core.suspended or core.plan.hash not in plans:
                return False
            if len(core.plan.members) != len(self.hosts):
                return False
            if engine_host.host.id in core.plan.ring and core.rank.phase is not RankPhase.FORMED:
                return False
        return True

    def has_one_will(self) -> bool:
        """Every node holds the same newest command, follows it, and the plan hosts its model."""
        if len({host.wish for host in self.hosts}) != 1:
            return False
        cards = {host.id: host.card for host in self.hosts}
        for engine_host in self.engine_hosts:
            core, wish = engine_host.core, engine_host.host.wish
            if core is None or core.plan is None:
                return False
            if core.scheduler.draining != (wish is not None and wish.draining):
                return False
            if core.plan.model != hosted_model(cards[core.plan.coordinator], cards.values()):
                return False
        return True

    def all_answered(self) -> bool:
        return all(client.outcome for client in self.clients)

    def is_quiet(self) -> bool:
        """Nothing is held for anybody."""
        return all(
            core.is_drained and not core.scheduler.active and not len(core.clients)
            for engine_host in self.engine_hosts
            if (core := engine_host.core) is not None
        )

    def engine_states(self) -> str:
        lines = []
        for engine_host in self.engine_hosts:
            core, worker, name = engine_host.core, engine_host.worker, engine_host.host.name
            if core is None:
                lines.append(f"\n  {name}: no daemon")
                continue
            active = [begin.order for begin in core.scheduler.active]
            waiting = list(worker.waiting) if worker is not None and worker.alive else None
            lines.append(
                f"\n  {name}: {core.rank.phase} plan {core.plan.hash[:6] if core.plan else None} {core.suspended} "
                f"trouble {core.trouble()!r} failure {core.rank.model.failure} active {list(core.rank.active)} "
                f"begun {core.rank.requests.begun_order} "
                f"formation {core.formation.state} attempt {core.formation.attempt} "
                f"queue {core.scheduler.waiting} active {active} "
                f"clients {len(core.clients)}; its worker has {waiting}"
            )
        open_ones = [client.name for client in self.clients if not client.outcome]
        return f"{''.join(lines)}\n  without an end: {open_ones}"
