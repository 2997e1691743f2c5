"""A rank that is killed for memory again and again: named with figures, ever longer pauses, stopped after five."""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent, StartWorker
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.memory_kills import MOST, WITHIN_S, MemoryKills
from tests.core.engine.engine_samples import B, hello, only
from tests.core.engine.rank.rank_samples import a_resolved_rank

KILLED = "the kernel killed it for memory: its control group has a limit of 0.50 GiB"


def test_pauses_double_and_the_fifth_kill_within_ten_minutes_is_the_last() -> None:
    kills = MemoryKills()
    assert [kills.killed(KILLED, float(at)) for at in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert not kills.is_spent(4.0)
    kills.killed(KILLED, 20.0)
    assert kills.is_spent(20.0)
    assert kills.text(20.0) == (
        f"this node's rank was killed for memory 5 times in 20 s; the last time {KILLED}; it is not started again: "
        "free memory, then exoctl engine unload and load; or load a smaller model"
    )
    assert not kills.is_spent(WITHIN_S + 1.0)
    kills.wanted_anew()
    assert kills.text(20.0) == ""


def test_a_rank_that_is_killed_for_memory_five_times_fails_with_the_figures_and_is_not_started_again() -> None:
    rank, now = a_resolved_rank(), 1.0
    for number in range(MOST):
        rank.worker_said(hello(), now)
        commands = rank.worker_gone(KILLED, now, for_memory=True)
        (restarted,) = [one for one in only(commands, EmitEvent) if one.type == "engine.restarted"]
        assert restarted.data["text"] == KILLED
        assert not only(commands, StartWorker), "a pause comes first"
        if number < MOST - 1:
            now = rank.worker.restart_at
            assert only(rank.handle_timer(now), StartWorker)
    assert rank.phase is RankPhase.FAILED
    assert rank.model.failure is not None
    assert rank.model.failure[0] == "out_of_memory"
    assert "5 times" in rank.model.failure[1]
    assert "0.50 GiB" in rank.model.failure[1]
    for later in (60.0, 300.0):
        assert not only(rank.handle_timer(now + later), StartWorker)
    (fact,) = rank.worker.memory.facts(B, now)
    assert (fact.code, fact.subject) == ("out_of_memory", B)
