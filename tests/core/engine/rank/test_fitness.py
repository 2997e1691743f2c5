"""When a node says that it cannot serve as a rank, and when it tries again."""

from __future__ import annotations

from exod.core.engine.engine_events import StartWorker, TellWorker
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.fitness import (
    CANNOT_SERVE,
    FAILURES,
    GIVEN_UP_S,
    TRY_AGAIN_MAX_S,
    TRY_AGAIN_S,
    Fitness,
)
from exod.core.engine.rank.worker_life import WorkerLife
from exod.core.engine.rank.worker_load import WorkerLoad
from exoengine.protocol import Load, SyncSettings
from tests.core.engine.engine_samples import A, B, a_plan, hello

WITHOUT_B = a_plan(A, number=2)
SHARE = Load("/models/m", 0, 4, SyncSettings())


def failing(now: float = 0.0) -> Fitness:
    fitness = Fitness()
    for _ in range(FAILURES):
        fitness.process_ended("No space left on device", None, now)
    return fitness


def test_some_processes_may_end_before_a_node_is_unfit() -> None:
    fitness = Fitness()
    for _ in range(FAILURES - 1):
        fitness.process_ended("killed by SIGKILL", None, 0.0)
        assert not fitness.text
    fitness.process_ended("No space left on device", None, 1.0)
    assert "No space left on device" in fitness.text
    assert f"{FAILURES} times" in fitness.text


def test_one_that_held_its_layers_makes_the_next_failure_the_first() -> None:
    fitness = Fitness()
    for _ in range(5):
        for _ in range(FAILURES - 1):
            fitness.process_ended("killed", None, 0.0)
        fitness.holds_layers()
    assert not fitness.text


def test_a_node_without_a_rank_starts_a_process_to_see_and_is_fit_when_it_says_hello() -> None:
    fitness, worker, load = failing(), WorkerLife(), WorkerLoad()
    assert fitness.rehearse(WITHOUT_B, worker, load, TRY_AGAIN_S - 1) is None
    assert fitness.next_deadline(WITHOUT_B, RankPhase.OFF, worker) == TRY_AGAIN_S
    assert fitness.rehearse(WITHOUT_B, worker, load, TRY_AGAIN_S) == [StartWorker()]
    assert fitness.rehearse(WITHOUT_B, worker, load, TRY_AGAIN_S) == [], "one is enough"
    fitness.greeted(in_ring=False)
    assert not fitness.text
    assert fitness.rehearse(WITHOUT_B, worker, load, 99.0) is None


def test_each_failure_makes_the_next_try_later_up_to_a_limit() -> None:
    fitness, now, waits = failing(), TRY_AGAIN_S, []
    for _ in range(8):
        fitness.process_ended("still full", None, now)
        at = fitness.next_deadline(WITHOUT_B, RankPhase.OFF, WorkerLife())
        assert at is not None
        waits.append(at - now)
        now = at
    assert waits[:3] == [2 * TRY_AGAIN_S, 4 * TRY_AGAIN_S, 8 * TRY_AGAIN_S]
    assert waits[-1] == TRY_AGAIN_MAX_S


def test_one_that_greeted_and_fails_once_more_is_unfit_at_once() -> None:
    fitness = failing()
    fitness.greeted(in_ring=False)
    fitness.process_ended("it died while it loaded", SHARE, 50.0)
    assert fitness.text


def test_in_a_ring_a_process_that_lives_shows_nothing_yet() -> None:
    """Where all are unfit all are in the ring: a word of each hello would make a plan of it."""
    fitness = failing()
    fitness.greeted(in_ring=True)
    assert fitness.text
    fitness.holds_layers()
    assert not fitness.text


def test_layers_that_could_not_be_loaded_are_loaded_beside_the_ring_and_later_each_time() -> None:
    fitness, worker, load, now = Fitness(), WorkerLife(), WorkerLoad(), 0.0
    for wait_s in (TRY_AGAIN_S, 2 * TRY_AGAIN_S):
        fitness.load_failed("config and weights differ", SHARE, now)
        assert fitness.text == "config and weights differ"
        assert fitness.rehearse(WITHOUT_B, worker, load, now + wait_s - 1) is None
        now += wait_s
        assert fitness.rehearse(WITHOUT_B, worker, load, now) == [StartWorker()]
        worker.said_hello(hello(), now)
        fitness.greeted(in_ring=False)
        assert fitness.text, "nobody is told that it is well"
        assert fitness.rehearse(WITHOUT_B, worker, load, now) == [TellWorker(SHARE)]
        assert fitness.rehearse(WITHOUT_B, worker, load, now) == [], "once"
        worker.ended(now)
        load.forget()
    fitness.holds_layers()
    assert not fitness.text
    assert fitness.rehearse(WITHOUT_B, worker, load, 999.0) is None


def test_a_process_that_ends_again_and_again_while_it_loads_is_to_load_beside_the_ring() -> None:
    fitness, worker, load = Fitness(), WorkerLife(), WorkerLoad()
    for _ in range(FAILURES):
        fitness.process_ended("killed for memory", SHARE, 0.0)
    assert fitness.rehearse(WITHOUT_B, worker, load, TRY_AGAIN_S) == [StartWorker()]
    worker.said_hello(hello(), TRY_AGAIN_S)
    fitness.greeted(in_ring=False)
    assert fitness.rehearse(WITHOUT_B, worker, load, TRY_AGAIN_S) == [TellWorker(SHARE)]


def test_files_that_were_refused_are_looked_at_again_beside_the_ring_and_later_each_time() -> None:
    """The others keep their group: the node stays unfit until it has found the files well."""
    fitness, now = Fitness(), 0.0
    for wait_s in (TRY_AGAIN_S, 2 * TRY_AGAIN_S, 4 * TRY_AGAIN_S):
        fitness.model_refused("config.json cannot be read", now)
        assert fitness.next_deadline(WITHOUT_B, RankPhase.OFF, WorkerLife()) == now + wait_s
        assert not fitness.looks_again(WITHOUT_B, now + wait_s - 1)
        now += wait_s
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


def test_a_rank_that_is_wanted_all_the_same_says_after_a_moment_why_it_does_not_come() -> None:
    fitness = failing(now=1.0)
    assert fitness.failure(1.0 + GIVEN_UP_S - 0.1) is None, "a plan without it may be on its way"
    fitness.process_ended("No space left on device", None, 1.0 + GIVEN_UP_S - 0.05)
    code, text = fitness.failure(1.0 + GIVEN_UP_S) or ("", "")
    assert code == CANNOT_SERVE
    assert "No space left on device; it is tried again" in text
    fitness.holds_layers()
    assert fitness.failure(100.0) is None
