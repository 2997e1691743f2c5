"""Scenarios whose faults stay: some pairs of nodes never hear each other. Nodes that can serve do
serve, and plans then stay as they are.

The invariants of liveness (design.md, 13 and 14): where two nodes hear each other, two ranks at least run one plan
within a bound, and a fixed set of faults costs a bounded number of epochs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

from exod.model import MeshPlan, NodeId
from tests.sim.invariants import InvariantBrokenError
from tests.sim.maps import lab
from tests.sim.network import LAN
from tests.sim.world import World

SERVED_WITHIN_S = 12.0
"""Waiting for a silent member (3 s), for another coordinator (1.5 s, twice), for a member that refuses (3 s)."""
MAX_EPOCHS = 12
"""Of up to five nodes that hear each other in any way whatever; most need one or two."""
REST_S = 40.0
"""What repeats has repeated by then."""


@dataclass(frozen=True)
class FixedOutcome:
    seed: int
    nodes: int
    deaf: tuple[tuple[int, int], ...]
    served_after_s: float
    epochs: int


def run_fixed(seed: int) -> FixedOutcome:
    """Raises InvariantBrokenError with its story."""
    rng = random.Random(seed * 2_654_435_761 + 13)
    nodes = rng.choice((3, 4, 4, 5, 5))
    pairs = list(combinations(range(nodes), 2))
    deaf = tuple(sorted(rng.sample(pairs, rng.randint(1, min(4, len(pairs) - 1)))))
    late = rng.random() < 0.5
    world = lab(seed, nodes, media=(LAN,))
    for host in world.hosts:
        world.at(rng.uniform(0.0, 0.3), host.start)
    if late:
        world.run(6.0)
    for one, other in deaf:
        deafen(world, one, other)
    world.tell(None, f"from now on these pairs are deaf: {deaf}")
    before, began = epochs(world), world.now
    if not world.run_while(lambda: serving(world, deaf) is not None, SERVED_WITHIN_S):
        raise InvariantBrokenError(world, f"14: nobody serves {SERVED_WITHIN_S:g} s later, deaf are {deaf}")
    served_after_s = world.now - began
    world.run(world.now + REST_S / 2)
    taken = epochs(world)
    world.run(world.now + REST_S / 2)
    if taken - before > MAX_EPOCHS or epochs(world) != taken:
        text = f"13: {epochs(world) - before} epochs, {epochs(world) - taken} of them late, deaf are {deaf}"
        raise InvariantBrokenError(world, text)
    if serving(world, deaf) is None:
        raise InvariantBrokenError(world, f"14: nobody serves any more, deaf are {deaf}")
    return FixedOutcome(seed, nodes, deaf, served_after_s, taken - before)


def deafen(world: World, one: int, other: int) -> None:
    """Nothing passes between the two hosts any more, on any medium."""
    for way in world.ways(world.hosts[one], world.hosts[other]):
        for wire in world.network.both(*way):
            wire.cut, wire.spoiled_until = True, world.now + 1e6


def epochs(world: World) -> int:
    return max(0 if host.core is None else host.core.mesh.epoch_seen for host in world.hosts)


def serving(world: World, deaf: tuple[tuple[int, int], ...]) -> MeshPlan | None:
    """A plan that two ranks at least run, none of them beside one that it cannot hear."""
    apart: set[tuple[NodeId, NodeId]] = set()
    for one, other in deaf:
        apart |= {(world.hosts[one].id, world.hosts[other].id), (world.hosts[other].id, world.hosts[one].id)}
    for host in world.hosts:
        plan = host.core.mesh.committed if host.core is not None else None
        if plan is None or len(plan.ring) < 2 or any((edge.source, edge.target) in apart for edge in plan.edges):
            continue
        if all(world.by_id[node].running == plan.hash for node in plan.ring):
            return plan
    return None
