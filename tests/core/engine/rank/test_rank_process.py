"""A rank and its worker process: deadlines, restarts, and one that outlived its daemon."""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent, KillWorker, StartWorker, WakeWorker
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.rank import FORM_GIVEN_S, Rank, RankCommand
from exod.core.engine.rank.rank_status import REPORT_INTERVAL_S, ReportStatus
from exod.core.engine.rank.stuck_group import IDLE_DEADLINE_S
from exod.core.engine.rank.worker_life import (
    FORMING,
    HEARTBEAT_SILENCE_S,
    KEEP_S,
    LIVED_S,
    LOADING_SILENCE_S,
    RESTART_PAUSE_FIRST_S,
    RESTART_PAUSE_LIMIT_S,
    STARTING,
    WAKE_SILENCE_S,
)
from exoengine.protocol import (
    Aborted,
    ActiveRequest,
    Begin,
    Formed,
    Load,
    LoadProgress,
    Prepare,
)
from tests.core.engine.engine_samples import (
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
    told,
)
from tests.core.engine.rank.rank_samples import (
    PLAN,
    a_formed_rank,
    a_loaded_rank,
    a_resolved_rank,
    kills,
    order,
    prepare,
)

# --- deadlines ----------------------------------------------------------------------------------------------


def test_a_worker_that_does_not_start_is_killed() -> None:
    rank = a_resolved_rank()
    assert kills(rank, STARTING.within_s - 1) == []
    assert kills(rank, STARTING.within_s) == [KillWorker("the worker did not start")]


def test_a_kill_that_missed_is_said_again_and_a_late_greeting_is_answered_by_it() -> None:
    rank = a_resolved_rank()
    assert kills(rank, STARTING.within_s)
    assert only(rank.worker_said(hello(), STARTING.within_s + 1), KillWorker)
    assert kills(rank, STARTING.within_s + 20)


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
        rank.worker_said(Formed(PLAN.hash, attempt, -1), at)

    for _ in range(3):
        now += LIVED_S
        rank.worker_said(Aborted(PLAN.hash, attempt, "peer_lost", "", -1), now - 1)
        form_again(now - 1)
        assert only(rank.worker_gone("it was killed", now), StartWorker) == [StartWorker()]
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
    assert rank.load.progress == (29, 100)
    for second in range(29 * 60 + 31, 29 * 60 + 121):
        rank.worker_said(beat("loading"), second)
    assert kills(rank, 29 * 60 + 121) == [KillWorker("loading made no progress")]


def test_a_worker_that_cannot_form_in_time_may_say_so_and_lives() -> None:
    assert FORMING.within_s - 1 > FORM_GIVEN_S
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(Aborted(PLAN.hash, 1, "deadline", "nobody came", -1), 3.0 + FORM_GIVEN_S)
    rank.worker_said(beat(), 3.0 + FORMING.within_s)
    assert kills(rank, 4.0 + FORMING.within_s) == []


def test_a_worker_that_says_nothing_about_forming_is_killed() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(beat(), 2.0 + FORMING.within_s)
    assert kills(rank, 3.0 + FORMING.within_s) == [KillWorker("forming the group did not end")]


def test_a_stall_of_the_daemon_kills_no_worker() -> None:
    rank = a_formed_rank(now=3.0)
    assert only(rank.handle_timer(60.0), KillWorker) == []
    rank.worker_said(beat(), 60.01)
    assert kills(rank, 60.01 + HEARTBEAT_SILENCE_S / 2) == []


def test_a_daemon_that_always_runs_late_still_replaces_a_silent_worker() -> None:
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


def started_again(rank: Rank, now: float) -> float:
    """When the next process is started."""
    while not only(rank.handle_timer(now), StartWorker):
        now = max(now, rank.next_deadline()) + 1e-6
    return now


def test_restarts_come_after_a_pause_that_doubles_up_to_a_limit() -> None:
    rank = a_resolved_rank()
    pauses = []
    now = 1.0
    for _ in range(9):
        assert only(rank.worker_gone("it crashed", now), StartWorker) == []
        begun, now = now, started_again(rank, now)
        pauses.append(round(now - begun, 3))
    assert pauses[:4] == [RESTART_PAUSE_FIRST_S * 2**k for k in range(4)]
    assert pauses[-1] == RESTART_PAUSE_LIMIT_S
    assert rank.worker.restarts == 9


def test_the_pause_is_forgotten_once_a_group_has_lived() -> None:
    rank = a_resolved_rank()
    now = 1.0
    for _ in range(5):
        rank.worker_gone("it crashed", now)
        now = started_again(rank, now)
    rank.worker_said(hello(), 31.0)
    rank.worker_said(loaded(6, 12), 32.0)
    prepare(rank, now=33.0)
    rank.order(order(PLAN, 1, "form"), 33.0)
    rank.worker_said(Formed(PLAN.hash, 1, -1), 33.0)
    assert only(rank.worker_gone("it was killed", 37.0), StartWorker) == [StartWorker()], (
        "4 s of answers are enough"
    )
    assert only(rank.worker_gone("it crashed", 38.0), StartWorker) == []
    assert rank.next_deadline() == 38.0 + RESTART_PAUSE_FIRST_S


def test_a_crash_is_told_once_with_its_reason() -> None:
    rank = a_formed_rank()
    commands = rank.worker_gone("it was killed by SIGSEGV", 5.0)
    assert only(commands, EmitEvent) == [
        EmitEvent("engine.restarted", {"text": "it was killed by SIGSEGV", "restarts": 1}),
    ]
    assert only(commands, ReportStatus)[-1].status.text == "it was killed by SIGSEGV"


def test_a_new_process_gives_up_the_attempt_of_the_one_before() -> None:
    rank = a_formed_rank()
    rank.worker_gone("it crashed", 5.0)
    rank.handle_timer(6.0)
    rank.worker_said(hello(), 7.0)
    commands = rank.worker_said(loaded(6, 12), 8.0)
    final = only(commands, ReportStatus)[-1].status
    assert (final.phase, final.attempt) == (RankPhase.LOADED, 1)
    assert told(rank.order(order(PLAN, 1, "prepare"), 8.1)) == []
    assert len(told(rank.order(order(PLAN, 2, "prepare"), 8.2))) == 1


def test_the_last_words_of_a_killed_worker_do_not_form_a_group() -> None:
    rank = a_loaded_rank()
    prepare(rank)
    rank.order(order(PLAN, 1, "form"), 3.0)
    rank.worker_said(beat(), 2.0 + FORMING.within_s)
    assert kills(rank, 3.0 + FORMING.within_s)
    rank.worker_said(Formed(PLAN.hash, 1, -1), 3.1 + FORMING.within_s)
    assert rank.phase is not RankPhase.FORMED


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
            rank.worker_said(Formed(PLAN.hash, attempt + 1, 0), 5.0)
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


# --- a worker that outlived its daemon ----------------------------------------------------------------------


def test_an_adopted_worker_that_holds_the_span_is_not_loaded_again() -> None:
    first = begin(10)
    held = ActiveRequest(10, first.request, (100, 101))
    rank = a_resolved_rank()
    commands = rank.worker_said(hello([held], layers=(6, 12), formed=True, plan_hash="plan0", attempt=4), 1.0)
    assert told(commands) == []
    assert phases(commands)[-1] is RankPhase.LOADED
    status = only(commands, ReportStatus)[-1].status
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
    rank.begin(begin(20, "newer", ended=19), 0.5)
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
    (told_on,) = rank.requests.begun()
    assert (told_on.order, told_on.request, told_on.tokens, told_on.origin) == (10, first.request, (100,), "")
    rank.begin(begin(10, origin=C), 2.0)
    (known,) = rank.requests.begun()
    assert known.origin == C
