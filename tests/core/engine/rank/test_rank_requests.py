"""What a rank does with requests: its worker is given each once, and a new process what is known of it."""

from __future__ import annotations

import msgspec

from exod.core.engine.rank.held_requests import (
    KILLED,
    LATER_DEATHS_LIMIT,
    SOMEONE_ELSES_LIMIT,
    RequestGivenUp,
)
from exod.core.engine.rank.rank_status import ReportStatus
from exoengine.protocol import (
    Begin,
    Cancel,
    Load,
)
from tests.core.engine.engine_samples import (
    FOLDER,
    A,
    B,
    a_plan,
    begin,
    finished,
    hello,
    loaded,
    only,
    token,
    told,
)
from tests.core.engine.rank.rank_samples import (
    FACTS,
    a_formed_rank,
)


def test_a_request_is_given_to_the_worker_once() -> None:
    rank = a_formed_rank()
    first = begin(10)
    assert told(rank.begin(first, 4.0)) == [Begin(10, first.request)]
    assert told(rank.begin(first, 4.1)) == []
    assert rank.requests.begun_order == 10


def test_a_new_process_is_given_the_request_with_what_is_known_of_the_answer() -> None:
    rank = a_formed_rank()
    first = begin(10)
    name = first.request.request_id
    rank.begin(first, 4.0)
    for index in (0, 1, 1, 2):
        rank.worker_said(token(name, index), 5.0)
    rank.worker_gone("it crashed", 6.0)
    rank.handle_timer(7.0)
    rank.worker_said(hello(), 8.0)
    # Less the last token: with a whole answer the worker would find nothing left to do, and say nothing.
    assert told(rank.worker_said(loaded(6, 12), 9.0)) == [Begin(10, first.request, (100, 101))]


def test_a_new_process_is_given_the_last_finished_request_until_it_has_ended_everywhere() -> None:
    rank = a_formed_rank()
    first = begin(10)
    name = first.request.request_id
    rank.begin(first, 4.0)
    rank.worker_said(token(name, 0), 5.0)
    rank.worker_said(finished(name), 5.0)

    def what_a_new_process_is_told(now: float) -> list[object]:
        rank.worker_gone("it crashed", now)
        rank.handle_timer(now + 20)
        rank.worker_said(hello(), now + 21)
        return list(told(rank.worker_said(loaded(6, 12), now + 22)))

    assert what_a_new_process_is_told(6.0) == [Begin(10, first.request, (100,))]
    rank.ended(10, (), 30.0)
    assert what_a_new_process_is_told(40.0) == []


def test_a_cancel_is_kept_for_the_next_process() -> None:
    rank = a_formed_rank()
    first = begin(10, "r7")
    rank.begin(first, 4.0)
    rank.worker_gone("it crashed", 5.0)
    assert told(rank.cancel("r7")) == []
    rank.handle_timer(6.0)
    rank.worker_said(hello(), 7.0)
    name = first.request.request_id
    unread = msgspec.structs.replace(first.request, prompt=(0,))  # the process may have died of it
    assert told(rank.worker_said(loaded(6, 12), 8.0)) == [Begin(10, unread), Cancel(name)]


def test_several_requests_are_under_way_and_each_ends_by_itself() -> None:
    rank = a_formed_rank()
    first, second, third = begin(10, "a"), begin(20, "b"), begin(30, "c")
    for one in (first, third, second):  # the second was lost at first
        assert told(rank.begin(one, 4.0)) == [Begin(one.order, one.request)]
    status = only(rank.worker_said(finished(second.request.request_id), 5.0), ReportStatus)[-1].status
    assert (status.under_way, status.ended, status.finished_order) == ((10, 30), (20,), 0)
    assert told(rank.begin(second, 6.0)) == []
    status = only(rank.ended(5, (20,), 7.0) + rank.ended(10, (), 8.0), ReportStatus)[-1].status
    assert (status.under_way, status.finished_order) == ((30,), 10)


def test_a_request_over_which_the_process_dies_twice_is_given_up_and_never_read_again() -> None:
    rank = a_formed_rank()
    poison, going = begin(20, "poison"), begin(10, "going")
    for one in (going, poison):
        rank.begin(one, 4.0)
    rank.worker_said(token(going.request.request_id, 0), 4.5)

    def dies(now: float) -> list[RequestGivenUp]:
        given_up = only(rank.worker_gone("it crashed", now), RequestGivenUp)
        rank.handle_timer(now + 20)
        rank.worker_said(hello(), now + 21)
        return given_up

    assert dies(5.0) == []
    rank.worker_said(loaded(6, 12), 27.0)
    (given_up,) = dies(30.0)
    assert given_up.begin == poison
    assert "it crashed" in given_up.text
    rank.cancel("poison")
    known = told(rank.worker_said(loaded(6, 12), 60.0))
    assert known == [
        Begin(10, going.request),
        Begin(20, msgspec.structs.replace(poison.request, prompt=(0,))),
        Cancel(poison.request.request_id),
    ]


def test_a_process_that_someone_killed_twice_is_no_requests_fault_yet() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    given_up: list[RequestGivenUp] = []
    for number in range(LATER_DEATHS_LIMIT):
        assert given_up == []
        given_up = only(rank.worker_gone(KILLED, 5.0 + 60 * number), RequestGivenUp)
        rank.handle_timer(25.0 + 60 * number)
        rank.worker_said(hello(), 26.0 + 60 * number)
        rank.worker_said(loaded(6, 12), 30.0 + 60 * number)
    assert [one.begin.order for one in given_up] == [10]


def test_a_request_that_had_tokens_outlives_more_kills_by_somebody_else() -> None:
    rank = a_formed_rank()
    going = begin(10, "going")
    rank.begin(going, 4.0)
    rank.worker_said(token(going.request.request_id, 0), 4.5)
    given_up: list[RequestGivenUp] = []
    for number in range(SOMEONE_ELSES_LIMIT):
        assert given_up == []
        given_up = only(rank.worker_gone(KILLED, 5.0 + 60 * number), RequestGivenUp)
        rank.handle_timer(25.0 + 60 * number)
        rank.worker_said(hello(), 26.0 + 60 * number)
        rank.worker_said(loaded(6, 12), 30.0 + 60 * number)
    assert [one.begin.order for one in given_up] == [10]
    assert SOMEONE_ELSES_LIMIT > LATER_DEATHS_LIMIT


def test_a_process_that_was_told_of_no_request_did_not_die_over_one() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    for number in range(4):
        died = rank.worker_gone("it was killed while it loaded", 5.0 + 30 * number)
        assert only(died, RequestGivenUp) == []
        rank.handle_timer(25.0 + 30 * number)
        rank.worker_said(hello(), 26.0 + 30 * number)


def test_a_cancel_goes_by_the_clients_name_and_is_said_once() -> None:
    rank = a_formed_rank()
    first = begin(10, "r7")
    rank.begin(first, 4.0)
    assert told(rank.cancel("r7")) == [Cancel(first.request.request_id)]
    assert told(rank.cancel("r7")) == []
    assert told(rank.cancel("r8")) == []


def test_a_rank_that_still_holds_what_has_ended_elsewhere_makes_its_worker_forget_it() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    nxt = begin(20, "next", ended=19)
    commands = rank.begin(nxt, 5.0)
    assert told(commands) == [Load(FOLDER, 6, 12)]
    assert told(rank.worker_said(loaded(6, 12), 6.0)) == [Begin(20, nxt.request)]
    final = only(rank.handle_timer(rank.next_deadline()), ReportStatus)[-1].status
    assert (final.begun_order, final.finished_order) == (20, 19)


def test_another_model_does_not_go_on_with_this_ones_words() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    rank.commit(a_plan(A, B, number=2, model="other"), "why", 5.0)
    assert rank.active == {}


def test_a_model_that_is_wanted_again_at_once_does_not_go_on_with_what_was_ended_for_another() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 3.5)
    rank.commit(a_plan(A, B, number=2, model="other"), "another model is wanted", 4.0)
    back = a_plan(A, B, number=3)
    commands = rank.commit(back, "the first one is wanted again", 4.05)
    commands += rank.model_found(FACTS, 4.1)
    assert any(isinstance(one, Load) for one in told(commands)), "it forgets by it"
