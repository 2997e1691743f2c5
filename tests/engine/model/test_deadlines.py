"""A template that loops and a tokenizer that does not end cost a request, never the worker."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from exoengine.model import deadlines, text
from exoengine.model.chat_prompt import PromptError
from exoengine.model.deadlines import Abandoning, TooSlowError, interrupted_after
from exoengine.model.text import Tokenizer
from exoengine.protocol import ChatMessage, GenerationRequest

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
GENEROUS_S = 30.0


def test_a_template_that_loops_is_interrupted() -> None:
    template = jinja2.Environment(autoescape=True).from_string(ENDLESS)
    begun = time.monotonic()
    with (
        pytest.raises(TooSlowError, match="the chat template took more than"),
        interrupted_after(0.2, "the chat template"),
    ):
        template.render()
    assert time.monotonic() - begun < GENEROUS_S


def test_a_handler_of_the_template_does_not_keep_it_running() -> None:
    def stubborn() -> None:
        with interrupted_after(0.1, "it"):
            while True:
                try:
                    time.sleep(0.01)
                except Exception:
                    continue

    with pytest.raises(TooSlowError):
        stubborn()


def test_what_ends_in_time_leaves_nothing_behind() -> None:
    with interrupted_after(0.1, "it"):
        pass
    time.sleep(0.2)


def test_native_code_is_left_alone_and_so_many_times_only() -> None:
    running, over = Abandoning(), threading.Event()
    try:
        for _ in range(deadlines.MAX_ABANDONED):
            with pytest.raises(TooSlowError, match="took more than"):
                running.run(over.wait, 0.05, "it")
        with pytest.raises(TooSlowError, match="earlier texts"):
            running.run(over.wait, 0.05, "it")
    finally:
        over.set()
    time.sleep(0.1)
    assert running.run(lambda: 7, GENEROUS_S, "it") == 7
    with pytest.raises(ZeroDivisionError):
        running.run(lambda: 1 // 0, GENEROUS_S, "it")


def test_a_template_that_loops_in_a_thread_is_ended() -> None:
    running = Abandoning()
    template = jinja2.Environment(autoescape=True).from_string(ENDLESS)
    with pytest.raises(TooSlowError):
        running.run(template.render, 0.1, "the chat template")
    (thread,) = running._abandoned
    thread.join(GENEROUS_S)
    assert not thread.is_alive()


class Wrapped:
    """In the place of mlx-lm's tokenizer."""

    has_chat_template = True
    has_thinking = False
    chat_template = ENDLESS
    think_end = None
    eos_token_ids = (0,)
    tool_parser = None

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return jinja2.Environment(autoescape=True).from_string(ENDLESS).render()

    def encode(self, text: str, **_: Any) -> list[int]:
        time.sleep(GENEROUS_S if "slow" in text else 0)
        return [1]


def test_a_request_that_a_template_or_a_tokenizer_never_finishes_fails_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(text, "load_tokenizer", lambda *_, **__: Wrapped())
    monkeypatch.setattr(text, "Pieces", lambda wrapped: SimpleNamespace())
    monkeypatch.setattr(deadlines, "TEMPLATE_S", 0.2)
    monkeypatch.setattr(deadlines, "ENCODE_S", 0.2)
    tokenizer = Tokenizer(tmp_path, None)
    with pytest.raises(PromptError, match="the chat template took more than"):
        tokenizer.prompt(GenerationRequest("r", 1, messages=(ChatMessage("user", "x"),)))
    with pytest.raises(PromptError, match="the tokenizer took more than"):
        tokenizer.prompt(GenerationRequest("r", 1, prompt="slow"))
    assert tokenizer.prompt(GenerationRequest("r", 1, prompt="quick"))[0] == [1]
