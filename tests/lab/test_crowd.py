"""The judge of the crowd can fail; `make crowd` is the run itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.crowd import KINDS, _judged, _left, questions
from tests.lab.oracle import Answer, Heard, Verdict

ANSWER = Answer('get_weather{"city":"Oslo"}', 26, "tool_calls")
WHOLE = Heard(ANSWER.text, 26, "tool_calls", ended=True, status=200)


def test_each_kind_of_question_is_asked_and_a_seed_asks_the_same() -> None:
    assert {kind for kind, _ in questions(1)} == set(KINDS)
    assert questions(1) == questions(1) != questions(2)


@pytest.mark.parametrize(
    "change", [{"text": "get_weather{}"}, {"tokens": 25}, {"finish_reason": "stop"}, {"error": {"message": "x"}}]
)
def test_an_answer_that_differs_is_wrong(change: dict[str, object]) -> None:
    assert _judged(ANSWER, WHOLE, ended=False) == (Verdict.WHOLE, "")
    assert _judged(ANSWER, replace(WHOLE, **change), ended=False)[0] == Verdict.WRONG  # type: ignore[arg-type]


def test_a_full_queue_must_say_when_to_come_again() -> None:
    full = Heard("", status=429, error={"code": "busy"})
    assert _judged(ANSWER, full, ended=False)[0] == Verdict.WRONG
    assert _judged(ANSWER, replace(full, retry_after="3"), ended=False)[0] == Verdict.REFUSED


def test_who_hangs_up_has_the_beginning_of_the_answer() -> None:
    assert _left(ANSWER, Heard("get_we"))[0] == "hung up"
    assert _left(ANSWER, Heard("get_me"))[0] == Verdict.WRONG
