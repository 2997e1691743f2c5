"""The coordinator's queue: who is next, and what each rank is told of it."""

from __future__ import annotations

import msgspec

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
    """With one place, which is taken."""
    scheduler = Scheduler(A, 1, max_concurrent=1)
    scheduler.submit(submit("r1"), now)
    scheduler.advance(ranks(), True, now)
    return scheduler, the_one(scheduler)


def the_one(scheduler: Scheduler) -> BeginRequest:
    (active,) = scheduler.active
    return active


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
        orders.append(the_one(scheduler).order)
    assert orders == sorted(set(orders))


def test_an_order_is_above_all_that_any_rank_was_given() -> None:
    scheduler = Scheduler(A, 1)
    scheduler.submit(submit("r"), 0.0)
    high = 1 << 60
    scheduler.advance([status(A), status(B, begun=high, finished=high)], True, 0.0)
    assert the_one(scheduler).order > high


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
    assert scheduler.queue_times.preemptions == 0
    scheduler.submit(submit("r1", tokens=(100, 101)), 1.1 + ENDED_GRACE_S)
    assert scheduler.queue_times.preemptions == 1
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
    scheduler.cancel("r1")
    assert scheduler.advance(ranks(first.order), True, 0.1) == [], "a cancel that answers one is no news"
    assert scheduler.advance(ranks(first.order), True, 0.1 + REPEAT_S) == cancels
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    assert scheduler.active == ()


def test_a_rank_that_never_ends_what_others_ended_is_not_waited_for_for_ever() -> None:
    scheduler, first = a_busy_scheduler()
    straggling = [status(A, begun=first.order, finished=first.order), status(B, begun=first.order)]
    scheduler.advance(straggling, True, 1.0)
    scheduler.advance(straggling, True, 0.9 + STRAGGLER_S)
    assert the_one(scheduler) == first
    ended = scheduler.advance(straggling, True, 1.0 + STRAGGLER_S)
    assert scheduler.active == ()
    assert TellRank(B, RequestsEnded(A, first.order)) in ended
    assert TellRank(B, RequestsEnded(A, first.order)) in scheduler.advance(straggling, True, 10.0)


def test_what_another_coordinator_ended_ends_in_the_next_group_and_is_begun_again() -> None:
    """Two sides of a partition had it, and B's side ended it."""
    scheduler, first = a_busy_scheduler()
    joined = [status(A, begun=first.order), status(B, begun=first.order, finished=first.order)]
    told = begun_on(scheduler.advance(joined, False, 1.0))
    assert set(told) == {B}
    assert told[B].only_to_end
    assert told[B].order == first.order
    scheduler.advance(joined, False, 20.0)
    assert the_one(scheduler) == first, "only in a group can they end it"
    scheduler.advance(joined, True, 21.0)
    scheduler.advance(ranks(first.order, first.order), True, 21.1)
    assert scheduler.active == ()
    scheduler.submit(submit("r1"), 21.2)
    assert set(begun_on(scheduler.advance(ranks(first.order, first.order), True, 21.2))) == {A, B}


def test_what_a_side_of_a_partition_gave_up_above_an_older_one_ends_there_too_once_that_lasts() -> None:
    scheduler, first = a_busy_scheduler()
    above = msgspec.structs.replace(status(B, begun=first.order), ended=(first.order,), unanswered=(first.order,))
    joined = [status(A, begun=first.order), above]
    assert begun_on(scheduler.advance(joined, True, 1.0)) == {}, "A may be about to end it as well"
    told = begun_on(scheduler.advance(joined, True, 1.0 + REPEAT_S))
    assert set(told) == {B}
    assert told[B].only_to_end


def test_a_rank_that_has_the_answer_is_not_told_to_end_it() -> None:
    """A fault in the last step: the rank that lacks the end gets it from the one that has it."""
    scheduler, first = a_busy_scheduler()
    with_it = msgspec.structs.replace(status(B, begun=first.order), ended=(first.order,))
    for now in (1.0, 1.0 + REPEAT_S):
        assert begun_on(scheduler.advance([status(A, begun=first.order), with_it], True, now)) == {}


def test_what_ended_while_its_origin_was_away_is_begun_again_when_that_asks() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.members([A], 0.1)
    alone = [status(A, begun=first.order, finished=first.order)]
    scheduler.advance(alone, True, 1.0)
    scheduler.submit(submit("r1"), 2.0)
    assert client_id(begun_on(scheduler.advance(alone, True, 2.0))[A].request.request_id) == "r1"


def test_the_next_coordinator_goes_on_with_what_its_own_rank_holds() -> None:
    scheduler = Scheduler(B, 1)
    held = begin(10, "r1")
    scheduler.take_over([held], 10, 0.0)
    assert the_one(scheduler) == held
    assert scheduler.submit(submit("r1"), 0.0) == [TellOrigin(B, Queued("r1"))]
    assert set(begun_on(scheduler.advance([status(B, begun=10), status(C)], False, 0.0))) == {C}


def test_the_next_coordinator_asks_for_what_only_another_rank_holds_and_begins_nothing_meanwhile() -> None:
    scheduler = Scheduler(B, 1, max_concurrent=1)
    scheduler.take_over([], 0, 0.0)
    scheduler.submit(submit("r2"), 0.0)
    scheduler.submit(submit("r1"), 0.0)
    held = begin(1 << 40, "r1")
    statuses = [status(B), status(C, begun=held.order)]
    assert scheduler.advance(statuses, True, 0.0) == [TellRank(C, TellBegun(B))]
    assert scheduler.advance(statuses, True, REPEAT_S) == [TellRank(C, TellBegun(B))]
    scheduler.adopt(held, 0.0)
    assert the_one(scheduler) == held
    assert scheduler.waiting == 1  # r1 waits no more: it is under way
    assert set(begun_on(scheduler.advance(statuses, True, 2 * REPEAT_S))) == {B}


def test_a_late_word_of_an_ended_request_changes_nothing() -> None:
    scheduler, first = a_busy_scheduler()
    scheduler.advance(ranks(first.order, first.order), True, 1.0)
    scheduler.adopt(first, 0.0)
    assert scheduler.active == ()


def test_who_coordinates_no_more_holds_nothing() -> None:
    scheduler, _ = a_busy_scheduler()
    scheduler.submit(submit("r2"), 0.0)
    scheduler.give_up()
    assert (scheduler.active, scheduler.waiting) == ((), 0)


# --- many at once -------------------------------------------------------------------------------------------


def ask(scheduler: Scheduler, name: str, client: str) -> None:
    scheduler.submit(msgspec.structs.replace(submit(name), client=client), 0.0)


def names(commands: list[SchedulerCommand]) -> list[str]:
    """Of the requests that are begun on one rank."""
    tells = [command for command in commands if isinstance(command, TellRank) and command.to == A]
    return [client_id(one.message.request.request_id) for one in tells if isinstance(one.message, BeginRequest)]


def ending(scheduler: Scheduler, *ended: str) -> list[RankStatus]:
    """The ranks are at all that is under way but for these, which they have ended."""
    orders = {client_id(one.request.request_id): one.order for one in scheduler.active}
    gone = tuple(orders[name] for name in ended)
    going = tuple(order for order in orders.values() if order not in gone)
    return [status(node, under_way=going, ended=gone) for node in (A, B)]


def test_as_many_begin_as_there_are_places_and_each_end_gives_one_on() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    for name in ("r1", "r2", "r3"):
        scheduler.submit(submit(name), 0.0)
    assert names(scheduler.advance(ranks(), True, 0.0)) == ["r1", "r2"]
    first, second = scheduler.active
    assert names(scheduler.advance(ending(scheduler), True, 0.1)) == []
    commands = scheduler.advance(ending(scheduler, "r2"), True, 0.2)
    assert names(commands) == ["r3"]
    assert scheduler.active[0] == first
    ended = RequestsEnded(A, first.order - 1, (second.order,))  # the one before it is under way
    assert TellRank(B, ended) in commands


def test_what_all_requests_up_to_an_order_have_ended_is_told_with_the_next() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    for name in ("r1", "r2", "r3", "r4"):
        scheduler.submit(submit(name), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    second = scheduler.active[1]
    statuses = ending(scheduler, "r1", "r2")
    third = begun_on(scheduler.advance(statuses, True, 0.1))[A]
    assert third.ended_order == second.order


def test_clients_take_turns_and_each_is_served_in_its_order() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    for name in ("x1", "x2", "x3", "x4"):
        ask(scheduler, name, "x")
    ask(scheduler, "y1", "y")
    ask(scheduler, "y2", "y")
    order = names(scheduler.advance(ranks(), True, 0.0))
    assert order == ["x1", "y1"]
    order += names(scheduler.advance(ending(scheduler, "x1"), True, 0.1))
    order += names(scheduler.advance(ending(scheduler, "y1"), True, 0.2))
    order += names(scheduler.advance(ending(scheduler, "y2"), True, 0.3))
    assert order == ["x1", "y1", "x2", "y2", "x3"]


def test_a_begin_that_was_lost_is_said_again_though_a_later_request_has_ended() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    for name in ("r1", "r2"):
        scheduler.submit(submit(name), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    first, second = scheduler.active
    knowing = status(A, under_way=(first.order,), ended=(second.order,))
    lacking = status(B, begun=second.order, under_way=(), ended=(second.order,))
    assert begun_on(scheduler.advance([knowing, lacking], True, REPEAT_S))[B].order == first.order
    assert [one.order for one in scheduler.active] == [first.order]


def test_the_next_coordinator_adopts_all_that_is_under_way_wherever_it_is_known() -> None:
    scheduler = Scheduler(B, 1)
    own, others = begin(20, "r2"), begin(10, "r1")
    scheduler.take_over([own], 20, 0.0)
    statuses = [status(B, under_way=(20,)), status(C, under_way=(10, 20))]
    assert TellRank(C, TellBegun(B)) in scheduler.advance(statuses, True, 0.0)
    scheduler.adopt(others, 0.1)
    assert scheduler.active == (others, own)
    assert set(begun_on(scheduler.advance(statuses, True, REPEAT_S))) == {B}


def test_who_is_refused_is_told_to_come_when_a_place_is_free_as_long_as_answers_take() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    scheduler.submit(submit("r0"), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    scheduler.advance(ending(scheduler, "r0"), True, 40.0)
    for number in range(MAX_WAITING):
        scheduler.submit(submit(f"w{number}"), 40.0)
    (refusal,) = scheduler.submit(submit("late"), 40.0)
    assert isinstance(refusal.message, SubmitRefused)
    assert refusal.message.retry_after_s == 20.0  # of two at a time that take 40 s each, one ends every 20 s


def test_where_answers_began_together_the_next_place_is_free_when_the_first_of_them_ends() -> None:
    scheduler = Scheduler(A, 1, max_concurrent=2)
    scheduler.submit(submit("r0"), 0.0)
    scheduler.advance(ranks(), True, 0.0)
    scheduler.advance(ending(scheduler, "r0"), True, 40.0)
    for number in range(MAX_WAITING):
        scheduler.submit(submit(f"w{number}"), 40.0)
    assert len(begun_on(scheduler.advance(ranks(), True, 40.0))) == 2
    for number in range(2):
        scheduler.submit(submit(f"more {number}"), 40.0)
    told = []
    for now in (45.0, 60.0, 79.8, 100.0):
        (refusal,) = scheduler.submit(submit(f"late at {now}"), now)
        assert isinstance(refusal.message, SubmitRefused)
        told.append(refusal.message.retry_after_s)
    assert told == [35.0, 20.0, 1.0, 30.0]


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
    assert scheduler.active == ()
    assert scheduler.submit(submit("r1"), CLAIM_S + 2.1) == [TellOrigin(B, Queued("r1"))]


def test_an_answer_that_is_claimed_goes_on_whether_the_claim_comes_before_or_after_it_is_found() -> None:
    found = begin(1 << 20, "r1", origin=NodeId(""))
    after, before = Scheduler(A, 1), Scheduler(A, 1)
    after.take_over([found], found.order, 0.0)
    assert after.submit(submit("r1"), 1.0) == [TellOrigin(B, Queued("r1"))]
    before.submit(submit("r1"), 0.0)
    before.adopt(found, 0.1)
    for scheduler in (after, before):
        assert the_one(scheduler).origin == B
        assert cancels(scheduler.advance(at_work(found.order), True, CLAIM_S * 2)) == []


def test_an_answer_whose_origin_is_no_member_any_more_must_be_claimed() -> None:
    scheduler, active = a_busy_scheduler()
    scheduler.members([A, B], 1.0)
    assert cancels(scheduler.advance(at_work(active.order), True, CLAIM_S + 2.0)) == []
    scheduler.members([A, C], 10.0)
    assert cancels(scheduler.advance(at_work(active.order), True, 10.0 + CLAIM_S))
