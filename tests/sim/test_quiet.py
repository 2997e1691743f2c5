"""Links while nobody waits for them: fewer datagrams, a cut noticed within a second, and the full pace with the
first request.
"""

from __future__ import annotations

import statistics
from functools import partial

import pytest

from exod.core.base import events
from exod.model import Kind
from tests.sim.engine.joint_world import JointWorld
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


def first_token_after_s(world: JointWorld, place: int) -> float:
    asked_at = world.now
    client = world.ask(place, 5)
    assert world.run_while(lambda: bool(client.tokens), 60.0)
    waited_s = world.now - asked_at
    assert world.run_while(world.all_answered, 60.0)
    return waited_s


@pytest.mark.parametrize("place", [0, 1])
def test_the_first_request_after_a_long_quiet_waits_no_longer_than_any_other(place: int) -> None:
    """By the coordinator's client and by the other's: whatever was let go of in quiet costs it nothing."""
    world = JointWorld(7, 2)
    for host in world.hosts:
        world.at(0.0, host.start)
    assert world.run_while(world.all_formed, 30.0)
    usual_s = max(first_token_after_s(world, one) for one in (0, 1))
    groups = world.engine_checker.groups
    be(world, busy=False)
    world.run(world.now + 300.0)
    be(world, busy=True)  # by the request's admission
    assert first_token_after_s(world, place) <= usual_s + 0.01
    assert world.engine_checker.groups == groups
