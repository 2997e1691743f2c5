"""What a rank tells: its recoveries, its status, what a person should know."""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_events import EmitEvent, KillWorker, LinkHealthChanged, ModelFacts, StartWorker
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.engine.rank.rank import Rank, RankCommand
from exod.core.engine.rank.rank_status import IDLE_REPORT_INTERVAL_S, NEWS_AGAIN_S, REPORT_INTERVAL_S, ReportStatus
from exod.core.engine.rank.ring_port import RingPortTaken
from exod.core.engine.rank.sync_watch import COUNTS_FOR_S, REPORT_EVERY_S, SyncWatch
from exod.core.engine.rank.worker_life import PREPARING, RESTART_PAUSE_FIRST_S
from exod.model import ContextSettings, MeshPlan
from exoengine.protocol import (
    Abort,
    Aborted,
    Formed,
    LinkHealth,
    Load,
    Prepared,
    SyncSettings,
)
from exoengine.ring.edge_proof import CURE
from tests.core.engine.engine_samples import (
    FOLDER,
    A,
    B,
    a_plan,
    beat,
    begin,
    finished,
    hello,
    loaded,
    only,
    sizes,
    told,
)
from tests.core.engine.rank.rank_samples import (
    FACTS,
    PLAN,
    a_formed_rank,
    a_loaded_rank,
    a_rank,
    a_resolved_rank,
    kills,
    order,
    prepare,
    reformed,
)

# --- what is told of a recovery -----------------------------------------------------------------------------


def form(rank: Rank, plan: MeshPlan, attempt: int, step: int, now: float) -> list[RankCommand]:
    rank.order(order(plan, attempt, "form"), now)
    return rank.worker_said(Formed(plan.hash, attempt, step), now)


def test_a_move_is_told_with_its_reason_its_gap_and_its_step() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    prepare(rank, now=4.5, plan=plan)
    stories = only(form(rank, plan, 1, 70, 4.75), EmitEvent)
    assert stories == [reformed(250.0, step=70, attempt=1, cause="move", reason="the cable is back")]


def test_a_move_that_another_rank_began_is_told_alike() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    assert only(rank.worker_said(Aborted(PLAN.hash, 1, "paused", "left", 69), 4.5), EmitEvent) == []
    prepare(rank, now=4.6, plan=plan)
    stories = only(form(rank, plan, 1, 70, 4.75), EmitEvent)
    assert stories == [reformed(250.0, step=70, attempt=1, cause="move", reason="the cable is back")]


def test_an_old_group_that_breaks_before_the_move_is_told_as_the_fault_it_is() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "peer_lost", "gone", 69), 4.25)
    assert only(commands, EmitEvent) == [
        EmitEvent("engine.aborted", {"code": "peer_lost", "text": "gone", "step": 69})
    ]
    assert rank.phase is RankPhase.LOADED
    prepare(rank, now=4.5, plan=plan)
    stories = only(form(rank, plan, 1, 69, 4.75), EmitEvent)
    assert stories == [reformed(500.0, step=69, attempt=1, cause="fault", reason="gone")]


def test_an_old_group_does_not_outlive_the_suspension_of_the_plan_after_it() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    assert told(rank.suspend(plan.hash, "the cable was cut", 4.1)) == [Abort("the cable was cut")]


def test_a_restarted_daemon_tells_the_recovery_of_the_rank_that_it_found() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(layers=(6, 12), plan_hash="plan0", attempt=3, formed=True), 1.0)
    prepare(rank, now=1.5)
    (story,) = only(form(rank, PLAN, 1, 40, 1.75), EmitEvent)
    assert story == reformed(250.0, step=40, attempt=1, cause="move", reason="why")


def test_a_group_after_another_model_is_no_recovery() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2, model="other")
    rank.commit(plan, "another model is wanted", 4.0)
    rank.model_found(ModelFacts("other", FOLDER, sizes()), 4.0)
    prepare(rank, now=4.5, plan=plan)
    assert only(form(rank, plan, 1, -1, 4.75), EmitEvent) == []


def test_what_was_reached_with_another_model_is_not_told_of_the_next() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2, model="other")
    reached = msgspec.structs.replace(beat(), tokens_per_s=9.0, baseline_tokens_per_s=9.5, last_gap_ms=700.0)
    before = only(rank.worker_said(reached, 3.5) + rank.handle_timer(20.0), ReportStatus)[-1].status
    assert (before.tokens_per_s, before.baseline_tokens_per_s, before.last_gap_ms) == (9.0, 9.5, 700.0)
    assert before.sync_mode == "fast"
    told_now = rank.commit(plan, "another model is wanted", 21.0)
    rank.worker_said(reached, 21.5)
    told_now += rank.handle_timer(40.0)
    for report in only(told_now, ReportStatus):
        status = report.status
        assert (status.tokens_per_s, status.baseline_tokens_per_s, status.last_gap_ms) == (0.0, 0.0, 0.0)
        assert status.sync_mode == "safe"


def test_the_status_shows_the_newest_gap_whether_a_token_waited_or_a_process_was_replaced() -> None:
    rank = a_formed_rank()

    def gap_ms(commands: list[RankCommand]) -> float:
        return only(commands, ReportStatus)[-1].status.last_gap_ms

    slow = msgspec.structs.replace(beat(), last_gap_ms=180.0)
    rank.worker_said(slow, 4.0)
    rank.worker_gone("it was killed", 5.0)
    rank.handle_timer(5.0 + RESTART_PAUSE_FIRST_S)
    rank.worker_said(hello(), 6.0)
    rank.worker_said(loaded(6, 12), 7.0)
    prepare(rank, attempt=2, now=7.5)
    assert gap_ms(form(rank, PLAN, 2, -1, 8.0)) == 3000.0
    rank.worker_said(slow, 9.0)
    assert gap_ms(rank.handle_timer(20.0)) == 180.0


def test_words_of_older_attempts_change_nothing() -> None:
    rank = a_loaded_rank()
    rank.order(order(PLAN, 2, "prepare"), 3.0)
    for late in (
        Prepared(PLAN.hash, 1),
        Formed(PLAN.hash, 2, -1),
        Aborted(PLAN.hash, 1, "told", "t", -1),
        Prepared("plan0", 2),
    ):
        rank.worker_said(late, 3.1)
        assert rank.phase is RankPhase.PREPARING
    rank.worker_said(beat(), 2.0 + PREPARING.within_s)
    # And none of them took the deadline away.
    assert kills(rank, 3.0 + PREPARING.within_s) == [KillWorker("leaving the old group did not end")]


# --- reports ------------------------------------------------------------------------------------------------


def test_a_status_is_repeated_often_on_the_way_and_seldom_at_rest() -> None:
    rank = a_loaded_rank()
    assert rank.next_deadline() <= 2.0 + REPORT_INTERVAL_S
    rank = a_formed_rank(now=3.0)
    rank.worker_said(beat(), 3.0)
    again = 3.0 + NEWS_AGAIN_S
    assert only(rank.handle_timer(again), ReportStatus)
    said: list[RankCommand] = []
    while (due := rank.next_deadline()) < again + IDLE_REPORT_INTERVAL_S:
        said += rank.handle_timer(due)
    assert not only(said, ReportStatus)
    assert only(rank.handle_timer(again + IDLE_REPORT_INTERVAL_S), ReportStatus)


def test_a_heartbeat_with_nothing_new_is_not_reported() -> None:
    rank = a_formed_rank(now=3.0)
    rank.worker_said(beat(), 3.1)
    assert rank.worker_said(beat(), 3.2) == []


def test_statuses_are_numbered_in_the_order_in_which_they_were_made() -> None:
    rank = a_rank()
    commands = rank.commit(PLAN, "why", 0.0) + rank.model_found(FACTS, 0.1) + rank.worker_said(hello(), 1.0)
    numbers = [report.status.seq for report in only(commands, ReportStatus)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_link_health_is_told_when_it_changes_and_to_each_new_process() -> None:
    rank = a_loaded_rank()
    assert told(rank.link_health(LinkHealthChanged(False, "slow"))) == [LinkHealth(False, "slow")]
    assert rank.link_health(LinkHealthChanged(False, "slow")) == []
    rank.worker_gone("it crashed", 5.0)
    rank.handle_timer(6.0)
    assert LinkHealth(False, "slow") in told(rank.worker_said(hello(), 7.0))
    assert LinkHealth(False, "slow") in told(rank.worker_said(loaded(6, 12), 8.0))


def test_a_rank_that_waits_for_its_model_does_not_wake_for_nothing() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 100.0)
    rank.handle_timer(100.0 + NEWS_AGAIN_S)
    assert rank.next_deadline() >= 100.0 + NEWS_AGAIN_S + REPORT_INTERVAL_S


def test_another_context_is_another_load_and_a_worker_that_has_the_old_one_loads_again() -> None:
    wanted = ContextSettings(max_tokens=8192, kv_bits=4, kv_group_size=32)
    plan = msgspec.structs.replace(a_plan(A, B, number=2), context=wanted)
    load = Load(FOLDER, 6, 12, SyncSettings(), 8192, 4, 32)
    rank = a_formed_rank()
    assert told(rank.commit(plan, "why", 4.0)) == [load]
    adopting = a_resolved_rank(plan)
    assert told(adopting.worker_said(hello(layers=(6, 12)), 1.0)) == [load]
    again = a_resolved_rank(plan)
    assert told(again.worker_said(hello(layers=(6, 12), load=load), 1.0)) == []


def test_a_model_that_the_nodes_cannot_hold_is_refused_before_a_worker_is_started() -> None:
    rank = a_rank()
    plan = msgspec.structs.replace(PLAN, memory_mib=(6, 5))
    commands = rank.commit(plan, "why", 0.0)
    commands += rank.model_found(ModelFacts("m", FOLDER, sizes(layer_bytes=1 << 20)), 0.1)
    assert not only(commands, StartWorker)
    assert rank.phase is RankPhase.FAILED
    assert rank.model.failure is not None
    assert rank.model.failure[0] == "does_not_fit"
    assert "It needs 0.01 GiB in all" in rank.model.failure[1]
    assert rank.model.lasting_failure == rank.model.failure


def test_waits_beyond_the_watchdog_are_told_now_and_then_and_count_for_a_while() -> None:
    watch = SyncWatch(watchdog_s=2.0)

    def heard(violations: int, now: float) -> list[dict[str, object]]:
        said = msgspec.structs.replace(beat(), gpu_wait_violations=violations, longest_gpu_wait_s=3.1)
        return [story.data for story in watch.heard(said, now) if story.type == "engine.watchdog"]

    assert heard(0, 0.0) == []
    assert watch.waited_s == 0.0
    (first,) = heard(1, 3.0)
    assert (first["steps"], first["waited_s"], first["limit_s"]) == (1, 3.1, 2.0)
    assert watch.waited_s == 3.1
    assert [heard(2, 6.0), heard(3, 9.0)] == [[], []]
    (later,) = heard(3, 3.0 + REPORT_EVERY_S)
    assert later["steps"] == 2
    watch.gone()
    assert heard(0, 9.0 + COUNTS_FOR_S - 1) == []
    assert watch.waited_s == 3.1
    heard(0, 9.0 + COUNTS_FOR_S + 1)
    assert watch.waited_s == 0.0


def test_a_change_of_the_sync_mode_is_told_once_with_its_reason() -> None:
    rank = a_formed_rank()
    fast = msgspec.structs.replace(beat(), sync_mode="fast", sync_reason="the predicted wait is short")
    safe = msgspec.structs.replace(beat(), sync_mode="safe", sync_reason="the context is long")
    rank.worker_said(fast, 4.0)
    assert not [story for story in only(rank.worker_said(fast, 5.0), EmitEvent) if story.type == "engine.sync"]
    told_of = [story for story in only(rank.worker_said(safe, 6.0), EmitEvent) if story.type == "engine.sync"]
    assert [story.data for story in told_of] == [{"mode": "safe", "reason": "the context is long", "kv_tokens": 0}]


def test_a_port_that_someone_else_has_is_told_with_its_cure() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "listen", "cannot listen on 10.0.0.2:52420: in use", -1), 4.0)
    assert only(commands, RingPortTaken) == [RingPortTaken(52420)]
    (report,) = only(commands, ReportStatus)
    assert report.status.text.startswith("cannot listen on 10.0.0.2:52420: in use; end the process")
    assert rank.phase is RankPhase.ABORTED


def test_news_is_said_twice_because_a_status_may_be_lost() -> None:
    rank = a_formed_rank()
    rank.begin(begin(1), 10.0)
    ended = only(rank.worker_said(finished(begin(1).request.request_id), 11.0), ReportStatus)
    assert rank.next_deadline() == 11.0 + NEWS_AGAIN_S
    again = only(rank.handle_timer(11.0 + NEWS_AGAIN_S), ReportStatus)
    assert again[0].status.ended == ended[0].status.ended == (1,)
    assert rank.next_deadline() > 12.0 + NEWS_AGAIN_S


def test_why_a_group_did_not_come_names_nodes_and_no_ranks() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(), 1.0)
    rank.worker_said(loaded(6, 12), 1.1)
    rank.order(order(PLAN, 1, "prepare"), 1.2)
    text = "rank 0 at 10.0.0.1:52414 has not answered yet, rank 7 is nobody"
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "deadline", text, -1), 1.3)
    told = only(commands, ReportStatus)[-1].status
    assert told.text == f"{A} at 10.0.0.1:52414 has not answered yet, rank 7 is nobody"


def test_a_status_that_says_why_the_ring_does_not_come_is_short() -> None:
    """Where full frames are swallowed it still passes: with TLS and the headers in a frame of a thousand bytes."""
    rank = a_resolved_rank()
    rank.worker_said(hello(), 1.0)
    rank.worker_said(loaded(6, 12), 1.1)
    rank.order(order(PLAN, 1, "prepare"), 1.2)
    text = "rank 0 acknowledged 65,536 bytes of the proof, and not all" + CURE
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "edge", text, -1), 1.3)
    status = only(commands, ReportStatus)[-1].status
    assert len(msgspec.msgpack.encode(status)) < 700
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=RankStatus) == status
