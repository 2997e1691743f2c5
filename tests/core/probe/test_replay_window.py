"""Replay protection and loss from one bitmap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.core.probe.replay_window import LOSS_WINDOW, WINDOW, SequenceWindow


@given(st.lists(st.integers(1, 300), max_size=400))
def test_a_number_is_accepted_once_and_never_when_too_old(numbers: list[int]) -> None:
    window = SequenceWindow()
    seen: set[int] = set()
    newest = 0
    for number in numbers:
        expected = number not in seen and number > newest - WINDOW
        assert window.accept(number) is expected
        if expected:
            seen.add(number)
            newest = max(newest, number)
    assert window.newest == newest


def test_a_window_that_begins_at_a_number_refuses_what_came_before() -> None:
    window = SequenceWindow(100)
    assert not window.accept(99)
    assert not window.accept(100)
    assert window.accept(101)


@given(st.sets(st.integers(1, LOSS_WINDOW), min_size=0, max_size=LOSS_WINDOW - 1))
def test_loss_is_the_share_that_never_came(missing: set[int]) -> None:
    window = SequenceWindow()
    window.accept(1)
    for number in range(2, 1_000):
        window.accept(number)
    for number in range(1_000, 1_000 + LOSS_WINDOW):
        if number - 1_000 + 1 not in missing or number == 1_000 + LOSS_WINDOW - 1:
            window.accept(number)
    lost = len(missing - {LOSS_WINDOW})
    assert abs(window.loss - lost / LOSS_WINDOW) < 1e-9


def test_lasting_loss_is_of_many_and_unknown_of_few() -> None:
    window = SequenceWindow()
    for number in range(1, 100, 3):
        window.accept(number)
    assert window.lasting_loss == 0.0, "fewer than a hundred"
    window.accept(100)
    assert window.lasting_loss == pytest.approx(0.66)
    for number in range(101, 281):
        window.accept(number)
    assert window.loss == 0.0
    assert window.lasting_loss == pytest.approx(13 / 200), "of the numbers 81 to 100 those not divided by 3"
    for number in range(281, 301):
        window.accept(number)
    assert window.lasting_loss == 0.0


def test_a_late_datagram_was_not_lost() -> None:
    window = SequenceWindow()
    for number in [*range(1, 40), *range(45, 60)]:
        window.accept(number)
    assert window.loss > 0.0
    for number in range(40, 45):
        assert window.accept(number)
    assert window.loss == 0.0


def test_loss_begins_anew_where_it_is_told_to() -> None:
    window = SequenceWindow()
    for number in range(1, 200, 2):
        window.accept(number)
    assert window.loss > 0.4
    window.measure_anew()
    for number in range(500, 560):
        window.accept(number)
    assert window.loss == 0.0
    assert window.recent_loss == 0.0


def test_a_stream_that_begins_late_lost_nothing_before() -> None:
    window = SequenceWindow()
    for number in range(5_000, 5_060):
        window.accept(number)
    assert window.loss == 0.0
