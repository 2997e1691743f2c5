"""Texts are read beside the steps, and what cannot fit is refused before all of it was."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import pytest

from exoengine.model import text_thread
from exoengine.model.text import Tokenizer
from exoengine.model.text_thread import TextThread
from exoengine.protocol import ChatMessage, FromWorker, GenerationRequest, TextAnswered, TextAsked
from tests.engine.model.test_answer_text import MARKERS, WITH_TOOLS, byte_level

GENEROUS_S = 30.0


class Asker:
    def __init__(self, tokenizer: Tokenizer | None, context: int = 4096) -> None:
        self._said: queue.Queue[FromWorker] = queue.Queue()
        self._texts = TextThread(self._said.put)
        self._texts.use(tokenizer, context)

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
    assert (answer.code, answer.problem) == ("bad_request", "this text took more than 0.3 s")
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


def test_eight_million_digits_are_refused_before_they_are_read(tokenizer: Tokenizer) -> None:
    request = GenerationRequest("q", 9, messages=(ChatMessage("user", "7" * 8_000_000),))
    before = time.process_time()
    answer = Asker(tokenizer).ask(TextAsked("1", request))
    assert answer.code == "context_length_exceeded"
    assert "at least" in answer.problem
    assert time.process_time() - before < GENEROUS_S / 10, "the work of a slice or two, not of the whole"
