"""Members that cannot hear each other: who computes then, who is left out and why, and how few plans it takes.

Nobody is at fault here and nothing will change, so every plan beyond the first few would be the same attempt again.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from exod.core.cluster.ring_order import ring_pairs
from exod.core.node import NodeCore
from exod.model import MeshPlan, NodeId
from tests.sim.fixed_faults import deafen, epochs
from tests.sim.maps import lab
from tests.sim.network import LAN, MEDIA
from tests.sim.world import World

SERVED_WITHIN_S = 5.0
MAX_EPOCHS = 5
PAIRS = [(4, pair) for pair in combinations(range(4), 2)] + [(5, pair) for pair in ((0, 1), (0, 4), (1, 3))]
LONG_S = 20.0
"""Anything that repeats has repeated by then."""


def core(world: World, place: int) -> NodeCore:
    found = world.hosts[place].core
    assert found is not None
    return found


def served_by(world: World) -> MeshPlan | None:
    """The plan that all its ranks run, where there is one of at least two ranks."""
    for host in world.hosts:
        plan = host.core.mesh.committed if host.core is not None else None
        if plan is None or len(plan.ring) < 2:
            continue
        if all(world.by_id[node].running == plan.hash for node in plan.ring):
            return plan
    return None


def hear(world: World, ring: tuple[NodeId, ...], deaf: set[tuple[NodeId, NodeId]]) -> bool:
    return not any(pair in deaf for pair in ring_pairs(ring))


def ids(world: World, *places: int) -> tuple[NodeId, ...]:
    return tuple(world.hosts[place].id for place in places)


@pytest.mark.parametrize(
    ("nodes", "pair", "media"),
    [(nodes, pair, (LAN,)) for nodes, pair in PAIRS] + [(4, (0, 1), MEDIA)],
)
def test_a_ring_goes_round_two_members_that_are_deaf_to_each_other(
    nodes: int, pair: tuple[int, int], media: tuple[object, ...]
) -> None:
    world = lab(3, nodes, media=media)  # type: ignore[arg-type]
    deafen(world, *pair)
    for host in world.hosts:
        host.start()
    assert world.run_while(lambda: whole(world), SERVED_WITHIN_S), "\n".join(world.story)
    world.run(world.now + LONG_S)
    plan = served_by(world)
    assert plan is not None
    assert len(plan.ring) == nodes
    assert hear(world, plan.ring, {ids(world, *pair)})  # type: ignore[arg-type]
    assert epochs(world) <= MAX_EPOCHS, "\n".join(world.story)


def whole(world: World) -> bool:
    plan = served_by(world)
    return plan is not None and len(plan.ring) == len(world.hosts)


@pytest.mark.parametrize(("nodes", "pair"), PAIRS)
def test_two_members_that_go_deaf_move_the_ring_once(nodes: int, pair: tuple[int, int]) -> None:
    world = lab(5, nodes, media=(LAN,))
    for host in world.hosts:
        host.start()
    assert world.run_while(lambda: whole(world), SERVED_WITHIN_S)
    world.run(world.now + 3.0)
    before = epochs(world)
    deafen(world, *pair)
    deaf = {ids(world, *pair)}
    world.run(world.now + SERVED_WITHIN_S)
    plan = served_by(world)
    assert plan is not None
    assert hear(world, plan.ring, deaf), "\n".join(world.story)  # type: ignore[arg-type]
    world.run(world.now + LONG_S)
    assert whole(world), "\n".join(world.story)
    assert epochs(world) - before <= MAX_EPOCHS, "\n".join(world.story)


@pytest.mark.parametrize("middle", [0, 1, 2])
def test_three_in_a_line_are_served_by_two_and_all_know_who_is_left_out(middle: int) -> None:
    world = lab(7, 3, media=(LAN,))
    ends = [place for place in range(3) if place != middle]
    deafen(world, *ends)
    for host in world.hosts:
        host.start()
    assert world.run_while(lambda: served_by(world) is not None, 6.0), "\n".join(world.story)
    world.run(world.now + LONG_S)
    plan = served_by(world)
    assert plan is not None
    assert len(plan.ring) == 2
    assert epochs(world) <= MAX_EPOCHS, "\n".join(world.story)
    (outside,) = {host.id for host in world.hosts} - set(plan.ring)
    names = {host.name for place, host in enumerate(world.hosts) if place in ends}
    for place in range(3):
        mesh = core(world, place).mesh
        assert mesh.committed == plan, "the third has the plan, too"
        (left_out,) = plan.left_out
        assert left_out.node == outside
        assert all(name in left_out.reason for name in names)
