"""One rank's life, command by command."""

from __future__ import annotations

import msgspec

from exod.core.engine_messages import FormOrder, RankPhase
from exod.core.rank import FAILED_RETRY_S, FORM_DEADLINE_S, FORM_GIVEN_S, IDLE_DEADLINE_S, PREPARE_DEADLINE_S, Rank
from exod.core.rank_commands import (
    KillWorker,
    LeaveWorker,
    ModelFacts,
    RankCommand,
    Report,
    ResolveModel,
    RingPortTaken,
    StartWorker,
    Story,
    WakeWorker,
)
from exod.core.rank_reports import IDLE_REPORT_INTERVAL_S, NEWS_AGAIN_S, REPORT_INTERVAL_S
from exod.core.sync_watch import COUNTS_FOR_S, TOLD_EVERY_S, SyncWatch
from exod.core.worker_life import (
    HEARTBEAT_SILENCE_S,
    KEEP_S,
    LIVED_S,
    LOADING_SILENCE_S,
    RESTART_PAUSE_FIRST_S,
    RESTART_PAUSE_LIMIT_S,
    START_DEADLINE_S,
    WAKE_SILENCE_S,
)
from exod.model import ContextSettings, MeshPlan
from exoengine.protocol import (
    Abort,
    Aborted,
    ActiveRequest,
    Begin,
    Cancel,
    Form,
    Formed,
    LinkHealth,
    Load,
    LoadFailed,
    LoadProgress,
    Prepare,
    Prepared,
    SyncSettings,
)
from tests.core.engine_samples import (
    FOLDER,
    A,
    B,
    C,
    a_plan,
    beat,
    begin,
    finished,
    hello,
    loaded,
    only,
    phases,
    sizes,
    token,
    told,
)

PLAN = a_plan(A, B)
FACTS = ModelFacts("m", FOLDER, sizes())


def a_rank() -> Rank:
    return Rank(B, 5, SyncSettings(), b"the ring's key")


def order(plan: MeshPlan, attempt: int, step: str) -> FormOrder:
    return FormOrder(A, plan.hash, attempt, step)  # type: ignore[arg-type]


def a_resolved_rank(plan: MeshPlan = PLAN) -> Rank:
    rank = a_rank()
    rank.commit(plan, "why", 0.0)
    rank.model_found(FACTS, 0.0)
    return rank


def a_loaded_rank(plan: MeshPlan = PLAN) -> Rank:
    rank = a_resolved_rank(plan)
    rank.worker_said(hello(), 1.0)
    span = rank.span()
    assert span is not None
    rank.worker_said(loaded(*span), 2.0)
    return rank


def prepare(rank: Rank, attempt: int = 1, now: float = 3.0, plan: MeshPlan = PLAN) -> list[RankCommand]:
    return rank.order(order(plan, attempt, "prepare"), now) + rank.worker_said(Prepared(plan.hash, attempt), now)


def a_formed_rank(now: float = 3.0) -> Rank:
    rank = a_loaded_rank()
    prepare(rank, now=now)
    rank.order(order(PLAN, 1, "form"), now)
    rank.worker_said(Formed(PLAN.hash, 1, 0.1, -1), now)
    assert rank.phase is RankPhase.FORMED
    return rank


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
            key=b"the ring's key",
        )
    ]
    assert phases(rank.worker_said(Prepared(PLAN.hash, 1), 3.1)) == [RankPhase.PREPARED]
    assert told(rank.order(order(PLAN, 1, "form"), 3.2)) == [Form(PLAN.hash, 1, FORM_GIVEN_S)]
    assert phases(rank.worker_said(Formed(PLAN.hash, 1, 0.1, -1), 3.4)) == [RankPhase.FORMED]


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


def test_a_new_plan_with_another_span_loads_it() -> None:
    rank = a_formed_rank()
    assert told(rank.commit(a_plan(B, number=2), "why", 4.0)) == [Load(FOLDER, 0, 12)]


def test_a_plan_that_is_suspended_is_aborted_at_once() -> None:
    rank = a_formed_rank()
    commands = rank.suspend(PLAN.hash, "the cable was cut", 4.0)
    assert told(commands) == [Abort("the cable was cut")]
    assert only(commands, Report)[-1].status.plan_hash == ""
    assert rank.order(order(PLAN, 2, "prepare"), 4.1) == []
    assert rank.suspend(PLAN.hash, "again", 4.2) == []
    assert rank.suspend("plan0", "another", 4.2) == []


def test_the_same_plan_committed_again_is_taken_up_again() -> None:
    rank = a_formed_rank()
    rank.suspend(PLAN.hash, "the cable was cut", 4.0)
    commands = rank.commit(PLAN, "why", 5.0)
    assert only(commands, Report)[-1].status.plan_hash == PLAN.hash
    assert told(rank.order(order(PLAN, 1, "prepare"), 5.1)) == []
    assert [type(message) for message in told(rank.order(order(PLAN, 2, "prepare"), 5.2))] == [Prepare]


def test_a_rank_that_gave_up_says_so_and_follows_the_next_attempt() -> None:
    rank = a_formed_rank()
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "peer_lost", "gone", 4), 10.0)
    assert phases(commands) == [RankPhase.ABORTED]
    assert only(commands, Story) == [Story("engine.aborted", {"code": "peer_lost", "text": "gone", "step": 4})]
    prepare(rank, attempt=2, now=10.1)
    rank.order(order(PLAN, 2, "form"), 10.2)
    stories = only(rank.worker_said(Formed(PLAN.hash, 2, 0.1, 5), 10.25), Story)
    assert stories == [reformed(250.0, step=5, attempt=2, cause="fault", reason="gone")]


# --- what is told of a recovery -----------------------------------------------------------------------------


def reformed(gap_ms: float, **fields: object) -> Story:
    return Story("engine.reformed", {"gap_ms": gap_ms, **fields})


def form(rank: Rank, plan: MeshPlan, attempt: int, step: int, now: float) -> list[RankCommand]:
    rank.order(order(plan, attempt, "form"), now)
    return rank.worker_said(Formed(plan.hash, attempt, 0.1, step), now)


def test_a_move_is_told_with_its_reason_its_gap_and_its_step() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    prepare(rank, now=4.5, plan=plan)
    stories = only(form(rank, plan, 1, 70, 4.75), Story)
    assert stories == [reformed(250.0, step=70, attempt=1, cause="move", reason="the cable is back")]


def test_a_move_that_another_rank_began_is_told_alike() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    assert only(rank.worker_said(Aborted(PLAN.hash, 1, "paused", "left", 69), 4.5), Story) == []
    prepare(rank, now=4.6, plan=plan)
    stories = only(form(rank, plan, 1, 70, 4.75), Story)
    assert stories == [reformed(250.0, step=70, attempt=1, cause="move", reason="the cable is back")]


def test_an_old_group_that_breaks_before_the_move_is_told_as_the_fault_it_is() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "peer_lost", "gone", 69), 4.25)
    assert only(commands, Story) == [Story("engine.aborted", {"code": "peer_lost", "text": "gone", "step": 69})]
    assert rank.phase is RankPhase.LOADED
    prepare(rank, now=4.5, plan=plan)
    stories = only(form(rank, plan, 1, 69, 4.75), Story)
    assert stories == [reformed(500.0, step=69, attempt=1, cause="fault", reason="gone")]


def test_an_old_group_does_not_outlive_the_suspension_of_the_plan_after_it() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2)
    rank.commit(plan, "the cable is back", 4.0)
    assert told(rank.suspend(plan.hash, "the cable was cut", 4.1)) == [Abort("the cable was cut")]


def test_a_restarted_daemon_tells_the_recovery_of_the_rank_that_it_found() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(layers=(6, 12), plan_hash="plan0", attempt=3, formed=True), 1.0)
    prepare(rank, now=1.5)
    (story,) = only(form(rank, PLAN, 1, 40, 1.75), Story)
    assert story == reformed(250.0, step=40, attempt=1, cause="move", reason="why")


def test_a_group_after_another_model_is_no_recovery() -> None:
    rank, plan = a_formed_rank(), a_plan(A, B, number=2, model="other")
    rank.commit(plan, "another model is wanted", 4.0)
    rank.model_found(ModelFacts("other", FOLDER, sizes()), 4.0)
    prepare(rank, now=4.5, plan=plan)
    assert only(form(rank, plan, 1, -1, 4.75), Story) == []


def test_the_status_shows_the_newest_gap_whether_a_token_waited_or_a_process_was_replaced() -> None:
    rank = a_formed_rank()

    def gap_ms(commands: list[RankCommand]) -> float:
        return only(commands, Report)[-1].status.last_gap_ms

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
        Formed(PLAN.hash, 2, 0.1, -1),
        Aborted(PLAN.hash, 1, "told", "t", -1),
        Prepared("plan0", 2),
    ):
        rank.worker_said(late, 3.1)
        assert rank.phase is RankPhase.PREPARING
    rank.worker_said(beat(), 2.0 + PREPARE_DEADLINE_S)
    # And none of them took the deadline away.
    assert kills(rank, 3.0 + PREPARE_DEADLINE_S) == [KillWorker("leaving the old group did not end")]


# --- deadlines ----------------------------------------------------------------------------------------------


def kills(rank: Rank, now: float) -> list[KillWorker]:
    """As the host does it: the timer is called when it is due, with beats in between."""
    commands: list[RankCommand] = []
    while (due := rank.next_deadline()) <= now:
        commands += rank.handle_timer(due)
        if only(commands, KillWorker):
            break
    return only(commands, KillWorker)


def test_a_worker_that_does_not_start_is_killed() -> None:
    rank = a_resolved_rank()
    assert kills(rank, START_DEADLINE_S - 1) == []
    assert kills(rank, START_DEADLINE_S) == [KillWorker("the worker did not start")]


def test_a_kill_that_missed_is_said_again_and_a_late_greeting_is_answered_by_it() -> None:
    rank = a_resolved_rank()
    assert kills(rank, START_DEADLINE_S)
    assert only(rank.worker_said(hello(), START_DEADLINE_S + 1), KillWorker)
    assert kills(rank, START_DEADLINE_S + 20)


def test_a_silent_worker_is_killed_and_one_that_beats_is_not() -> None:
    rank = a_formed_rank(now=3.0)
    for second in range(4, 30):
        assert kills(rank, second) == []
        rank.worker_said(beat(), second)
    assert kills(rank, 29 + HEARTBEAT_SILENCE_S - 0.1) == []
    assert len(kills(rank, 29 + HEARTBEAT_SILENCE_S)) == 1


def test_a_silent_worker_is_first_told_to_continue_once() -> None:
    rank = a_formed_rank(now=3.0)
    said: list[tuple[float, RankCommand]] = []
    rank.worker_said(beat(), 4.0)
    while (due := rank.next_deadline()) <= 4.0 + HEARTBEAT_SILENCE_S:
        said += [(due, command) for command in rank.handle_timer(due)]
    wanted = [one for one in said if isinstance(one[1], WakeWorker | KillWorker)]
    assert [(at, type(command)) for at, command in wanted] == [
        (4.0 + WAKE_SILENCE_S, WakeWorker), (4.0 + HEARTBEAT_SILENCE_S, KillWorker)
    ]  # fmt: skip


def test_a_process_that_is_stopped_while_it_loads_is_replaced_while_clients_still_wait() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(), 1.0)
    assert kills(rank, 1.0 + LOADING_SILENCE_S - 0.1) == []
    assert len(kills(rank, 1.0 + LOADING_SILENCE_S)) == 1
    assert LOADING_SILENCE_S < 60 / 2, "the default of engine.recovery_deadline_s"


def test_a_process_that_has_loaded_before_is_given_no_more_time_when_it_loads_again() -> None:
    rank = a_formed_rank(now=3.0)
    other = a_plan(A, B, split=(3, 9), number=2)
    assert only(told(rank.commit(other, "why", 4.0)), Load)
    assert kills(rank, 3.0 + HEARTBEAT_SILENCE_S - 0.1) == []
    assert len(kills(rank, 3.0 + HEARTBEAT_SILENCE_S)) == 1


def test_a_sound_process_is_replaced_at_once_however_often_its_group_was_formed_again() -> None:
    rank, now, attempt = a_formed_rank(now=3.0), 3.0, 1

    def form_again(at: float) -> None:
        nonlocal attempt
        attempt += 1
        prepare(rank, attempt, at)
        rank.order(order(PLAN, attempt, "form"), at)
        rank.worker_said(Formed(PLAN.hash, attempt, 0.1, -1), at)

    for _ in range(3):
        now += LIVED_S
        rank.worker_said(Aborted(PLAN.hash, attempt, "peer_lost", "", -1), now - 1)
        form_again(now - 1)
        rank.worker_gone("it was killed", now)
        now += RESTART_PAUSE_FIRST_S
        assert only(rank.handle_timer(now), StartWorker) == [StartWorker()]
        rank.worker_said(hello(), now)
        rank.worker_said(loaded(6, 12), now)
        form_again(now)


def test_loading_may_take_for_ever_as_long_as_it_makes_progress() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(), 50.0)
    for minute in range(1, 30):
        assert kills(rank, minute * 60.0) == []
        rank.worker_said(LoadProgress(minute, 100), minute * 60.0)
        for second in range(0, 60, 10):
            rank.worker_said(beat("loading"), minute * 60.0 + second)
    assert rank.progress == (29, 100)
    for second in range(29 * 60 + 31, 29 * 60 + 121):
        rank.worker_said(beat("loading"), second)
    assert kills(rank, 29 * 60 + 121) == [KillWorker("loading made no progress")]


def test_a_worker_that_cannot_form_in_time_may_say_so_and_lives() -> None:
    assert FORM_GIVEN_S < FORM_DEADLINE_S - 1
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(Aborted(PLAN.hash, 1, "deadline", "nobody came", -1), 3.0 + FORM_GIVEN_S)
    rank.worker_said(beat(), 3.0 + FORM_DEADLINE_S)
    assert kills(rank, 4.0 + FORM_DEADLINE_S) == []


def test_a_worker_that_says_nothing_about_forming_is_killed() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(beat(), 2.0 + FORM_DEADLINE_S)
    assert kills(rank, 3.0 + FORM_DEADLINE_S) == [KillWorker("forming the group did not end")]


def test_a_stall_of_the_daemon_convicts_no_worker() -> None:
    rank = a_formed_rank(now=3.0)
    assert only(rank.handle_timer(60.0), KillWorker) == []
    rank.worker_said(beat(), 60.01)
    assert kills(rank, 60.01 + HEARTBEAT_SILENCE_S / 2) == []


def test_a_daemon_that_always_runs_late_still_convicts() -> None:
    rank = a_formed_rank(now=3.0)
    now, killed = 3.0, False
    while not killed and now < 120:
        now = rank.next_deadline() + 0.9
        killed = bool(only(rank.handle_timer(now), KillWorker))
    assert killed


def test_the_deadline_of_an_old_plans_prepare_is_not_kept() -> None:
    rank = a_loaded_rank()
    rank.order(order(PLAN, 1, "prepare"), 3.0)
    rank.commit(a_plan(A, B, number=2), "why", 4.0)
    for second in range(5, 20):
        assert kills(rank, second) == []
        rank.worker_said(beat(), second)


# --- the process dies ---------------------------------------------------------------------------------------


def test_restarts_come_after_a_pause_that_doubles_up_to_a_limit() -> None:
    rank = a_resolved_rank()
    pauses = []
    now = 1.0
    for _ in range(9):
        assert only(rank.worker_gone("it crashed", now), StartWorker) == []
        begun = now
        while not only(rank.handle_timer(now), StartWorker):
            now = max(now, rank.next_deadline()) + 1e-6
        pauses.append(round(now - begun, 3))
    assert pauses[:4] == [RESTART_PAUSE_FIRST_S * 2**k for k in range(4)]
    assert pauses[-1] == RESTART_PAUSE_LIMIT_S
    assert rank.restarts == 9


def test_the_pause_is_forgotten_once_a_group_has_lived() -> None:
    rank = a_resolved_rank()
    for _ in range(5):
        rank.worker_gone("it crashed", 1.0)
    rank.handle_timer(30.0)
    rank.worker_said(hello(), 31.0)
    rank.worker_said(loaded(6, 12), 32.0)
    prepare(rank, now=33.0)
    rank.order(order(PLAN, 1, "form"), 33.0)
    rank.worker_said(Formed(PLAN.hash, 1, 0.1, -1), 33.0)
    rank.worker_gone("it crashed", 100.0)
    assert rank.next_deadline() == 100.0 + RESTART_PAUSE_FIRST_S


def test_a_crash_is_told_once_with_its_reason() -> None:
    rank = a_formed_rank()
    commands = rank.worker_gone("it was killed by SIGSEGV", 5.0)
    assert only(commands, Story) == [
        Story("engine.restarted", {"text": "it was killed by SIGSEGV", "restarts": 1}),
    ]
    assert only(commands, Report)[-1].status.text == "it was killed by SIGSEGV"


def test_a_new_process_gives_up_the_attempt_of_the_one_before() -> None:
    rank = a_formed_rank()
    rank.worker_gone("it crashed", 5.0)
    rank.handle_timer(6.0)
    rank.worker_said(hello(), 7.0)
    commands = rank.worker_said(loaded(6, 12), 8.0)
    final = only(commands, Report)[-1].status
    assert (final.phase, final.attempt) == (RankPhase.LOADED, 1)
    assert told(rank.order(order(PLAN, 1, "prepare"), 8.1)) == []
    assert len(told(rank.order(order(PLAN, 2, "prepare"), 8.2))) == 1


def test_the_last_words_of_a_killed_worker_do_not_form_a_group() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(beat(), 2.0 + FORM_DEADLINE_S)
    assert kills(rank, 3.0 + FORM_DEADLINE_S)
    rank.worker_said(Formed(PLAN.hash, 1, 0.1, -1), 3.1 + FORM_DEADLINE_S)
    assert rank.phase is not RankPhase.FORMED


def test_what_no_attempt_in_this_process_can_mend_replaces_it() -> None:
    for code in ("cannot_reform", "connector", "mlx_init"):
        rank = a_loaded_rank()
        prepare(rank)
        rank.order(order(PLAN, 1, "form"), 3.0)
        assert only(rank.worker_said(Aborted(PLAN.hash, 1, code, "t", -1), 3.1), KillWorker) == [KillWorker("t")]


def test_a_process_that_cannot_form_twice_is_replaced_instead_of_prepared_again() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(can_reform=False), 1.0)
    rank.worker_said(loaded(6, 12), 2.0)
    assert [type(message) for message in told(rank.order(order(PLAN, 1, "prepare"), 3.0))] == [Prepare]
    commands = rank.order(order(PLAN, 2, "prepare"), 4.0)
    assert told(commands) == []
    assert len(only(commands, KillWorker)) == 1


def test_groups_that_hang_again_and_again_with_a_request_replace_the_process() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    killed: list[KillWorker] = []
    for attempt in range(1, 4):
        assert not killed
        killed = only(rank.worker_said(Aborted(PLAN.hash, attempt, "deadline", "hung", 0), 5.0), KillWorker)
        if not killed:
            prepare(rank, attempt + 1, now=5.0)
            rank.order(order(PLAN, attempt + 1, "form"), 5.0)
            rank.worker_said(Formed(PLAN.hash, attempt + 1, 0.1, 0), 5.0)
    assert killed


def test_a_worker_that_idles_beside_a_request_is_replaced() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    killed_at = None
    for second in range(5, 40):
        if only(rank.worker_said(beat("ready"), second), KillWorker):
            killed_at = second
            break
        assert only(rank.worker_said(beat("generating"), second) if second == 10 else [], KillWorker) == []
    assert killed_at is not None
    assert killed_at > 10 + IDLE_DEADLINE_S


# --- leaving ------------------------------------------------------------------------------------------------


def test_a_plan_without_this_rank_lets_the_worker_leave_once() -> None:
    rank = a_formed_rank()
    without = a_plan(A, number=2)
    assert only(rank.commit(without, "why", 4.0), LeaveWorker) == [LeaveWorker()]
    assert only(rank.handle_timer(rank.next_deadline()), LeaveWorker) == []
    assert rank.phase is RankPhase.OFF
    assert only(rank.worker_gone("it ended", 5.0), Story) == []
    assert rank.restarts == 0
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
    rank.leaving()
    assert only(rank.worker_gone("it ended", 5.0), Story) == []
    assert rank.restarts == 0


def test_a_plan_without_a_model_hosts_nothing() -> None:
    rank = a_formed_rank()
    assert only(rank.commit(a_plan(A, B, number=2, model=""), "why", 4.0), LeaveWorker) == [LeaveWorker()]


# --- models that cannot be had ------------------------------------------------------------------------------


def test_a_model_that_is_not_found_is_looked_for_again_and_alerts_once() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    commands = rank.model_failed("m", "no_folder", "there is no such folder", 1.0)
    assert only(commands, Story) == [
        Story("alert.raised", {"code": "no_folder", "severity": "error", "text": "there is no such folder"})
    ]
    final = only(commands, Report)[-1].status
    assert (final.phase, final.code, final.text) == (RankPhase.FAILED, "no_folder", "there is no such folder")
    again: list[RankCommand] = []
    while rank.next_deadline() <= 1.0 + FAILED_RETRY_S:
        again += rank.handle_timer(rank.next_deadline())
    assert only(again, ResolveModel) == [ResolveModel("m")]
    assert only(rank.model_failed("m", "no_folder", "there is no such folder", 62.0), Story) == []


def test_an_alert_is_cleared_when_the_model_was_loaded_after_all() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(), 1.0)
    assert only(rank.worker_said(LoadFailed(FOLDER, "bad_file", "torn"), 2.0), Story)
    rank.handle_timer(63.0)
    rank.handle_timer(63.0)
    assert told(rank.model_found(FACTS, 63.0)) == [Load(FOLDER, 6, 12)]
    stories = only(rank.worker_said(loaded(6, 12), 64.0), Story)
    assert stories[0] == Story("alert.cleared", {"code": "bad_file"})


def test_layers_that_cannot_be_shared_fail_until_another_plan_can() -> None:
    rank = a_rank()
    rank.commit(a_plan(A, B, split=(5, 5)), "why", 0.0)
    rank.model_found(FACTS, 0.1)
    assert rank.failure is not None
    assert rank.failure[0] == "cannot_split"
    assert only(rank.commit(a_plan(A, B, number=2, split=(5, 7)), "why", 1.0), StartWorker) == [StartWorker()]


def test_an_answer_about_a_model_that_is_wanted_no_more_changes_nothing() -> None:
    rank = a_rank()
    rank.commit(PLAN, "why", 0.0)
    rank.commit(a_plan(A, B, number=2, model="other"), "why", 0.1)
    assert rank.model_found(FACTS, 0.2) == []
    assert rank.model_failed("m", "x", "y", 0.2) == []
    assert rank.phase is RankPhase.RESOLVING


# --- requests -----------------------------------------------------------------------------------------------


def test_a_request_is_given_to_the_worker_once() -> None:
    rank = a_formed_rank()
    first = begin(10)
    assert told(rank.begin(first, 4.0)) == [Begin(10, first.request)]
    assert told(rank.begin(first, 4.1)) == []
    assert rank.begun_order == 10


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
    rank.ended(10, 30.0)
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
    assert told(rank.worker_said(loaded(6, 12), 8.0)) == [Begin(10, first.request), Cancel(name)]


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
    nxt = begin(20, "next")
    commands = rank.begin(nxt, 5.0)
    assert told(commands) == [Load(FOLDER, 6, 12)]
    assert told(rank.worker_said(loaded(6, 12), 6.0)) == [Begin(20, nxt.request)]
    final = only(rank.handle_timer(rank.next_deadline()), Report)[-1].status
    assert (final.begun_order, final.finished_order) == (20, 19)


def test_another_model_does_not_go_on_with_this_ones_words() -> None:
    rank = a_formed_rank()
    rank.begin(begin(10), 4.0)
    rank.commit(a_plan(A, B, number=2, model="other"), "why", 5.0)
    assert rank.active == {}


# --- a worker that outlived its daemon ----------------------------------------------------------------------


def test_an_adopted_worker_that_holds_the_span_is_not_loaded_again() -> None:
    first = begin(10)
    held = ActiveRequest(10, first.request, (100, 101))
    rank = a_resolved_rank()
    commands = rank.worker_said(hello([held], layers=(6, 12), formed=True, plan_hash="plan0", attempt=4), 1.0)
    assert told(commands) == []
    assert phases(commands)[-1] is RankPhase.LOADED
    status = only(commands, Report)[-1].status
    assert (status.begun_order, status.finished_order, status.generating) == (10, 0, True)
    assert [type(message) for message in told(rank.order(order(PLAN, 1, "prepare"), 2.0))] == [Prepare]


def test_what_an_adopted_worker_finished_meanwhile_is_taken_before_it_is_told_anything() -> None:
    first = begin(10)
    held = ActiveRequest(10, first.request, (100,))
    rank = a_resolved_rank()
    rank.worker_said(hello([held], layers=(6, 12)), 1.0)
    rank.worker_said(finished(first.request.request_id), 1.0)
    assert rank.active == {}
    assert told(rank.worker_said(beat(), 1.0)) == [Begin(10, first.request, (100,))]


def test_an_adopted_worker_is_told_what_its_last_daemon_may_not_have_told_it() -> None:
    rank = a_resolved_rank()
    first = begin(10)
    rank.begin(first, 0.5)
    assert told(rank.worker_said(hello(layers=(6, 12)), 1.0)) == []
    assert told(rank.worker_said(beat(), 1.0)) == [Begin(10, first.request)]
    assert told(rank.worker_said(beat(), 2.0)) == []


def test_a_daemon_that_is_alone_at_first_does_not_drop_what_the_worker_that_it_found_holds() -> None:
    alone = a_plan(B)
    rank = a_resolved_rank(alone)
    commands = rank.worker_said(hello(layers=(6, 12)), 1.0)
    assert told(commands) == []
    assert rank.phase is RankPhase.LOADING
    assert told(rank.commit(a_plan(A, B, number=2), "studio1 joined", 2.0)) == []
    assert rank.phase is RankPhase.LOADED


def test_a_daemon_that_stays_alone_loads_what_its_plan_says() -> None:
    rank = a_resolved_rank(a_plan(B))
    rank.worker_said(hello(layers=(6, 12)), 1.0)
    commands: list[RankCommand] = []
    while (due := rank.next_deadline()) <= 1.0 + KEEP_S + REPORT_INTERVAL_S:
        commands += rank.handle_timer(due)
        commands += rank.worker_said(beat(), due)
    assert [message for message in told(commands) if isinstance(message, Load)] == [Load(FOLDER, 0, 12)]


def test_an_adopted_worker_with_another_span_loads() -> None:
    rank = a_resolved_rank()
    assert told(rank.worker_said(hello(layers=(0, 12)), 1.0)) == [Load(FOLDER, 6, 12)]


def test_an_adopted_worker_that_holds_what_has_ended_meanwhile_loads_again() -> None:
    rank = a_resolved_rank()
    rank.begin(begin(20, "newer"), 0.5)
    held = ActiveRequest(10, begin(10).request, ())
    assert told(rank.worker_said(hello([held], layers=(6, 12)), 1.0)) == [Load(FOLDER, 6, 12)]
    assert list(rank.active) == [begin(20, "newer").request.request_id]


def test_a_load_that_an_earlier_daemon_asked_for_is_not_taken_for_ours() -> None:
    rank = a_resolved_rank()
    rank.worker_said(hello(layers=(6, 12)), 1.0)
    assert told(rank.worker_said(loaded(0, 4), 2.0)) == [Load(FOLDER, 6, 12)]
    assert rank.phase is RankPhase.LOADING


def test_the_coordinator_learns_of_a_request_with_what_is_known_of_its_answer() -> None:
    rank = a_resolved_rank()
    first = begin(10)
    rank.worker_said(hello([ActiveRequest(10, first.request, (100, 101))], layers=(6, 12)), 1.0)
    told_on = rank.begun()
    assert told_on is not None
    assert (told_on.order, told_on.request, told_on.tokens, told_on.origin) == (10, first.request, (100,), "")
    rank.begin(begin(10, origin=C), 2.0)
    known = rank.begun()
    assert known is not None
    assert known.origin == C


# --- reports ------------------------------------------------------------------------------------------------


def test_a_status_is_repeated_often_on_the_way_and_seldom_at_rest() -> None:
    rank = a_loaded_rank()
    assert rank.next_deadline() <= 2.0 + REPORT_INTERVAL_S
    rank = a_formed_rank(now=3.0)
    rank.worker_said(beat(), 3.0)
    again = 3.0 + NEWS_AGAIN_S
    assert only(rank.handle_timer(again), Report)
    said: list[RankCommand] = []
    while (due := rank.next_deadline()) < again + IDLE_REPORT_INTERVAL_S:
        said += rank.handle_timer(due)
    assert not only(said, Report)
    assert only(rank.handle_timer(again + IDLE_REPORT_INTERVAL_S), Report)


def test_a_heartbeat_with_nothing_new_is_not_reported() -> None:
    rank = a_formed_rank(now=3.0)
    rank.worker_said(beat(), 3.1)
    assert rank.worker_said(beat(), 3.2) == []


def test_statuses_are_numbered_in_the_order_in_which_they_were_made() -> None:
    rank = a_rank()
    commands = rank.commit(PLAN, "why", 0.0) + rank.model_found(FACTS, 0.1) + rank.worker_said(hello(), 1.0)
    numbers = [report.status.seq for report in only(commands, Report)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_link_health_is_told_when_it_changes_and_to_each_new_process() -> None:
    rank = a_loaded_rank()
    assert told(rank.link_health(False, "slow")) == [LinkHealth(False, "slow")]
    assert rank.link_health(False, "slow") == []
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
    assert rank.failure is not None
    assert rank.failure[0] == "does_not_fit"
    assert "It needs 0.01 GiB in all" in rank.failure[1]
    (alert,) = [story for story in only(commands, Story) if story.type == "alert.raised"]
    assert alert.data["code"] == "does_not_fit"


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
    (later,) = heard(3, 3.0 + TOLD_EVERY_S)
    assert later["steps"] == 2
    watch.gone()
    assert heard(0, 100.0) == []
    assert watch.waited_s == 3.1
    heard(0, 9.0 + COUNTS_FOR_S + 1)
    assert watch.waited_s == 0.0


def test_a_change_of_the_sync_mode_is_told_once_with_its_reason() -> None:
    rank = a_formed_rank()
    fast = msgspec.structs.replace(beat(), sync_mode="fast", sync_reason="the predicted wait is short")
    safe = msgspec.structs.replace(beat(), sync_mode="safe", sync_reason="the context is long")
    rank.worker_said(fast, 4.0)
    assert not [story for story in only(rank.worker_said(fast, 5.0), Story) if story.type == "engine.sync"]
    told_of = [story for story in only(rank.worker_said(safe, 6.0), Story) if story.type == "engine.sync"]
    assert [story.data for story in told_of] == [{"mode": "safe", "reason": "the context is long", "kv_tokens": 0}]


def test_a_port_that_someone_else_has_is_told_with_its_cure() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    commands = rank.worker_said(Aborted(PLAN.hash, 1, "listen", "cannot listen on 10.0.0.2:52420: in use", -1), 4.0)
    assert only(commands, RingPortTaken) == [RingPortTaken(52420)]
    (report,) = only(commands, Report)
    assert report.status.text.startswith("cannot listen on 10.0.0.2:52420: in use; end the process")
    assert rank.phase is RankPhase.ABORTED


def test_news_is_said_twice_because_a_status_may_be_lost() -> None:
    rank = a_formed_rank()
    rank.begin(begin(1), 10.0)
    ended = only(rank.worker_said(finished(begin(1).request.request_id), 11.0), Report)
    assert rank.next_deadline() == 11.0 + NEWS_AGAIN_S
    again = only(rank.handle_timer(11.0 + NEWS_AGAIN_S), Report)
    assert again[0].status.finished_order == ended[0].status.finished_order == 1
    assert rank.next_deadline() > 12.0 + NEWS_AGAIN_S
