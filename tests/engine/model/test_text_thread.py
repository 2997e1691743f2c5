"""Texts are read beside the steps, and what cannot fit is refused before all of it was."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from exoengine.generation_request import ToolCall
from exoengine.model import chat_prompt, text_thread
from exoengine.model.text import Tokenizer
from exoengine.model.text_thread import TextThread
from exoengine.model_files.kv_room import KvRoom
from exoengine.protocol import ChatMessage, FromWorker, GenerationRequest, TextAnswered, TextAsked, Tools
from tests.engine.model.test_answer_text import MARKERS, WITH_TOOLS, byte_level

GENEROUS_S = 30.0
CALL = ToolCall("1", "a", "x" * 70_000)


class Asker:
    def __init__(self, tokenizer: Tokenizer | None, context: int = 4096, room: KvRoom | None = None) -> None:
        self._said: queue.Queue[FromWorker] = queue.Queue()
        self._texts = TextThread(self._said.put)
        self._texts.use(tokenizer, context, room)

    def ask(self, asked: TextAsked) -> TextAnswered:
        self._texts.ask(asked)
        answer = self._said.get(timeout=GENEROUS_S)
        assert isinstance(answer, TextAnswered)
        assert answer.ask_id == asked.ask_id
        return answer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return byte_level(tmp_path, WITH_TOOLS, MARKERS)


def test_a_prompt_comes_back_in_tokens(tokenizer: Tokenizer) -> None:
    request = GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),))
    answer = Asker(tokenizer).ask(TextAsked("1", request))
    assert list(answer.tokens) == tokenizer.prompt_tokens(request)
    assert answer.thinks


def test_texts_and_tokens_are_each_other(tokenizer: Tokenizer) -> None:
    asker = Asker(tokenizer)
    answer = asker.ask(TextAsked("1", text="é<|im_end|>", wants_pieces=True))
    assert b"".join(answer.pieces) == "é<|im_end|>".encode()
    assert asker.ask(TextAsked("2", tokens=answer.tokens)).text == "é<|im_end|>"


def test_what_can_never_fit_is_told_before_it_waits_and_can_be_counted(tokenizer: Tokenizer) -> None:
    asker = Asker(tokenizer, room=KvRoom(100, lambda tokens: tokens))
    long = GenerationRequest("q", 9, prompt="x" * 95)
    refused = asker.ask(TextAsked("1", long, will_run=True))
    assert refused.code == "context_length_exceeded"
    assert "95 tokens of prompt and 9 of answer" in refused.problem
    assert len(asker.ask(TextAsked("2", long)).tokens) == 95
    assert not asker.ask(TextAsked("3", GenerationRequest("q", 5, prompt="x" * 95), will_run=True)).code


def test_what_is_wrong_is_told(tokenizer: Tokenizer) -> None:
    asker = Asker(tokenizer, 8)
    request = GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),))
    assert asker.ask(TextAsked("1", request)).code == "context_length_exceeded"
    bad = GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),), template='{"tools": 1}')
    assert asker.ask(TextAsked("2", bad)).code == "bad_messages"
    assert Asker(None).ask(TextAsked("3", request)).code == "not_ready"


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_ends_one_request_and_the_next_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_thread, "DEADLINE_S", 0.3)
    asker = Asker(byte_level(tmp_path, ENDLESS, MARKERS))
    request = GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),))
    answer = asker.ask(TextAsked("1", request))
    assert answer.code == "bad_request"
    assert answer.problem.endswith("by the model's chat template and tokenizer, took more than 0.3 s")
    assert asker.ask(TextAsked("2", text="abc")).tokens


def test_a_tokenizer_that_does_not_end_ends_one_request(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(text_thread, "DEADLINE_S", 0.3)
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda text, **how: over.wait() and [] if "slow" in text else encode(text, **how)
    )
    asker = Asker(tokenizer)
    try:
        assert "took more than" in asker.ask(TextAsked("1", text="slow")).problem
        assert asker.ask(TextAsked("2", text="abc")).tokens
    finally:
        over.set()


def test_long_texts_of_one_client_hold_up_nobody_elses_short_ones(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they take: one is worked at, one waits, or too many were given up."""
    over, encode = threading.Event(), tokenizer.encode

    def slow(text: str, *, control: bool = True) -> list[int]:
        if len(text) > text_thread.LONG_CHARS:
            over.wait(GENEROUS_S)
        return encode(text, control=control)

    monkeypatch.setattr(tokenizer, "encode", slow)
    monkeypatch.setattr(text_thread, "DEADLINE_S", 0.2)
    said: queue.Queue[FromWorker] = queue.Queue()
    texts = text_thread.TextThread(said.put)
    texts.use(tokenizer, 4096)
    short = TextAsked("short", GenerationRequest("q", 9, messages=(ChatMessage("user", "hi"),)))
    try:
        texts.ask(TextAsked("long 0", text="7" * 100_000))
        texts.ask(short)
        first = said.get(timeout=GENEROUS_S)
        for number in (1, 2, 3):
            texts.ask(TextAsked(f"long {number}", text="7" * 100_000))
        others = [said.get(timeout=GENEROUS_S) for _ in range(4)]
        texts.ask(short)
        last = said.get(timeout=GENEROUS_S)
    finally:
        over.set()
    for answer in (first, last):
        assert isinstance(answer, TextAnswered)
        assert (answer.ask_id, answer.code) == ("short", "")
    codes = [one.code for one in others if isinstance(one, TextAnswered)]
    assert codes == ["bad_request", "bad_request", "unavailable", "unavailable"], (
        "nothing is wrong with the last two"
    )


@pytest.mark.parametrize(
    "asked",
    [
        TextAsked("1", text="7" * 70_000),
        TextAsked("1", tokens=(5,) * 70_000),
        TextAsked("1", GenerationRequest("q", 9, prompt="7" * 70_000)),
        TextAsked("1", GenerationRequest("q", 9, messages=(ChatMessage("user", ""),) * 2_000)),
        TextAsked("1", GenerationRequest("q", 9, messages=(), tools=Tools("x" * 70_000))),
        TextAsked("1", GenerationRequest("q", 9, messages=(ChatMessage("assistant", "", (CALL,)),))),
    ],
    ids=["text", "tokens", "prompt", "messages", "tools", "calls"],
)
def test_what_takes_long_is_long(asked: TextAsked) -> None:
    assert text_thread._size(asked) > text_thread.LONG_CHARS


def test_more_tokens_than_the_daemon_could_tell_at_once_are_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_thread, "MAX_TOKENS", 20)
    monkeypatch.setattr(text_thread, "MAX_PIECES", 10)
    asker = Asker(tokenizer)
    assert len(asker.ask(TextAsked("1", text="7" * 20)).tokens) == 20
    assert "has 21 tokens; at most 20" in asker.ask(TextAsked("2", text="7" * 21)).problem
    assert len(asker.ask(TextAsked("3", text="7" * 10, wants_pieces=True)).pieces) == 10
    assert "at most 10 tokens" in asker.ask(TextAsked("4", text="7" * 11, wants_pieces=True)).problem


def test_eight_million_digits_are_refused_before_they_are_read(tokenizer: Tokenizer) -> None:
    request = GenerationRequest("q", 9, messages=(ChatMessage("user", "7" * 8_000_000),))
    before = time.process_time()
    answer = Asker(tokenizer).ask(TextAsked("1", request))
    assert answer.code == "context_length_exceeded"
    assert "at least" in answer.problem
    assert time.process_time() - before < GENEROUS_S / 10, "the work of a slice or two, not of the whole"


@pytest.mark.parametrize("wants_pieces", [False, True])
def test_so_are_those_that_are_only_to_be_told_in_tokens(
    wants_pieces: bool, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them, given up, kept everybody's long prompts from being read."""
    read: list[int] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **how: read.append(len(text)) or encode(text, **how))
    answer = Asker(tokenizer).ask(TextAsked("1", text="7" * 8_000_000, wants_pieces=wants_pieces))
    assert answer.code == "bad_request"
    assert "at least" in answer.problem
    assert max(read) == chat_prompt.SLICE_CHARS
    assert sum(read) < 8_000_000 / 4


NUMBERED = "{% for message in messages %}{{ message.content * 400000 }}{% endfor %}"


def test_neither_is_what_a_template_makes_of_little_or_what_a_call_holds_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of a gigabyte took the interpreter from the steps for a minute, and the engine with it."""
    much, called = byte_level(tmp_path, NUMBERED, MARKERS), byte_level(tmp_path, WITH_TOOLS, MARKERS)
    call = ChatMessage("assistant", "", (ToolCall("1", "a", "7" * 4_000_000),))
    for tokenizer, message in ((much, ChatMessage("user", "7" * 10)), (called, call)):
        read: list[int] = []

        def noted(text: str, read: list[int] = read, encode: Any = tokenizer.encode, **how: Any) -> list[int]:
            read.append(len(text))
            return [0] * len(text)

        monkeypatch.setattr(tokenizer, "encode", noted)
        answer = Asker(tokenizer).ask(TextAsked("1", GenerationRequest("q", 9, messages=(message,))))
        assert answer.code == "context_length_exceeded"
        assert sum(read) <= 2 * chat_prompt.SLICE_CHARS
