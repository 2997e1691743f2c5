"""What tests of the mesh in virtual time do and look at: a world that agreed, its wires, kinds and plans in use."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from exod.model import Kind
from tests.sim.maps import lab
from tests.sim.network import Wire
from tests.sim.scenarios import agreed
from tests.sim.world import Host, World


def started(seed: int, nodes: int = 2, **options: object) -> World:
    """A world that has agreed, with its nodes started together."""
    world = lab(seed, nodes, **options)  # type: ignore[arg-type]
    for host in world.hosts:
        world.at(world.rng.uniform(0.0, 0.1), host.start)
    assert world.run_while(lambda: agreed(world), 10.0)
    world.run(world.now + 3.0 + world.rng.random())
    return world


def wires(world: World, medium: object, one: int = 0, other: int = 1) -> tuple[Wire, Wire]:
    for way in world.ways(world.hosts[one], world.hosts[other]):
        if world.network.wires[way].medium is medium:
            return world.network.both(*way)
    raise AssertionError("no such wire")


def kinds(world: World) -> set[Kind | None]:
    """The kind that each end of each pair has selected."""
    found = set()
    for host in world.hosts:
        assert host.core is not None
        for link in host.core.links.values():
            path = link.selected_path
            found.add(None if path is None or not link.agreed else path.candidate.kind)
    return found


def committed_everywhere(world: World, since: set[str | None]) -> Callable[[], bool]:
    """A plan that is not one of `since` is in force on every node."""
    return lambda: all(host.running is not None and host.running not in since for host in world.hosts)


def plans(world: World) -> set[str | None]:
    return {host.running for host in world.hosts}


def noticed_after_ms(world: World, event: str, act: Callable[[], None]) -> tuple[float, float]:
    """Act, and tell when the first end noticed and how much later all nodes ran by a new plan."""
    before, told = plans(world), []
    tell = world.told_event

    def listen(host: Host, entry: object) -> None:
        if getattr(entry, "type", "") == event:
            told.append(world.now)
        tell(host, entry)

    world.told_event = listen  # type: ignore[method-assign]
    began = world.now
    act()
    new_plan = committed_everywhere(world, before)
    while not (told and new_plan()):
        assert world.now < began + 5.0, "\n".join(world.story)
        world.run(world.now + 0.001)
    world.told_event = tell  # type: ignore[method-assign]
    return (told[0] - began) * 1e3, (world.now - told[0]) * 1e3


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
