"""Ranks, groups and requests of a whole cluster in virtual time, under faults. See engine_world.py."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.request_queue import CLAIM_S
from exoengine.protocol import DEFAULT_SERVING, EdgeCosts, StepCosts
from tests.core.engine.engine_samples import sizes
from tests.core.engine.engine_world import Client, Node, World
from tests.sim.engine.groups import token_at

FORM_BOUND_S = 60.0
"""After the last fault: a stopped process is noticed in 8 s, replaced and loaded in 5; attempts that met a dead
rank cost a deadline of 10 s and a pause of 5 s each."""

ANSWER_BOUND_S = 120.0


def a_running_cluster(seed: int, size: int, load_s: tuple[float, float] = (0.3, 3.0)) -> World:
    world = World(seed, size)
    world.surroundings.load_s = load_s
    for node in world.nodes:
        world.start_daemon(node)
    world.commit()
    world.run_until(world.all_formed, FORM_BOUND_S, "the first group")
    return world


def settle(world: World) -> None:
    """What must hold some time after the last fault, whatever went before."""
    world.run_until(world.all_formed, FORM_BOUND_S, "the group is formed again")
    world.run_until(world.all_answered, ANSWER_BOUND_S, "every client has its answer")
    world.run_until(world.is_quiet, 30.0, "nothing is left over")
    for client in world.clients:
        expect_right(world, client)


def expect_right(world: World, client: Client) -> None:
    name = client.request.request_id
    expected = "".join(f"{token_at(name, index)} " for index in range(client.request.max_tokens))
    world.check(expected.startswith(client.text), f"{name}: another text")
    if client.outcome not in ("lost", "cancelled", "model_changed"):
        world.check(client.outcome == "length", f"{name} ended with {client.outcome}")
        world.check(client.text == expected, f"{name}: {len(client.tokens)} tokens of {client.request.max_tokens}")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_group_forms_and_answers_each_client_once(size: int) -> None:
    world = a_running_cluster(1, size)
    for node in world.nodes:
        world.ask(node, 12)
    settle(world)
    assert {len(orders) for orders in world.surroundings.generations.values()} == {1}
    world.close()


def test_the_requests_of_several_clients_are_computed_at_once() -> None:
    world = a_running_cluster(1, 2)
    for node in (world.nodes * 5)[:9]:
        world.ask(node, 40)
    settle(world)
    assert world.surroundings.most_open == DEFAULT_SERVING.max_concurrent, "the ninth waits"
    world.close()


def measured(sum_s: float) -> World:
    """Two nodes, on each of which its half of the model takes 6 ms a token; a sum over their edge takes `sum_s`."""
    world = World(1, 2)
    plain = sizes(12, 100 << 20)
    world.sizes = msgspec.structs.replace(plain, can_shard=True, heads=(8, 8), hidden_size=2048)
    world.memory_mib = 10_000
    world.costs = StepCosts(0.006, 0.06), EdgeCosts(sum_s, sum_s)
    for node in world.nodes:
        world.start_daemon(node)
    world.commit()
    return world


def test_a_faster_way_is_taken_between_two_answers() -> None:
    world = measured(sum_s=0.00001)
    world.ask(world.nodes[1], 400)  # waits for the first group, and is begun in it
    world.run_until(world.all_answered, ANSWER_BOUND_S, "the first answer")
    world.run_until(lambda: world.choices, FORM_BOUND_S, "a choice")
    world.ask(world.nodes[0], 12)
    settle(world)
    assert world.choices == [("tensor", False)]
    assert [status.parts for node in world.up() if node.host for status in node.host.core.ranks()] == [2] * 4
    world.close()


def test_over_a_cable_the_first_group_stays_a_pipeline() -> None:
    world = measured(sum_s=0.0003)
    world.ask(world.nodes[0], 12)
    settle(world)
    assert world.choices == []
    world.close()


def faults(world: World) -> list[object]:
    random = world.random

    def a_node() -> Node:
        return random.choice(world.nodes)

    def crash() -> None:
        node = a_node()
        if node.worker is not None and not node.worker.is_stopped:
            node.worker.die("it crashed")

    def stop() -> None:
        node = a_node()
        worker = node.worker
        if worker is not None and worker.alive:
            why = random.choice(["hang", "signal"])
            world.note(f"{node.name}'s worker {'hangs' if why == 'hang' else 'is stopped'}")
            worker.stop(why)
            world.loop.call_later(random.choice([0.5, 3.0, 7.0, 20.0]), worker.resume, why)

    def cut() -> None:
        world.suspend()
        world.loop.call_later(random.uniform(0.5, 4.0), world.commit)

    def move() -> None:
        if world.up():
            world.commit()

    def another_model() -> None:
        world.commit(model=random.choice(["m", "n"]))

    def restart() -> None:
        node = a_node()
        if node.host is None:
            return
        world.kill_daemon(node)
        if random.random() < 0.5:
            world.loop.call_later(0.4, world.suspend)
            world.loop.call_later(0.6, move)

        def again() -> None:
            if node.host is None:
                world.start_daemon(node)
                world.loop.call_later(0.3, world.commit)

        world.loop.call_later(random.choice([0.2, 1.0, 8.0]), again)

    def ask() -> None:
        if world.up():
            world.ask(random.choice(world.up()), random.choice([1, 2, 5, 40]))

    def hang_up() -> None:
        waiting = [client for client in world.clients if not client.outcome]
        if waiting:
            world.hang_up(random.choice(waiting))

    return [crash, stop, cut, move, another_model, restart, ask, ask, ask, ask, hang_up]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_every_client_that_stays_gets_its_answer(seed: int, size: int) -> None:
    world = a_running_cluster(seed, size)
    world.loss = world.random.choice([0.0, 0.05, 0.3])
    kinds = faults(world)
    for _ in range(world.random.randrange(3, 25)):
        kind = world.random.choice(kinds)
        kind()  # type: ignore[operator]
        world.run_for(world.random.choice([0.001, 0.05, 0.3, 1.0, 5.0]))
    world.run_for(10.0)  # what was begun comes to its end: stopped processes, restarts
    world.loss = 0.0
    for node in world.nodes:
        if node.worker is not None:
            for why in ("hang", "signal"):
                node.worker.resume(why)
        if node.host is None:
            world.start_daemon(node)
    world.commit()
    settle(world)
    world.close()


def test_what_the_clients_of_killed_daemons_asked_for_does_not_hold_up_the_next_client() -> None:
    world = a_running_cluster(1, 2)
    lost = world.ask(world.nodes[0], 5_000)
    world.run_for(5.0)
    for node in world.nodes:
        world.kill_daemon(node)
    world.run_for(0.5)
    for node in world.nodes:
        world.start_daemon(node)
    world.commit()
    world.run_until(world.all_formed, FORM_BOUND_S, "the group is formed again")
    client = world.ask(world.nodes[1], 20)
    world.run_until(lambda: client.tokens, CLAIM_S + 2.0, "the next client's first token")
    assert lost.outcome == "lost"
    settle(world)
    world.close()


def test_an_answer_whose_coordinator_was_killed_goes_on_for_the_client_of_another_node() -> None:
    world = a_running_cluster(1, 2)
    client = world.ask(world.nodes[1], 400)
    world.run_for(3.0)
    world.kill_daemon(world.nodes[0])
    world.run_for(0.5)
    world.suspend()
    world.start_daemon(world.nodes[0])
    world.run_for(0.5)
    world.commit()
    settle(world)
    assert len(world.surroundings.generations[client.request.request_id]) == 1, "it was not begun again"
    world.close()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("victim", [0, 1])
def test_a_daemon_that_is_soon_back_costs_nobody_a_load(seed: int, victim: int) -> None:
    world = a_running_cluster(seed, 2, load_s=(10.0, 20.0))
    killed, other = world.nodes[victim], world.nodes[1 - victim]
    client = world.ask(other, 400)
    world.run_for(3.0)
    world.kill_daemon(killed)
    world.run_for(1.0)
    world.suspend()
    world.commit()
    world.run_for(0.6)
    world.start_daemon(killed)
    world.run_for(1.5)
    world.commit()
    world.run_until(world.all_formed, 5.0, "the group is formed again")
    settle(world)
    assert [node.worker.loads for node in world.nodes if node.worker is not None] == [1, 1]
    assert len(world.surroundings.generations[client.request.request_id]) == 1, "it was not begun again"
    world.close()


def test_an_answer_for_a_node_that_went_for_good_is_given_up() -> None:
    world = a_running_cluster(1, 3)
    world.ask(world.nodes[2], 5_000)
    world.run_for(3.0)
    world.kill_daemon(world.nodes[2])
    world.suspend()
    world.run_for(1.0)
    world.commit()
    client = world.ask(world.nodes[0], 20)
    world.run_until(lambda: client.tokens, FORM_BOUND_S, "the next client's first token")
    settle(world)
    world.close()


@pytest.mark.parametrize("seed", range(10))
def test_an_origin_without_a_rank_gets_each_token_once_although_messages_are_lost(seed: int) -> None:
    world = a_running_cluster(seed, 3)
    world.rankless = {world.nodes[2].id}
    world.suspend()
    world.commit()
    world.run_until(world.all_formed, FORM_BOUND_S, "a group of two")
    world.loss = 0.1
    begun = world.now
    client = world.ask(world.nodes[2], 60)
    world.run_for(2.0)
    if seed % 2:  # and its rank 0 has a new daemon, which does not know whom to relay to
        world.kill_daemon(world.nodes[0])
        world.run_for(0.2)
        world.start_daemon(world.nodes[0])
        world.suspend()
        world.commit()
    world.run_until(lambda: client.outcome, 60.0, "the whole answer")
    world.check(world.now - begun < 30.0, f"it took {world.now - begun:.1f} s")
    world.loss = 0.0
    world.commit()
    settle(world)
    world.close()
