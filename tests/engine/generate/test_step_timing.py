"""What a rank says of the time that an answer took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from exoengine.generate import step_timing as module
from exoengine.generate.step_timing import Pace, WorkProgress
from exoengine.model_files.kv_room import KvRoom
from exoengine.process.shared_state import SharedState
from exoengine.protocol import SyncSettings


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def after(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def test_an_answers_time_is_that_to_its_first_token_and_since(clock: Clock) -> None:
    pace = Pace(SyncSettings())
    pace.opened(0)
    for seconds in (2.0, 0.5, 0.5):
        after(clock, seconds)
        pace.token()
    assert pace.durations_s() == (2.0, 1.0)


def test_a_fault_is_a_part_of_the_answers_time(clock: Clock) -> None:
    pace = Pace(SyncSettings())
    pace.opened(0)
    after(clock, 2.0)
    pace.token()
    pace.interrupted(True)
    after(clock, 3.0)
    pace.opened(1)
    assert pace.token() == 3000.0
    assert pace.durations_s() == (2.0, 3.0)


def test_a_rank_that_came_in_the_middle_says_nothing_of_an_answers_time(clock: Clock) -> None:
    pace = Pace(SyncSettings())
    pace.opened(20)
    for _ in range(3):
        after(clock, 0.5)
        pace.token()
    assert pace.durations_s() == (0.0, 0.0)
    pace.opened(0)
    after(clock, 1.0)
    pace.token()
    assert pace.durations_s() == (1.0, 0.0)


def test_an_answer_that_others_began_is_not_reckoned_from_the_one_before(clock: Clock) -> None:
    pace = Pace(SyncSettings())
    pace.opened(0)
    pace.token()
    pace.interrupted(False)  # it was finished
    after(clock, 60.0)
    pace.opened(5)
    pace.token()
    assert pace.durations_s() == (0.0, 0.0)


def progress_of(shared: SharedState) -> tuple[WorkProgress, Pace]:
    """As each load makes them."""
    pace = Pace(SyncSettings())
    return WorkProgress(shared, pace, KvRoom(1, lambda tokens: tokens)), pace


def test_a_gap_goes_on_while_other_layers_are_loaded(clock: Clock) -> None:
    """A node was lost: the one that is left loads all layers, and computes the answer so far again."""
    shared = SharedState()
    progress, pace = progress_of(shared)
    pace.opened(0)
    progress.count_token(an_answer(), 0)
    pace.interrupted(True)
    progress, pace = progress_of(shared)
    pace.opened(1)
    after(clock, 4.5)
    progress.count_token(an_answer(), 0)
    assert shared.last_gap_ms == 4500.0


@pytest.mark.parametrize("known_tokens", [0, 5])
def test_where_nothing_was_open_a_load_begins_no_gap(clock: Clock, known_tokens: int) -> None:
    """No token was held up by it, whether the request is new or was begun by other ranks."""
    shared = SharedState()
    progress, pace = progress_of(shared)
    pace.opened(0)
    progress.count_token(an_answer(), 0)
    progress.watch((), idle=True)
    progress, pace = progress_of(shared)
    after(clock, 600.0)
    pace.opened(known_tokens)
    progress.count_token(an_answer(), 0)
    assert shared.last_gap_ms == 0.0


def an_answer() -> Any:
    """What of a request is counted."""
    return SimpleNamespace(tokens=[7], prefill_s=0.0, decode_s=0.0)


def test_another_model_begins_without_the_figures_of_the_last_one() -> None:
    shared = SharedState()
    shared.tokens_per_s, shared.baseline_tokens_per_s, shared.last_gap_ms = 9.0, 9.5, 700.0
    WorkProgress(shared, Pace(SyncSettings()), KvRoom(1, lambda tokens: tokens))
    told = shared.heartbeat()
    assert (told.tokens_per_s, told.baseline_tokens_per_s, told.last_gap_ms) == (0.0, 0.0, 0.0)
