"""Two nodes that hear nothing of each other for a while, in mid-answer: each goes on alone, and then they are one.

Both have the request, and the node whose client is elsewhere gives it up or comes to its end first. That is no end
for the client: its answer goes on as soon as the two stand in one group again.
"""

from __future__ import annotations

import pytest

from tests.sim.engine.clients import Client
from tests.sim.engine.groups import token_at
from tests.sim.engine.joint_world import JointWorld
from tests.sim.fixed_faults import deafen

TOKENS = 400
"""Twenty seconds of steps: none ends while they are deaf."""
LONGEST_GAP_S = 6.0
TWO_LONGEST_GAP_S = 3.0
"""Nothing is computed again in this world, so only what the nodes wait for takes time."""
LOOK_S = 0.05


def a_running_pair() -> JointWorld:
    world = JointWorld(4, 2, load_s=(0.2, 0.4))
    for host in world.hosts:
        world.at(0.0, host.start)
    assert world.run_while(world.all_formed, 30.0)
    return world


def longest_gap_s(world: JointWorld, client: Client) -> float:
    """Of the rest of the answer."""
    longest, since, had = 0.0, world.now, len(client.tokens)
    while not client.outcome and world.now < since + 60.0:
        world.run(world.now + LOOK_S)
        if len(client.tokens) > had:
            longest, since, had = max(longest, world.now - since), world.now, len(client.tokens)
    return longest


def hear_again(world: JointWorld) -> None:
    for _, wire in world.wires():
        wire.cut = False


@pytest.mark.parametrize("place", [0, 1], ids=["asked at the coordinator", "asked at the other"])
@pytest.mark.parametrize("deaf_s", [2.0, 4.0, 8.0])
def test_an_answer_goes_on_when_they_hear_each_other_again(place: int, deaf_s: float) -> None:
    world = a_running_pair()
    asked = world.ask(place, TOKENS)
    world.run(world.now + 1.0)
    deafen(world, 0, 1)
    world.at(world.now + deaf_s, lambda: hear_again(world))
    gap_s = longest_gap_s(world, asked)
    assert (asked.outcome, asked.text) == ("length", asked.expected_text), world.engine_states()
    assert gap_s <= LONGEST_GAP_S, world.engine_states()


@pytest.mark.parametrize("place", [0, 1], ids=["asked at the coordinator", "asked at the other"])
def test_an_answer_that_the_other_ended_first_goes_on(place: int) -> None:
    """The other is quicker alone, and through with it before they hear each other."""
    world = a_running_pair()
    asked = world.ask(place, TOKENS)
    world.run(world.now + 1.0)
    deafen(world, 0, 1)
    world.run(world.now + 2.0)
    own = world.engine_hosts[place].worker
    assert own is not None
    own.computes_until = world.now + 3.0
    other = world.engine_hosts[1 - place].worker
    assert other is not None
    assert other.group is not None
    (order,) = other.waiting
    generation = other.generation(order)
    while not generation.finished:
        other.add(generation, token_at(asked.name, len(generation.tokens)))
    world.run(world.now + 0.5)
    hear_again(world)
    gap_s = longest_gap_s(world, asked)
    assert (asked.outcome, asked.text) == ("length", asked.expected_text), world.engine_states()
    assert gap_s <= LONGEST_GAP_S, world.engine_states()


@pytest.mark.parametrize("first", [0, 1], ids=["the coordinator's is older", "the other's is older"])
@pytest.mark.parametrize("deaf_s", [4.0, 8.0])
def test_one_answer_of_each_goes_on(first: int, deaf_s: float) -> None:
    """Each side ends the other's answer and goes on with its own. What ended above one that is under way is known
    by its own order alone.
    """
    world = a_running_pair()
    asked = [world.ask(first, TOKENS)]
    world.run(world.now + 0.3)
    asked.append(world.ask(1 - first, TOKENS))
    world.run(world.now + 1.0)
    deafen(world, 0, 1)
    world.at(world.now + deaf_s, lambda: hear_again(world))
    since, had, longest_s = [world.now] * 2, [len(one.tokens) for one in asked], 0.0
    while not all(one.outcome for one in asked):
        world.run(world.now + LOOK_S)
        assert world.now < 120.0, world.engine_states()
        for at, one in enumerate(asked):
            if len(one.tokens) > had[at]:
                longest_s = max(longest_s, world.now - since[at])
                since[at], had[at] = world.now, len(one.tokens)
    assert [(one.outcome, one.text) for one in asked] == [("length", one.expected_text) for one in asked]
    assert longest_s <= TWO_LONGEST_GAP_S, world.engine_states()
