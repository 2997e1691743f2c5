"""The coordinator's queue: one request at a time, in one order on all ranks."""

from __future__ import annotations

from exod.core.engine.engine_messages import (
    BeginRequest,
    CancelRequest,
    Queued,
    RankStatus,
    RequestsEnded,
    SubmitRefused,
    TellBegun,
    client_id,
)
from exod.core.engine.request_queue import (
    CLAIM_S,
    ENDED_GRACE_S,
    MAX_WAITING,
    REPEAT_S,
    STRAGGLER_S,
    Scheduler,
    SchedulerCommand,
    TellOrigin,
    TellRank,
)
from exod.model import NodeId
from tests.core.engine.engine_samples import A, B, C, begin, status, submit


def ranks(begun: int = 0, finished: int = 0) -> list[RankStatus]:
    return [status(node, begun=begun, finished=finished) for node in (A, B)]


def begun_on(commands: list[SchedulerCommand]) -> dict[NodeId, BeginRequest]:
    tells = [command for command in commands if isinstance(command, TellRank)]
    return {tell.to: tell.message for tell in tells if isinstance(tell.message, BeginRequest)}


def a_busy_scheduler(now: float = 0.0) -> tuple[Scheduler, BeginRequest]:
    scheduler = Scheduler(A, 1)
    scheduler.submit(submit("r1"), now)
    scheduler.advance(ranks(), True, now)
    assert scheduler.active is not None
    return scheduler, scheduler.active


def test_a_request_begins_on_every_rank_under_one_order() -> None:
    scheduler = Scheduler(A, 1)
    assert scheduler.submit(submit("r1"), 0.0) == [TellOrigin(B, Queued("r1"))]
    first = begun_on(scheduler.advance(ranks(), True, 0.0))
    assert set(first) == {A, B}
    assert first[A] == first[B]
    assert client_id(first[A].request.request_id) == "r1"
    assert first[A].origin == B


def test_nothing_begins_before_the_group_stands() -> None:
    scheduler = Scheduler(A, 1)
    scheduler.submit(submit("r1"), 0.0)
    assert scheduler.advance(ranks(), False, 0.0) == []
    assert scheduler.waiting == 1


def test_the_next_begins_when_every_rank_has_ended_the_one_before() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.submit(submit("r2"), 0.1)
    half = [status(A, begun=first.order, finished=first.order), status(B, begun=first.order)]
    assert begun_on(scheduler.advance(half, True, 0.2)) == {}
    second = begun_on(scheduler.advance(ranks(first.order, first.order), True, 0.3))
    assert set(second) == {A, B}
    assert second[A].order > first.order


def test_orders_rise_over_lives_and_differ_between_coordinators() -> None:
    orders = []
    for me, incarnation in ((A, 1), (B, 1), (A, 2), (B, 2)):
        scheduler = Scheduler(me, incarnation)
        scheduler.submit(submit("r"), 0.0)
        scheduler.advance(ranks(), True, 0.0)
        assert scheduler.active is not None
        orders.append(scheduler.active.order)
    assert orders == sorted(set(orders))


def test_an_order_is_above_all_that_any_rank_was_given() -> None:
    scheduler = Scheduler(A, 1)
    scheduler.submit(submit("r"), 0.0)
    high = 1 << 60
    scheduler.advance([status(A), status(B, begun=high, finished=high)], True, 0.0)
    assert scheduler.active is not None
    assert scheduler.active.order > high


def test_a_begin_that_was_lost_is_said_again_to_whom_it_concerns() -> None:
    scheduler, first = a_busy_scheduler()
    lacking = [status(A, begun=first.order), status(B)]
    assert scheduler.advance(lacking, True, REPEAT_S - 0.1) == []
    assert set(begun_on(scheduler.advance(lacking, True, REPEAT_S))) == {B}
    assert scheduler.advance(ranks(first.order), True, 2 * REPEAT_S) == []


def test_a_rank_that_joins_in_the_middle_is_given_the_request_without_a_group() -> None:
    scheduler, first = a_busy_scheduler()
    joined = [*ranks(first.order), status(C)]
    assert set(begun_on(scheduler.advance(joined, False, 10.0))) == {C}


def test_a_submission_that_comes_twice_is_confirmed_and_generated_once() -> None:
    scheduler, _ = a_busy_scheduler()
    assert scheduler.submit(submit("r1"), 1.0) == [TellOrigin(B, Queued("r1"))]
    scheduler.submit(submit("r2"), 1.0)
    assert scheduler.submit(submit("r2"), 1.1) == [TellOrigin(B, Queued("r2"))]
    assert scheduler.waiting == 1


def test_a_submission_on_its_way_when_the_answer_ended_is_not_generated_again() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    assert scheduler.submit(submit("r1"), 1.1) == []
    assert scheduler.waiting == 0


def test_an_answer_whose_end_was_lost_is_generated_again_from_what_is_known_under_another_name() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    scheduler.submit(submit("r2"), 1.0)
    scheduler.submit(submit("r1", tokens=(100, 101)), 1.1 + ENDED_GRACE_S)
    again = begun_on(scheduler.advance(ranks(first.order, first.order), True, 12.0))[A]
    assert again.tokens == (100, 101)
    assert again.request.request_id != first.request.request_id
    assert client_id(again.request.request_id) == "r1"
    assert scheduler.waiting == 1  # and before those who have not had their turn


def test_a_full_queue_refuses_with_the_time_to_come_again_but_not_what_was_begun() -> None:
    scheduler, _ = a_busy_scheduler()
    for number in range(MAX_WAITING):
        scheduler.submit(submit(f"w{number}"), 0.0)
    (refusal,) = scheduler.submit(submit("late"), 0.0)
    assert isinstance(refusal.message, SubmitRefused)
    assert refusal.message.code == "queue_full"
    assert refusal.message.retry_after_s > 0
    assert scheduler.submit(submit("begun", tokens=(1,)), 0.0) == [TellOrigin(B, Queued("begun"))]


def test_a_draining_engine_refuses_new_requests_and_goes_on_with_the_others() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.submit(submit("r2"), 0.0)
    scheduler.draining = True
    (refusal,) = scheduler.submit(submit("r3"), 0.0)
    assert isinstance(refusal.message, SubmitRefused)
    assert refusal.message.code == "draining"
    assert len(begun_on(scheduler.advance(ranks(first.order, first.order), True, 1.0))) == 2


def test_a_waiting_request_that_is_cancelled_never_begins() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.submit(submit("r2"), 0.0)
    scheduler.cancel("r2")
    assert begun_on(scheduler.advance(ranks(first.order, first.order), True, 1.0)) == {}


def test_the_cancel_of_the_active_request_is_told_to_all_ranks_until_it_has_ended() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.cancel("r1")
    cancels = [TellRank(node, CancelRequest(first.request.request_id)) for node in (A, B)]
    assert scheduler.advance(ranks(first.order), True, 0.1) == cancels
    assert scheduler.advance(ranks(first.order), True, 0.1 + REPEAT_S) == cancels
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    assert scheduler.active is None


def test_a_rank_that_never_ends_what_others_ended_is_not_waited_for_for_ever() -> None:
    scheduler, first = a_busy_scheduler()
    straggling = [status(A, begun=first.order, finished=first.order), status(B, begun=first.order)]
    scheduler.advance(straggling, True, 1.0)
    scheduler.advance(straggling, True, 0.9 + STRAGGLER_S)
    assert scheduler.active is not None
    ended = scheduler.advance(straggling, True, 1.0 + STRAGGLER_S)
    assert scheduler.active is None
    assert TellRank(B, RequestsEnded(A, first.order)) in ended
    assert TellRank(B, RequestsEnded(A, first.order)) in scheduler.advance(straggling, True, 10.0)


def test_the_next_coordinator_goes_on_with_what_its_own_rank_holds() -> None:
    scheduler = Scheduler(B, 1)
    held = begin(10, "r1")
    scheduler.take_over([held], 10, 0.0)
    assert scheduler.active == held
    assert scheduler.submit(submit("r1"), 0.0) == [TellOrigin(B, Queued("r1"))]
    assert set(begun_on(scheduler.advance([status(B, begun=10), status(C)], False, 0.0))) == {C}


def test_the_next_coordinator_asks_for_what_only_another_rank_holds_and_begins_nothing_meanwhile() -> None:
    scheduler = Scheduler(B, 1)
    scheduler.take_over([], 0, 0.0)
    scheduler.submit(submit("r2"), 0.0)
    scheduler.submit(submit("r1"), 0.0)
    held = begin(1 << 40, "r1")
    statuses = [status(B), status(C, begun=held.order)]
    assert scheduler.advance(statuses, True, 0.0) == [TellRank(C, TellBegun(B))]
    assert scheduler.advance(statuses, True, REPEAT_S) == [TellRank(C, TellBegun(B))]
    scheduler.adopt(held, 0.0)
    assert scheduler.active == held
    assert scheduler.waiting == 1  # r1 waits no more: it is under way
    assert set(begun_on(scheduler.advance(statuses, True, 2 * REPEAT_S))) == {B}


def test_a_late_word_of_an_ended_request_changes_nothing() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    scheduler.adopt(first, 0.0)
    assert scheduler.active is None


def test_who_coordinates_no_more_holds_nothing() -> None:
    scheduler, _ = a_busy_scheduler()
    scheduler.submit(submit("r2"), 0.0)
    scheduler.give_up()
    assert (scheduler.active, scheduler.waiting) == (None, 0)


# --- whose answer it is -------------------------------------------------------------------------------------


def cancels(commands: list[SchedulerCommand]) -> list[CancelRequest]:
    tells = [command.message for command in commands if isinstance(command, TellRank)]
    return [message for message in tells if isinstance(message, CancelRequest)]


def at_work(order: int) -> list[RankStatus]:
    return ranks(order, order - 1)


def test_an_answer_that_nobody_claims_is_cancelled_and_may_be_begun_again() -> None:
    scheduler = Scheduler(A, 1)
    found = begin(1 << 20, "r1", origin=NodeId(""))
    scheduler.take_over([found], found.order, 0.0)
    assert cancels(scheduler.advance(at_work(found.order), True, CLAIM_S - 0.1)) == []
    assert len(cancels(scheduler.advance(at_work(found.order), True, CLAIM_S + REPEAT_S))) == 2
    assert scheduler.submit(submit("r1"), CLAIM_S + 1.0) == [], "too late for this generation"
    scheduler.advance(ranks(found.order, found.order), True, CLAIM_S + 2.0)
    assert scheduler.active is None
    assert scheduler.submit(submit("r1"), CLAIM_S + 2.1) == [TellOrigin(B, Queued("r1"))]


def test_an_answer_that_is_claimed_goes_on_whether_the_claim_comes_before_or_after_it_is_found() -> None:
    found = begin(1 << 20, "r1", origin=NodeId(""))
    after, before = Scheduler(A, 1), Scheduler(A, 1)
    after.take_over([found], found.order, 0.0)
    assert after.submit(submit("r1"), 1.0) == [TellOrigin(B, Queued("r1"))]
    before.submit(submit("r1"), 0.0)
    before.adopt(found, 0.1)
    for scheduler in (after, before):
        assert scheduler.active is not None
        assert scheduler.active.origin == B
        assert cancels(scheduler.advance(at_work(found.order), True, CLAIM_S * 2)) == []


def test_an_answer_whose_origin_is_no_member_any_more_must_be_claimed() -> None:
    scheduler, active = a_busy_scheduler()
    scheduler.members([A, B], 1.0)
    assert cancels(scheduler.advance(at_work(active.order), True, CLAIM_S + 2.0)) == []
    scheduler.members([A, C], 10.0)
    assert cancels(scheduler.advance(at_work(active.order), True, 10.0 + CLAIM_S))
