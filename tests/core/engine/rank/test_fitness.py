"""When a node says that it cannot serve as a rank, and when it tries again."""

from __future__ import annotations

from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.fitness import FAILURES, TRY_AGAIN_MAX_S, TRY_AGAIN_S, Fitness
from exod.core.engine.rank.worker_life import WorkerLife
from tests.core.engine.engine_samples import A, B, a_plan

WITHOUT_B = a_plan(A, number=2)


def failing(now: float = 0.0) -> Fitness:
    fitness = Fitness()
    for _ in range(FAILURES):
        fitness.process_ended("No space left on device", now)
    return fitness


def test_some_processes_may_end_before_a_node_is_unfit() -> None:
    fitness = Fitness()
    for _ in range(FAILURES - 1):
        fitness.process_ended("killed by SIGKILL", 0.0)
        assert not fitness.text
    fitness.process_ended("No space left on device", 1.0)
    assert "No space left on device" in fitness.text
    assert f"{FAILURES} times" in fitness.text


def test_one_that_held_its_layers_makes_the_next_failure_the_first() -> None:
    fitness = Fitness()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            fitness.process_ended("killed", 0.0)
        fitness.holds_layers()
    assert not fitness.text


def test_a_node_without_a_rank_starts_a_process_to_see_and_is_fit_when_it_says_hello() -> None:
    fitness, worker = failing(), WorkerLife()
    assert not fitness.rehearses(WITHOUT_B, TRY_AGAIN_S - 1)
    assert fitness.next_deadline(WITHOUT_B, RankPhase.OFF, worker) == TRY_AGAIN_S
    assert fitness.rehearses(WITHOUT_B, TRY_AGAIN_S)
    fitness.greeted()
    assert not fitness.text
    assert not fitness.rehearses(WITHOUT_B, 99.0)


def test_each_failure_makes_the_next_try_later_up_to_a_limit() -> None:
    fitness, now, waits = failing(), TRY_AGAIN_S, []
    for _ in range(8):
        fitness.process_ended("still full", now)
        at = fitness.next_deadline(WITHOUT_B, RankPhase.OFF, WorkerLife())
        assert at is not None
        waits.append(at - now)
        now = at
    assert waits[:3] == [2 * TRY_AGAIN_S, 4 * TRY_AGAIN_S, 8 * TRY_AGAIN_S]
    assert waits[-1] == TRY_AGAIN_MAX_S


def test_one_that_greeted_and_fails_once_more_is_unfit_at_once() -> None:
    fitness = failing()
    fitness.greeted()
    fitness.process_ended("it died while it loaded", 50.0)
    assert fitness.text


def test_layers_that_could_not_be_loaded_are_tried_again_in_a_ring_after_a_while() -> None:
    fitness = Fitness()
    fitness.load_failed("config and weights differ", 0.0)
    assert fitness.text == "config and weights differ"
    assert not fitness.rehearses(WITHOUT_B, 2 * TRY_AGAIN_S)
    fitness.handle_timer(TRY_AGAIN_S)
    assert not fitness.text


def test_files_that_were_refused_are_looked_at_again_beside_the_ring_and_later_each_time() -> None:
    """The others keep their group: the node stays unfit until it has found the files well."""
    fitness, now = Fitness(), 0.0
    for wait_s in (TRY_AGAIN_S, 2 * TRY_AGAIN_S, 4 * TRY_AGAIN_S):
        fitness.model_refused("config.json cannot be read", now)
        assert fitness.next_deadline(WITHOUT_B, RankPhase.OFF, WorkerLife()) == now + wait_s
        assert not fitness.looks_again(WITHOUT_B, now + wait_s - 1)
        now += wait_s
        fitness.handle_timer(now)
        assert fitness.text, "nobody is told that it is well"
        assert fitness.looks_again(WITHOUT_B, now)
        assert not fitness.looks_again(WITHOUT_B, now), "once"
        assert fitness.next_deadline(WITHOUT_B, RankPhase.OFF, WorkerLife()) is None
    fitness.model_found()
    assert not fitness.text


def test_another_model_is_another_chance() -> None:
    fitness = Fitness()
    fitness.model_refused("config.json cannot be read", 0.0)
    fitness.wanted_anew()
    assert not fitness.text
    assert fitness.next_deadline(a_plan(A, B), RankPhase.OFF, WorkerLife()) is None
