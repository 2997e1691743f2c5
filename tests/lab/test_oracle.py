"""The judge of the chaos can fail: every way in which a stream could be wrong is planted, and seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.leaks import MORE_AT_PEAK_MIB, Life, Weight, grown, outgrown
from tests.lab.oracle import Answer, Heard, Verdict, judge

ANSWER = Answer("7 8 9 10 11", 6, "stop")
WHOLE = Heard("7 8 9 10 11", 6, "stop", ended=True, status=200)
KILLED = {"client": "IncompleteRead"}


def test_the_undisturbed_answer_is_whole() -> None:
    assert judge(ANSWER, WHOLE, own_daemon_ended=False) == (Verdict.WHOLE, "")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("7 8 10 11", "lost '9' after 2 words"),
        ("7 8 9 10", "lost '11' after 4 words"),
        ("8 9 10 11", "lost '7' after 0 words"),
        ("7 8 8 9 10 11", "doubled '8' after 2 words"),
        ("7 8 9 8 9 10 11", "doubled '8 9' after 3 words"),
        ("7 8 9 10 11 11", "doubled '11' after 5 words"),
        ("7 8 3 10 11", "changed '9' to '3' after 2 words"),
        ("7 8 910 11", "changed '9 10 11' to '910 11' after 2 words"),
        ("7 8 9 10 11 12", "added '12' after 5 words"),
        ("7 8  9 10 11", "spaced differently"),
        ("", "lost"),
    ],
)
@pytest.mark.parametrize("own_daemon_ended", [False, True])
def test_a_token_lost_doubled_or_changed_is_seen(text: str, word: str, own_daemon_ended: bool) -> None:
    verdict, why = judge(ANSWER, replace(WHOLE, text=text), own_daemon_ended=own_daemon_ended)
    assert verdict is Verdict.WRONG
    assert word in why


def test_a_token_without_a_text_is_counted() -> None:
    assert judge(ANSWER, replace(WHOLE, tokens=7), own_daemon_ended=False)[0] is Verdict.WRONG
    assert judge(ANSWER, replace(WHOLE, tokens=None), own_daemon_ended=False)[0] is Verdict.WRONG


def test_an_answer_that_ends_for_another_reason_is_wrong() -> None:
    assert judge(ANSWER, replace(WHOLE, finish_reason="length"), own_daemon_ended=False)[0] is Verdict.WRONG


def test_a_stream_that_breaks_is_wrong_unless_its_own_daemon_was_ended() -> None:
    broken = Heard("7 8 9", status=200, error=KILLED)
    assert judge(ANSWER, broken, own_daemon_ended=False)[0] is Verdict.WRONG
    assert judge(ANSWER, broken, own_daemon_ended=True)[0] is Verdict.CLOSED


def test_what_came_before_a_break_must_be_a_beginning_of_the_answer() -> None:
    for text in ("7 9", "7 8 8", "1"):
        broken = Heard(text, status=200, error=KILLED)
        assert judge(ANSWER, broken, own_daemon_ended=True)[0] is Verdict.WRONG


def test_an_error_object_after_tokens_is_wrong_even_where_the_stream_was_closed_properly() -> None:
    failed = Heard("7 8 9 10 11", 6, "stop", ended=True, status=200, error={"code": "recovery_failed"})
    assert judge(ANSWER, failed, own_daemon_ended=False)[0] is Verdict.WRONG


def test_a_refusal_says_when_to_come_again() -> None:
    refused = Heard("", status=503, error={"code": "queue_full"}, retry_after="2")
    assert judge(ANSWER, refused, own_daemon_ended=False)[0] is Verdict.REFUSED
    assert judge(ANSWER, replace(refused, retry_after=None), own_daemon_ended=False)[0] is Verdict.WRONG
    assert judge(ANSWER, replace(refused, status=500), own_daemon_ended=False)[0] is Verdict.WRONG


BEFORE = Weight(
    processes={"exod": 1, "rank": 1},
    descriptors={"exod": 40, "rank": 20},
    resident_mib={"exod": 60.0, "rank": 120.0},
    sockets={"tcp mesh listen": 1, "tcp ring established": 2},
    files=frozenset({"exod.sock"}),
)


def test_what_did_not_grow_is_no_leak() -> None:
    assert not grown(BEFORE, BEFORE)
    assert not grown(BEFORE, replace(BEFORE, processes={"exod": 1}, sockets={}, files=frozenset()))


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (replace(BEFORE, processes={"exod": 1, "rank": 2}), "2 processes of rank"),
        (replace(BEFORE, processes={"exod": 1, "rank": 1, "sleep": 1}), "1 processes of sleep"),
        (replace(BEFORE, descriptors={"exod": 60, "rank": 20}), "60 descriptors of exod"),
        (replace(BEFORE, resident_mib={"exod": 60.0, "rank": 220.0}), "220 MiB in rank"),
        (replace(BEFORE, sockets={"tcp mesh listen": 1, "tcp ring established": 3}), "3 of tcp ring established"),
        (replace(BEFORE, sockets=dict(BEFORE.sockets) | {"tcp other listen": 1}), "1 of tcp other listen"),
        (replace(BEFORE, files=frozenset({"exod.sock", "part.tmp"})), "part.tmp"),
    ],
)
def test_what_grew_is_named(after: Weight, name: str) -> None:
    (leak,) = grown(BEFORE, after)
    assert name in leak


def test_a_process_that_was_killed_does_not_take_its_growth_along() -> None:
    most = BEFORE.resident_mib["rank"] + MORE_AT_PEAK_MIB
    lives = [Life("rank", "studio1", 0.0, 60.0, most + 1), Life("exod", "studio1", 0.0, 60.0, 62.0)]
    (leak,) = outgrown(lives, {"studio1": BEFORE})
    assert f"rank came to {most + 1:.0f} MiB" in leak
    assert not outgrown([replace(lives[0], resident_mib=most)], {"studio1": BEFORE})
