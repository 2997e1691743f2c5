"""Links while nobody waits for them: fewer datagrams, a cut noticed within a second, and the full pace with the
first request.
"""

from __future__ import annotations

import statistics
from functools import partial

from exod.core.base import events
from exod.model import Kind
from tests.sim.network import CABLE
from tests.sim.observations import kinds, noticed_after_ms, started, wires
from tests.sim.world import World


def be(world: World, *, busy: bool) -> None:
    for host in world.hosts:
        host.take(events.ActivityChanged(busy=busy))


def cut(world: World) -> None:
    for wire in wires(world, CABLE):
        wire.cut, wire.spoiled_until = True, world.now + 10.0


def sent_in(world: World, seconds: float) -> int:
    """Datagrams of all nodes."""
    count = 0
    recorded = world.recorded

    def count_one(command: events.SendDatagram) -> None:
        nonlocal count
        count += 1
        recorded(command)

    world.recorded = count_one  # type: ignore[method-assign]
    world.run(world.now + seconds)
    world.recorded = recorded  # type: ignore[method-assign]
    return count


def test_a_quiet_pair_sends_a_fifth_and_is_back_at_once() -> None:
    world = started(3)
    busy = sent_in(world, 20.0)
    be(world, busy=False)
    world.run(world.now + 2.0)
    quiet = sent_in(world, 20.0)
    assert quiet < busy / 3.5, (busy, quiet)
    be(world, busy=True)
    soon = sent_in(world, 20.0)
    assert soon > 0.9 * busy, (busy, soon)
    assert kinds(world) == {Kind.THUNDERBOLT}


def test_a_cut_in_quiet_is_noticed_within_a_second() -> None:
    taken = []
    for seed in range(12):
        world = started(seed)
        be(world, busy=False)
        world.run(world.now + 5.0 + world.rng.random())
        noticed, _ = noticed_after_ms(world, "path.dead", partial(cut, world))
        taken.append(noticed)
    assert max(taken) <= 1_000, taken
    assert statistics.median(taken) > 150, "at the full pace it would be less: the pace was lowered"


def test_a_link_that_was_quiet_is_watched_as_ever_once_a_request_comes() -> None:
    taken = []
    for seed in range(12):
        world = started(seed)
        be(world, busy=False)
        world.run(world.now + 40.0)
        be(world, busy=True)
        world.run(world.now + 0.3)
        noticed, _ = noticed_after_ms(world, "path.dead", partial(cut, world))
        taken.append(noticed)
    assert max(taken) <= 300, taken
