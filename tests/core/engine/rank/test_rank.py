"""One rank's life, command by command. Its process, its requests and what it tells: the files beside this one."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.engine_events import EmitEvent, LeaveWorker, ResolveModel, StartWorker
from exod.core.engine.engine_messages import FormOrder, RankPhase, RankStatus
from exod.core.engine.rank.hosted_model import FAILED_RETRY_S, RETRY_MOMENT_S
from exod.core.engine.rank.rank import FORM_GIVEN_S, RankCommand
from exod.core.engine.rank.rank_status import ReportStatus
from exod.core.engine.rank.worker_life import KEEP_S
from exod.model import MeshPlan
from exoengine.protocol import (
    Abort,
    Aborted,
    Form,
    Formed,
    Load,
    LoadFailed,
    Prepare,
    Prepared,
)
from tests.core.engine.engine_samples import (
    FOLDER,
    A,
    B,
    C,
    a_plan,
    beat,
    hello,
    loaded,
    only,
    phases,
    told,
)
from tests.core.engine.rank.rank_samples import (
    FACTS,
    PLAN,
    a_formed_rank,
    a_loaded_rank,
    a_rank,
    a_resolved_rank,
    order,
    prepare,
    reformed,
)

# --- the way into a group -----------------------------------------------------------------------------------


def test_a_plan_is_followed_step_by_step_into_its_group() -> None:
    rank = a_rank()
    assert only(rank.commit(PLAN, "why", 0.0), ResolveModel) == [ResolveModel("m")]
    assert only(rank.model_found(FACTS, 0.0), StartWorker) == [StartWorker()]
    assert told(rank.worker_said(hello(), 1.0)) == [Load(FOLDER, 6, 12)]
    assert phases(rank.worker_said(loaded(6, 12), 2.0))[-1] is RankPhase.LOADED
    orders = told(rank.order(order(PLAN, 1, "prepare"), 3.0))
    assert orders == [
        Prepare(
            PLAN.hash,
            1,
            1,
            2,
            ("10.0.0.1:52420", "10.0.0.2:52420"),
            ("10.0.0.1", "10.0.0.2"),
            connect_from="10.0.0.2",
            accept_from="10.0.0.1",
            connect_interface="b0",
            listen_interface="b0",
            key=b"the ring's key",
        )
    ]
    assert phases(rank.worker_said(Prepared(PLAN.hash, 1), 3.1)) == [RankPhase.PREPARED]
    assert told(rank.order(order(PLAN, 1, "form"), 3.2)) == [Form(PLAN.hash, 1, FORM_GIVEN_S)]
    assert phases(rank.worker_said(Formed(PLAN.hash, 1, -1), 3.4)) == [RankPhase.FORMED]


def test_a_rank_alone_prepares_without_neighbours() -> None:
    plan = a_plan(B)
    rank = a_loaded_rank(plan)
    (prepared,) = told(rank.order(order(plan, 1, "prepare"), 3.0))
    assert isinstance(prepared, Prepare)
    assert (prepared.size, prepared.hosts, prepared.connect_from) == (1, (), "")


def test_an_order_that_was_followed_is_answered_by_a_report_and_nothing_else() -> None:
    rank = a_formed_rank()
    for step in ("prepare", "form"):
        commands = rank.order(order(PLAN, 1, step), 4.0)
        assert told(commands) == []
        assert phases(commands) == [RankPhase.FORMED]


def test_orders_of_other_plans_other_nodes_and_older_attempts_change_nothing() -> None:
    rank = a_loaded_rank()
    prepare(rank, attempt=3)
    for strange in (
        FormOrder(A, "plan0", 9, "prepare"),
        FormOrder(C, PLAN.hash, 9, "prepare"),
        order(PLAN, 2, "prepare"),
        order(PLAN, 2, "form"),
        order(PLAN, 4, "form"),
    ):
        assert told(rank.order(strange, 4.0)) == []


def test_a_new_plan_with_the_same_span_keeps_the_group_until_it_is_prepared() -> None:
    rank = a_formed_rank()
    plan = a_plan(A, B, number=2)
    assert told(rank.commit(plan, "why", 4.0)) == []
    assert rank.phase is RankPhase.LOADED
    assert [type(message) for message in told(rank.order(order(plan, 1, "prepare"), 4.1))] == [Prepare]


@pytest.mark.parametrize(
    ("plan", "span"),
    [
        (a_plan(A, B, number=2, split=(2, 10)), (2, 12)),
        (a_plan(A, B, C, number=2), (4, 8)),
        (a_plan(A, B, number=2, split=(10, 2)), (10, 12)),
    ],
)
def test_a_new_plan_with_another_span_loads_it(plan: MeshPlan, span: tuple[int, int]) -> None:
    rank = a_formed_rank(layer_s=60.0)
    assert told(rank.commit(plan, "why", 4.0)) == [Load(FOLDER, *span)]


@pytest.mark.parametrize(("layer_s", "patience_s"), [(0.01, 0.16), (0.5, 3.1), (60.0, KEEP_S)])
def test_a_rank_that_is_gone_is_waited_for_as_long_as_loading_its_layers_takes(
    layer_s: float, patience_s: float
) -> None:
    rank = a_formed_rank(layer_s=layer_s)
    commands, due = rank.commit(a_plan(B, number=2), "studio1 is down", 4.0), 4.0
    assert "come back" in only(commands, ReportStatus)[-1].status.text
    while not told(commands):
        due = rank.next_deadline()
        commands = rank.handle_timer(due)
        rank.worker_said(beat(), due)
    assert told(commands) == [Load(FOLDER, 0, 12)]
    assert due == pytest.approx(4.0 + patience_s)


def test_a_rank_that_comes_back_in_time_finds_the_others_with_their_layers() -> None:
    rank = a_formed_rank(layer_s=60.0)
    assert told(rank.commit(a_plan(B, number=2), "studio1 is down", 4.0)) == []
    assert rank.phase is RankPhase.LOADING
    assert told(rank.commit(a_plan(A, B, number=3), "studio1 joined", 6.0)) == []
    assert rank.phase is RankPhase.LOADED


def test_a_plan_that_is_suspended_is_aborted_at_once() -> None:
    rank = a_formed_rank()
    commands = rank.suspend(PLAN.hash, "the cable was cut", 4.0)
    assert told(commands) == [Abort("the cable was cut")]
    assert only(commands, ReportStatus)[-1].status.plan_hash == ""
    assert rank.order(order(PLAN, 2, "prepare"), 4.1) == []
    assert rank.suspend(PLAN.hash, "again", 4.2) == []
    assert rank.suspend("plan0", "another", 4.2) == []


def test_the_same_plan_committed_again_is_taken_up_again() -> None:
    rank = a_formed_rank()
    rank.suspend(PLAN.hash, "the cable was cut", 4.0)
    commands = rank.commit(PLAN, "why", 5.0)
    assert only(commands, ReportStatus)[-1].status.plan_hash == PLAN.hash
    assert told(rank.order(order(PLAN, 1, "prepare"), 5.1)) == []
    assert [type(message) for message in told(rank.order(order(PLAN, 2, "prepare"), 5.2))] == [Prepare]


def test_a_rank_that_gave_up_says_so_and_follows_the_next_attempt() -> None:
    rank = a_formed_rank()
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "peer_lost", "gone", 4), 10.0)
    assert phases(commands) == [RankPhase.ABORTED]
    assert only(commands, EmitEvent) == [
        EmitEvent("engine.aborted", {"code": "peer_lost", "text": "gone", "step": 4})
    ]
    prepare(rank, attempt=2, now=10.1)
    rank.order(order(PLAN, 2, "form"), 10.2)
    stories = only(rank.worker_said(Formed(PLAN.hash, 2, 5), 10.25), EmitEvent)
    assert stories == [reformed(250.0, step=5, attempt=2, cause="fault", reason="gone")]


def test_a_group_that_another_rank_gave_up_is_aborted_here_at_once() -> None:
    """The end of the connections may be lost on the way, and this worker would wait for a step's deadline."""
    rank = a_formed_rank()
    gave_up = RankStatus(B, 1, 1, RankPhase.ABORTED, PLAN.hash, 1)
    assert told(rank.heard_of(gave_up, 3.0)) == [Abort("another rank gave the group up")]
    assert rank.heard_of(msgspec.structs.replace(gave_up, phase=RankPhase.FORMED), 3.0) == []
    assert rank.heard_of(msgspec.structs.replace(gave_up, attempt=2), 3.0) == [], "another attempt"
    assert rank.heard_of(msgspec.structs.replace(gave_up, plan_hash="of yesterday"), 3.0) == []
    assert a_loaded_rank().heard_of(gave_up, 3.0) == [], "it stands in no group"


# --- leaving ------------------------------------------------------------------------------------------------


def test_a_plan_without_this_rank_lets_the_worker_leave_once() -> None:
    rank = a_formed_rank()
    without = a_plan(A, number=2)
    assert only(rank.commit(without, "why", 4.0), LeaveWorker) == [LeaveWorker()]
    assert only(rank.handle_timer(rank.next_deadline()), LeaveWorker) == []
    assert rank.phase is RankPhase.OFF
    assert only(rank.worker_gone("it ended", 5.0), EmitEvent) == []
    assert rank.worker.restarts == 0
    assert only(rank.handle_timer(60.0), StartWorker) == []


def test_a_plan_that_comes_while_the_worker_leaves_starts_the_next_when_it_is_gone() -> None:
    rank = a_formed_rank()
    rank.commit(a_plan(A, number=2), "why", 4.0)
    rank.commit(a_plan(A, B, number=3), "why", 4.1)
    commands = rank.model_found(FACTS, 4.2)
    assert told(commands) == []
    assert only(commands, StartWorker) == []
    assert told(rank.order(order(a_plan(A, B, number=3), 1, "prepare"), 4.3)) == []
    assert only(rank.worker_gone("it ended", 5.0), StartWorker) == [StartWorker()]


def test_a_worker_that_leaves_with_its_daemon_has_not_crashed() -> None:
    rank = a_formed_rank()
    rank.leaving(4.0)
    assert only(rank.worker_gone("it ended", 5.0), EmitEvent) == []
    assert rank.worker.restarts == 0


def test_a_plan_without_a_model_hosts_nothing() -> None:
    rank = a_formed_rank()
    assert only(rank.commit(a_plan(A, B, number=2, model=""), "why", 4.0), LeaveWorker) == [LeaveWorker()]


# --- models that cannot be had ------------------------------------------------------------------------------


def test_a_model_that_is_not_found_is_looked_for_again_and_its_failure_lasts() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    commands = rank.model_not_found("m", "no_folder", "there is no such folder", 1.0)
    assert rank.model.lasting_failure == ("no_folder", "there is no such folder")
    final = only(commands, ReportStatus)[-1].status
    assert (final.phase, final.code, final.text) == (RankPhase.FAILED, "no_folder", "there is no such folder")
    again: list[RankCommand] = []
    while rank.next_deadline() <= 1.0 + FAILED_RETRY_S:
        again += rank.handle_timer(rank.next_deadline())
        assert rank.model.lasting_failure == ("no_folder", "there is no such folder"), "while it is tried again too"
    assert only(again, ResolveModel) == [ResolveModel("m")]
    rank.model_not_found("m", "no_folder", "there is no such folder", 62.0)
    assert rank.model.lasting_failure == ("no_folder", "there is no such folder")


def test_a_model_that_failed_is_looked_for_at_once_when_a_person_asks_for_it_again() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.model_not_found("m", "no_folder", "there is no such folder", 1.0)
    assert not rank.asked_again("another", 2.0), "that comes with a plan"
    assert only(rank.asked_again("m", 2.0), ResolveModel) == [ResolveModel("m")]
    assert not only(rank.asked_again("m", 3.0), ResolveModel), "it is being looked for"
    rank.model_found(FACTS, 4.0)
    rank.worker_said(hello(), 5.0)
    rank.worker_said(LoadFailed(FOLDER, "bad_file", "torn"), 6.0)
    assert only(rank.asked_again("m", 7.0), ResolveModel) == [ResolveModel("m")]
    assert told(rank.model_found(FACTS, 7.0)) == [Load(FOLDER, 6, 12)]
    rank.worker_said(loaded(6, 12), 8.0)
    assert not rank.asked_again("m", 9.0), "it is held"


def test_a_failure_is_over_when_the_model_was_loaded_after_all() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(), 1.0)
    rank.worker_said(LoadFailed(FOLDER, "bad_file", "torn"), 2.0)
    assert rank.model.lasting_failure == ("bad_file", "torn")
    rank.handle_timer(63.0)
    rank.handle_timer(63.0)
    assert told(rank.model_found(FACTS, 63.0)) == [Load(FOLDER, 6, 12)]
    assert rank.model.lasting_failure == ("bad_file", "torn")
    rank.worker_said(loaded(6, 12), 64.0)
    assert rank.model.lasting_failure is None


def test_layers_that_cannot_be_shared_fail_until_another_plan_can() -> None:
    rank = a_rank()
    rank.commit(a_plan(A, B, split=(5, 5)), "why", 0.0)
    rank.model_found(FACTS, 0.1)
    assert rank.model.failure is not None
    assert rank.model.failure[0] == "cannot_split"
    assert only(rank.commit(a_plan(A, B, number=2, split=(5, 7)), "why", 1.0), StartWorker) == [StartWorker()]


def test_an_answer_about_a_model_that_is_wanted_no_more_changes_nothing() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.commit(a_plan(A, B, number=2, model="other"), "why", 0.1)
    assert rank.model_found(FACTS, 0.2) == []
    assert rank.model_not_found("m", "x", "y", 0.2) == []
    assert rank.phase is RankPhase.RESOLVING


def test_a_retry_shows_the_failure_for_a_moment_and_the_pause_doubles() -> None:
    rank, now = a_rank(), 1.0
    rank.commit(PLAN, "why", 0.0)
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        rank.model_not_found("m", "no_folder", "there is no such folder", now)
        while not only(commands := rank.handle_timer(at := rank.next_deadline()), ResolveModel):
            pass
        assert at == now + pause_s
        status = only(commands, ReportStatus)[-1].status
        assert (status.phase, status.code, status.has_failed) == (RankPhase.RESOLVING, "no_folder", True)
        now = at


def test_a_retry_that_takes_its_time_is_waited_for() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.model_not_found("m", "no_folder", "there is no such folder", 1.0)
    assert only(rank.handle_timer(2.0), ResolveModel)
    status = only(rank.handle_timer(2.0 + RETRY_MOMENT_S), ReportStatus)[-1].status
    assert (status.phase, status.code, status.has_failed) == (RankPhase.RESOLVING, "", False)


def test_a_retry_that_downloads_is_waited_for() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.model_not_found("m", "offline", "the hub does not answer", 1.0)
    assert only(rank.handle_timer(2.0), ResolveModel)
    rank.model.progress("m", 1, 10)
    status = only(rank.handle_timer(3.0), ReportStatus)[-1].status
    assert (status.phase, status.code, status.has_failed) == (RankPhase.RESOLVING, "", False)
