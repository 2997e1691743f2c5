"""What the coordinator gives up: a request that comes no further, and a step that hung twice."""

from __future__ import annotations

from exod.core.engine.engine_messages import (
    CancelRequest,
    RankPhase,
    SubmitRefused,
)
from exod.core.engine.request_progress import edges_of
from exod.core.engine.request_queue import (
    ENDED_GRACE_S,
    REPEAT_S,
    Scheduler,
    SchedulerCommand,
    TellOrigin,
    TellRank,
)
from exod.model import MeshPlan
from tests.core.engine.engine_samples import A, B, a_plan, status, submit
from tests.core.engine.test_request_queue import a_busy_scheduler, names, ranks


def stuck(scheduler: Scheduler, seconds: float, since: float, **fields: object) -> list[SchedulerCommand]:
    """The ranks say for so long that they are at all that is under way, and no further."""
    orders = tuple(one.order for one in scheduler.active)
    at, commands = since, []
    while at < since + seconds:
        at += REPEAT_S
        both = [status(node, under_way=orders, progress=(7,) * len(orders), **fields) for node in (A, B)]
        commands += scheduler.advance(both, True, at)
    return commands


def refusals(commands: list[SchedulerCommand]) -> list[SubmitRefused]:
    return [
        one.message for one in commands if isinstance(one, TellOrigin) and isinstance(one.message, SubmitRefused)
    ]


def test_what_comes_no_further_is_given_up_with_its_deadline_and_its_place_is_free() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=1, recovery_deadline_s=20.0)
    scheduler.submit(submit("r1"), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    scheduler.submit(submit("r2"), 0.0)
    assert refusals(stuck(scheduler, 19.0, 0.0)) == []
    commands = stuck(scheduler, 3.0, 19.0)
    (refused,) = refusals(commands)
    assert (refused.request_id, refused.code) == ("r1", "recovery_failed")
    assert "position 7" in refused.text
    assert "engine.recovery_deadline_s = 20 s" in refused.text
    assert set(names(commands)) == {"r2"}, "though no rank has ended the first one yet"
    assert any(isinstance(one, TellRank) and isinstance(one.message, CancelRequest) for one in commands)


def test_an_origin_that_missed_it_is_told_again_and_the_request_never_begins_anew() -> None:
    scheduler, first = a_busy_scheduler()
    stuck(scheduler, 70.0, 0.0)
    scheduler.advance(ranks(first.order, first.order), True, 71.0)
    later = 71.0 + ENDED_GRACE_S + 1.0
    assert len(refusals(scheduler.submit(submit("r1", tokens=(1,)), later))) == 1
    assert names(scheduler.advance(ranks(first.order, first.order), True, later)) == []


def test_a_step_that_is_computed_all_the_time_is_too_slow_with_figures() -> None:
    scheduler = Scheduler(A, 1, recovery_deadline_s=20.0)
    scheduler.submit(submit("r1"), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    (refused,) = refusals(stuck(scheduler, 22.0, 0.0, computing=True, in_step_s=19.7, layers=(0, 15), model="big"))
    assert refused.code == "too_slow"
    for figure in ("layers 0 to 14", "for 20 s", "position 7", "20 s", "big"):
        assert figure in refused.text


def hangs(scheduler: Scheduler, attempt: int, edges: MeshPlan) -> None:
    for node in (A, B):  # both ranks say so
        scheduler.gave_up(status(node, RankPhase.ABORTED, attempt, edges.hash, gave_up="deadline"), edges)


def test_a_step_that_hung_twice_is_not_tried_a_third_time_on_the_same_links() -> None:
    plan = a_plan(A, B)
    scheduler = Scheduler(A, 1)
    scheduler.submit(submit("r1"), 0.0)
    scheduler.advance(ranks(), True, 0.0, edges_of(plan))
    (first,) = scheduler.active
    hangs(scheduler, 1, plan)
    assert refusals(scheduler.advance(ranks(first.order), True, 1.0, edges_of(plan))) == []
    hangs(scheduler, 2, plan)
    assert refusals(scheduler.advance(ranks(first.order), False, 2.0, edges_of(plan))) == []
    assert refusals(scheduler.advance(ranks(first.order), True, 3.0, ("another path",))) == []
    (refused,) = refusals(scheduler.advance(ranks(first.order), True, 4.0, edges_of(plan)))
    assert refused.code == "step_failed"
