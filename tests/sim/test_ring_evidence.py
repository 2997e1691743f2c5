"""What the ring suffers counts beside the probes: it leaves a path that only probes pass, and does not come back
early.

A wire has a fault of its own for the ring (`Wire.ring`) that no probe meets, by direction.
"""

from __future__ import annotations

import pytest

from exod.core.base.events import RingFault
from exod.core.pair.link import Link
from exod.core.pair.path_reason import why
from exod.core.probe.path import Path
from exod.core.probe.ring_fitness import UNFIT_S
from exod.model import Kind, PathState
from tests.sim.fixed_faults import epochs
from tests.sim.network import CABLE, Medium, Wire
from tests.sim.observations import kinds, started, wires
from tests.sim.world import World

MOVED_WITHIN_S = 3.0
"""The second failure comes a second after the first."""


def edge_kinds(world: World) -> set[Kind]:
    found: set[Kind] = set()
    for host in world.hosts:
        assert host.core is not None
        plan = host.core.mesh.committed
        if plan is not None and host.running == plan.hash:
            found |= {edge.kind for edge in plan.edges}
    return found


def spoil(world: World, medium: Medium, fault: RingFault, *, both: bool = True) -> None:
    for wire in wires(world, medium)[: 2 if both else 1]:
        wire.ring = fault


def path_of(world: World, place: int, medium: Medium) -> tuple[Path, Link]:
    core = world.hosts[place].core
    assert core is not None
    (link,) = core.links.values()
    return next(path for path in link.paths if path.candidate.kind is medium.kind), link


@pytest.mark.parametrize("both", [True, False], ids=["both ways", "one way"])
@pytest.mark.parametrize("fault", [RingFault.UNANSWERED, RingFault.REFUSED, RingFault.SILENT])
def test_the_ring_leaves_a_cable_that_only_probes_pass(fault: RingFault, both: bool) -> None:
    world = started(31)
    assert edge_kinds(world) == {Kind.THUNDERBOLT}
    spoil(world, CABLE, fault, both=both)
    moved = world.run_while(lambda: edge_kinds(world) == {Kind.ETHERNET}, MOVED_WITHIN_S)
    assert moved, "\n".join(world.story)
    path, link = path_of(world, 0, CABLE)
    assert path.state is PathState.UP, "its probes pass"
    assert "not fit for the ring" in why(path, link, "linux", world.hosts[0].local(world.now))


def test_it_comes_back_seldom_while_the_fault_stays_and_soon_when_it_is_gone() -> None:
    world = started(32)
    spoil(world, CABLE, RingFault.SILENT)
    assert world.run_while(lambda: edge_kinds(world) == {Kind.ETHERNET}, MOVED_WITHIN_S)
    before = epochs(world)
    world.run(world.now + UNFIT_S - 1.0)
    assert edge_kinds(world) == {Kind.ETHERNET}
    assert epochs(world) == before
    world.run(world.now + 600.0)
    tries = (epochs(world) - before) / 2
    assert 1 <= tries <= 5, "30, 60, 120 and 240 s"
    for wire in wires(world, CABLE):
        wire.ring = RingFault.MOVED
    assert world.run_while(lambda: edge_kinds(world) == {Kind.THUNDERBOLT}, 700.0)
    world.run(world.now + 60.0)
    assert edge_kinds(world) == {Kind.THUNDERBOLT}


def test_a_cable_of_a_megabit_a_second_is_left_at_once_with_the_figure() -> None:
    world = started(33)
    for wire in wires(world, CABLE):
        wire.mb_per_s = 0.12
    assert world.run_while(lambda: edge_kinds(world) == {Kind.ETHERNET}, 1.5)
    path, link = path_of(world, 0, CABLE)
    words = why(path, link, "linux", world.hosts[0].local(world.now))
    assert "moves 0.12 MB/s, 2 are needed" in words


def test_where_the_ring_fails_on_every_path_it_stays_and_costs_few_plans() -> None:
    world = started(34)
    for _, wire in world.wires():
        wire.ring = RingFault.REFUSED
    world.run(world.now + 10.0)
    before = epochs(world)
    world.run(world.now + 60.0)
    assert epochs(world) - before <= 6, "\n".join(world.story)
    assert kinds(world) != {None}, "the pair still has a path for everything else"


def test_a_cut_cable_is_the_probes_affair_and_leaves_no_mark() -> None:
    world = started(35)
    for wire in wires(world, CABLE):
        wire.cut, wire.spoiled_until = True, world.now + 10.0
    world.run(world.now + 4.0)
    assert edge_kinds(world) == {Kind.ETHERNET}
    for wire in wires(world, CABLE):
        wire.cut = False
    assert world.run_while(lambda: edge_kinds(world) == {Kind.THUNDERBOLT}, 10.0), (
        "nothing keeps it from coming back"
    )


def test_a_single_failure_is_forgotten() -> None:
    world = started(36)
    one: tuple[Wire, Wire] = wires(world, CABLE)
    for _ in range(3):
        one[0].ring = RingFault.SILENT
        world.run(world.now + 1.05)
        one[0].ring = RingFault.MOVED
        world.run(world.now + 15.0)
    assert edge_kinds(world) == {Kind.THUNDERBOLT}
