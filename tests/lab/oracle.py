"""Judges a stream that lived through faults: is it the answer that would have come without them?

Pure. Decides what counts as lost, doubled or changed, and which streams may end early: only one whose own daemon
was ended on purpose, and one that was refused before its first token with a word on when to come again. Never
forgives a wrong beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any

SHOWN_WORDS = 6


@dataclass(frozen=True)
class Answer:
    """What a question is answered with, undisturbed."""

    text: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Question:
    prompt: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Heard:
    """What came of a stream. `error` is OpenAI's error object, or {"client": why} for a broken connection."""

    text: str
    tokens: int | None = None
    finish_reason: str | None = None
    ended: bool = False
    status: int | None = None
    error: dict[str, Any] | None = None
    retry_after: str | None = None


class Verdict(StrEnum):
    WHOLE = "whole"
    CLOSED = "closed with its own daemon"
    REFUSED = "refused, to come again"
    WRONG = "wrong"


def judge(answer: Answer, heard: Heard, *, own_daemon_ended: bool) -> tuple[Verdict, str]:
    """The verdict, and what is wrong in words. `own_daemon_ended`: on purpose, while the stream lived."""
    if heard.ended and heard.error is None:
        wrong = _difference(answer, heard)
        return (Verdict.WRONG, wrong) if wrong else (Verdict.WHOLE, "")
    if not answer.text.startswith(heard.text):
        return Verdict.WRONG, f"{_first_difference(answer.text, heard.text)}, before it broke: {heard.error}"
    if own_daemon_ended:
        return Verdict.CLOSED, ""
    if heard.status == HTTPStatus.SERVICE_UNAVAILABLE and not heard.text and heard.retry_after:
        return Verdict.REFUSED, ""
    return Verdict.WRONG, f"it broke after {len(heard.text.split())} words: HTTP {heard.status}, {heard.error}"


def _difference(answer: Answer, heard: Heard) -> str:
    if heard.text != answer.text:
        return _first_difference(answer.text, heard.text)
    if heard.tokens != answer.tokens:
        return f"{heard.tokens} tokens, not {answer.tokens}"
    if heard.finish_reason != answer.finish_reason:
        return f"it ended with {heard.finish_reason}, not with {answer.finish_reason}"
    return ""


def _first_difference(expected: str, got: str) -> str:
    """Names the first words that were lost, doubled or changed."""
    was, now = expected.split(), got.split()
    same = next((place for place, (one, other) in enumerate(zip(was, now, strict=False)) if one != other), None)
    same = min(len(was), len(now)) if same is None else same
    was, told, now = was[same:], was[:same], now[same:]
    for words in range(1, max(len(was), len(now)) + 1):
        if words <= len(was) and _alike(was[words:], now):
            return f"lost {_shown(was[:words])} after {same} words"
        if words <= len(now) and _alike(now[words:], was):
            how = "doubled" if now[:words] == told[-words:] else "added"
            return f"{how} {_shown(now[:words])} after {same} words"
        if _alike(was[words:], now[words:]):
            return f"changed {_shown(was[:words])} to {_shown(now[:words])} after {same} words"
    return f"the same words, spaced differently: {got[-40:]!r}"


def _alike(one: list[str], other: list[str]) -> bool:
    """Do both go on alike?"""
    return one[:SHOWN_WORDS] == other[:SHOWN_WORDS]


def _shown(words: list[str]) -> str:
    return repr(" ".join(words[:SHOWN_WORDS]))
