"""A rank that computes for long is waited for while a client waits, and no longer than the request's deadline."""

from __future__ import annotations

from tests.sim.engine.joint_world import JointWorld
from tests.sim.engine.worker import Worker


def a_running_pair(recovery_deadline_s: float = 60.0) -> JointWorld:
    world = JointWorld(3, 2, recovery_deadline_s=recovery_deadline_s)
    for host in world.hosts:
        world.at(0.0, host.start)
    assert world.run_while(world.all_formed, 30.0)
    return world


def slow(world: JointWorld, place: int, seconds: float) -> Worker:
    worker = world.engine_hosts[place].worker
    assert worker is not None
    world.engine_checker.was_slow = True
    worker.computes_until = world.now + seconds
    return worker


def test_a_step_of_half_a_minute_costs_no_group_and_no_token() -> None:
    world = a_running_pair()
    groups = world.engine_checker.groups
    asked = world.ask(0, 12)
    world.run(world.now + 0.3)
    slow(world, 1, 30.0)
    assert world.run_while(world.all_answered, 40.0)
    assert (asked.outcome, asked.text) == ("length", asked.expected_text)
    assert world.engine_checker.groups == groups


def test_what_no_deadline_allows_ends_as_too_slow_and_the_next_request_is_served() -> None:
    world = a_running_pair(recovery_deadline_s=20.0)
    asked, begun = world.ask(0, 12), world.now
    world.run(world.now + 0.3)
    worker = slow(world, 1, 500.0)
    assert world.run_while(world.all_answered, 30.0)
    assert asked.outcome == "too_slow"
    assert asked.ended_at is not None
    assert asked.ended_at - begun <= 25.0
    again = world.ask(0, 12)
    assert world.run_while(world.all_answered, 60.0)
    assert again.outcome == "length"
    assert not worker.alive, "what it computed nobody wanted any more"
    assert world.run_while(world.is_quiet, 30.0)


def test_nothing_is_computed_for_a_client_that_left() -> None:
    world = a_running_pair()
    asked = world.ask(0, 12)
    world.run(world.now + 0.3)
    slow(world, 1, 500.0)
    world.run(world.now + 10.0)
    asked.engine_host.hang_up(asked)
    assert world.run_while(world.is_quiet, 60.0), world.engine_states()
    groups = world.engine_checker.groups
    world.run(world.now + 60.0)
    assert world.engine_checker.groups == groups, "no group is formed again and again for it"
