"""Joint scenarios whose faults stay. Where nodes are left that can serve, every request is served within a bound.

The invariant of liveness (design.md, 14), of mesh and engine together: cables that pass every probe and nothing of
the ring, nodes on which no process can start, nodes that cannot load their layers, nodes without power, ranks that
compute each step for longer than a step's deadline. At least one node stays well, and Ethernet carries all that
cables do not. E8 and E9 are judged here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

from exod.core.base.events import RingFault
from tests.sim.engine.clients import Client
from tests.sim.engine.joint_world import JointWorld
from tests.sim.engine.scenarios import expect_right
from tests.sim.invariants import InvariantBrokenError
from tests.sim.network import CABLE, LAN

FAULTS_AT_S = 8.0
DEADLINE_S = 60.0
"""`engine.recovery_deadline_s`."""
SERVED_WITHIN_S = 90.0
"""A node leaves the ring: three starts that fail (5 s), another coordinator (1.5 s, twice), a silent rank's machine
(4 s), loading its layers (3 s), forming (10 s where a rank is missing); then a dozen slow steps. Most need 10 s."""
WATCHED_S = 35.0
"""From then on nothing is new. A path that failed the ring is proven again meanwhile, once or twice."""
PLANS = 2
"""So many at most, and two for each fault of the ring: it comes back to a path, and leaves it again. Where two
edges fail in the same millisecond, epochs are proposed that the next one overtakes: one by each node at most."""
TOKENS = 4
SLOW_STEP_S = 6.0
"""Beyond the deadline of a step."""
RING_FAULTS = (RingFault.SILENT, RingFault.UNANSWERED, RingFault.REFUSED)


@dataclass(frozen=True)
class FixedOutcome:
    seed: int
    faults: tuple[str, ...]
    served_after_s: float
    groups: int
    epochs: int
    """With a plan that was committed."""


def run_fixed(seed: int) -> FixedOutcome:
    """Raises InvariantBrokenError with its story."""
    world, rng = begin(seed)
    nodes = len(world.hosts)
    world.run(FAULTS_AT_S)
    in_mid_answer = world.ask(rng.randrange(nodes), 100)
    world.run(world.now + 1.0)
    names, dead = break_some(world, rng, nodes)
    world.tell(None, f"from now on: {', '.join(names)}")
    began, groups = world.now, world.engine_checker.groups
    asked = [world.ask(place, TOKENS) for place in range(nodes) if place not in dead]
    _expect_served(world, names, asked)
    served_after_s = world.now - began
    if in_mid_answer.engine_host.host.place not in dead and not world.engine_checker.was_slow:
        _expect_served(world, names, [in_mid_answer])
    plans = _expect_few_plans(world, names)
    return FixedOutcome(seed, names, served_after_s, world.engine_checker.groups - groups, plans)


def begin(seed: int) -> tuple[JointWorld, random.Random]:
    """Nodes that start, and what the scenario draws from."""
    rng = random.Random(seed * 2_654_435_761 + 29)
    world = JointWorld(seed, rng.choice((2, 2, 3, 4)), media=(CABLE, LAN), recovery_deadline_s=DEADLINE_S)
    for host in world.hosts:
        world.at(rng.uniform(0.0, 0.3), host.start)
    return world, rng


def _expect_few_plans(world: JointWorld, names: tuple[str, ...]) -> int:
    before, known = max(host.saved_epoch for host in world.hosts), len(world.committed)
    world.run(world.now + WATCHED_S)
    epochs, plans = max(host.saved_epoch for host in world.hosts) - before, len(world.committed) - known
    allowed = PLANS + 2 * sum("between" in name for name in names)
    if plans > allowed or epochs > allowed * len(world.hosts):
        raise InvariantBrokenError(
            world, f"E9: {plans} plans, {epochs} epochs in {WATCHED_S:g} s although nothing changed: {names}"
        )
    return plans


def _expect_served(world: JointWorld, names: tuple[str, ...], clients: list[Client]) -> None:
    if not world.run_while(lambda: all(one.outcome for one in clients), SERVED_WITHIN_S):
        text = f"E8: not served {SERVED_WITHIN_S:g} s after {names}: {world.engine_states()}"
        raise InvariantBrokenError(world, text)
    for client in clients:
        expect_right(world, client)
        if client.outcome != "length":
            raise InvariantBrokenError(world, f"E8: {client.name} ended as {client.outcome} with {names}")


def break_some(world: JointWorld, rng: random.Random, nodes: int) -> tuple[tuple[str, ...], set[int]]:
    """One node at least stays as it is. Returns what was broken, and which nodes have no power."""
    names: list[str] = []
    well = rng.randrange(nodes)
    others = [place for place in range(nodes) if place != well]
    for one, other in combinations(range(nodes), 2):
        if rng.random() < 0.6:
            fault = rng.choice(RING_FAULTS)
            _spoil(world, one, other, fault, both=rng.random() < 0.5)
            names.append(f"{fault} between {one} and {other}")
    ill, dead, slow = (set(rng.sample(others, rng.choice((0, 0, 1)))) for _ in range(3))
    unable = set(rng.sample(others, rng.choice((0, 1))))
    for place in dead:
        world.power_loss = 1.0
        world.hosts[place].crash()
        names.append(f"no power at {place}")
    for place in ill - dead:
        world.full.add(world.hosts[place].id)
        worker = world.engine_hosts[place].worker
        if worker is not None:
            worker.die("it was killed")
        names.append(f"no process at {place}")
    for place in unable - dead - ill:
        world.unreadable.add(world.hosts[place].id)
        worker = world.engine_hosts[place].worker
        if worker is not None:
            worker.die("it was killed")
        names.append(f"no load at {place}")
    for place in slow - dead - ill - unable:
        worker = world.engine_hosts[place].worker
        if worker is not None:
            world.engine_checker.was_slow = True
            worker.step_s = SLOW_STEP_S
        names.append(f"{place} is slow")
    return tuple(names) or ("nothing",), dead


def _spoil(world: JointWorld, one: int, other: int, fault: RingFault, *, both: bool) -> None:
    """The cable between two nodes carries probes, and nothing of the ring, in one direction or both."""
    first, second = (
        {own.address for own in world.hosts[place].addresses if own.kind is CABLE.kind} for place in (one, other)
    )
    for (source, target), wire in world.wires():
        if (source in first and target in second) or (both and source in second and target in first):
            wire.ring = fault
