"""A node whose rank cannot start is left out, the others serve, and it is taken back when it is well."""

from __future__ import annotations

import pytest

from tests.sim.engine.joint_world import JointWorld
from tests.sim.network import LAN


def a_running_cluster(nodes: int) -> JointWorld:
    world = JointWorld(5, nodes)
    for host in world.hosts:
        world.at(0.0, host.start)
    assert world.run_while(world.all_formed, 30.0)
    return world


def fill_disk_and_kill(world: JointWorld, place: int) -> None:
    engine_host = world.engine_hosts[place]
    world.full.add(engine_host.host.id)
    assert engine_host.worker is not None
    engine_host.worker.die("it was killed")


def ring(world: JointWorld) -> set[str]:
    plans = {core.plan.hash: core.plan for one in world.engine_hosts if (core := one.core) and core.plan}
    return {node for plan in plans.values() for node in plan.ring}


def test_the_other_serves_alone_within_ten_seconds_and_all_know_why() -> None:
    for victim in (0, 1):
        world = a_running_cluster(2)
        asked = world.ask(1 - victim, 100)
        world.run(world.now + 1.0)
        fill_disk_and_kill(world, victim)
        assert world.run_while(world.all_answered, 10.0 + 100 * 0.05), world.engine_states()
        assert (asked.outcome, asked.text) == ("length", asked.expected_text)
        for engine_host in world.engine_hosts:
            assert engine_host.core is not None
            assert engine_host.core.plan is not None
            (left_out,) = engine_host.core.plan.left_out
            assert left_out.node == world.hosts[victim].id
            assert "No space left on device" in left_out.reason


def test_it_is_taken_back_when_its_disk_has_room_and_costs_no_plan_before() -> None:
    world = a_running_cluster(3)
    fill_disk_and_kill(world, 1)
    world.run(world.now + 10.0)
    assert world.hosts[1].id not in ring(world)
    plans = {host.running for host in world.hosts}
    world.run(world.now + 100.0)  # it tries again meanwhile, outside of the ring
    assert {host.running for host in world.hosts} == plans
    world.full.clear()
    assert world.run_while(lambda: world.all_formed() and len(ring(world)) == 3, 300.0), world.engine_states()
    asked = world.ask(1, 5)
    assert world.run_while(world.all_answered, 20.0)
    assert asked.outcome == "length"


LOOKED_AT_S = 70.0
"""Of a load that fails: two tries more, 15 and 30 s apart."""


def a_cluster_that_cannot_load(*ill: int) -> JointWorld:
    world = JointWorld(5, 2, media=(LAN,))
    world.unreadable.update(world.hosts[place].id for place in ill)
    for host in world.hosts:
        world.at(0.0, host.start)
    world.run(20.0)
    return world


@pytest.mark.parametrize("ill", [(0,), (1,), (0, 1)])
def test_a_load_that_fails_for_good_costs_no_more_plans(ill: tuple[int, ...]) -> None:
    """Whether one node or all refuse: what is tried again costs the others neither plan nor group."""
    world = a_cluster_that_cannot_load(*ill)
    epochs, groups = [host.saved_epoch for host in world.hosts], world.engine_checker.groups
    tried = world.loads_failed.copy()
    world.run(world.now + LOOKED_AT_S)
    assert [host.saved_epoch for host in world.hosts] == epochs
    assert world.engine_checker.groups == groups
    for place in ill:
        assert world.loads_failed[world.hosts[place].id] > tried[world.hosts[place].id], "it was tried again"
    world.unreadable.clear()
    assert world.run_while(lambda: world.all_formed() and len(ring(world)) == 2, 150.0), world.engine_states()


SAID_WITHIN_S = 15.0
"""Three starts that fail, and five seconds in which another plan could have come."""


def has_failed(world: JointWorld, place: int) -> bool:
    core = world.engine_hosts[place].core
    return core is not None and any(status.has_failed for status in core.ranks())


def test_a_lone_node_whose_processes_die_says_so_and_lets_nobody_wait() -> None:
    world = a_running_cluster(1)
    fill_disk_and_kill(world, 0)
    asked = world.ask(0, 5)
    assert world.run_while(lambda: has_failed(world, 0), SAID_WITHIN_S), world.engine_states()
    core = world.engine_hosts[0].core
    assert core is not None
    assert "its worker ended" in core.trouble()
    assert "No space left on device" in core.trouble()
    assert world.run_while(world.all_answered, 11.0)
    assert asked.outcome == "not_ready"
    world.full.clear()
    assert world.run_while(lambda: world.all_formed() and not has_failed(world, 0), 40.0), world.engine_states()
    again = world.ask(0, 5)
    assert world.run_while(world.all_answered, 20.0)
    assert again.outcome == "length"


def test_an_answer_that_was_begun_waits_for_its_deadline() -> None:
    world = a_running_cluster(1)
    asked = world.ask(0, 100)
    world.run(world.now + 1.0)
    fill_disk_and_kill(world, 0)
    world.run(world.now + 2 * SAID_WITHIN_S)
    assert has_failed(world, 0)
    assert not asked.outcome
    world.full.clear()
    assert world.run_while(world.all_answered, 60.0)
    assert (asked.outcome, asked.text) == ("length", asked.expected_text)


@pytest.mark.parametrize("seconds", [1.0, 4.0])
@pytest.mark.parametrize("fault", ["missing", "unreadable"])
def test_what_failed_for_a_moment_is_tried_again_before_a_client_is_refused(fault: str, seconds: float) -> None:
    """Only one of two nodes hosts a rank, so nobody can take its place."""
    world = JointWorld(5, 2, engines=1, recovery_deadline_s=60.0)
    places = getattr(world, fault)
    places.update(host.id for host in world.hosts)
    for host in world.hosts:
        world.at(0.0, host.start)
    assert world.run_while(lambda: any(has_failed(world, place) for place in (0, 1)), 15.0)
    world.after(seconds, places.clear)
    asked = [world.ask(place, 5) for place in (0, 1)]
    assert world.run_while(world.all_answered, 20.0), world.engine_states()
    assert [one.outcome for one in asked] == ["length", "length"]
