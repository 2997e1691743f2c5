"""Streamed text and stop strings."""

from __future__ import annotations

import itertools

import pytest

from exoengine.model.text import Tokenizer
from exoengine.protocol import GenerationRequest
from tests.engine.models import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_tokenizer(folder)
    return Tokenizer(folder, None)


def streamed(tokenizer: Tokenizer, text: str, *stop: str) -> tuple[str, bool]:
    request = GenerationRequest("q", 1, prompt=text, stop=stop)
    stream = tokenizer.answer_text(request, thinks=False)
    shown = ""
    for token in tokenizer.prompt_tokens(request):
        step = stream.add(token)
        shown += step.text
        if step.stopped:
            return shown, True
    last = stream.finish(cut=True)
    return shown + last.text, last.stopped


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界", "🙂🙃", "a\n\nb", ""])
def test_text_comes_through_whole(tokenizer: Tokenizer, text: str) -> None:
    assert streamed(tokenizer, text, "never") == (text, False)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one END two", ["END"], "one "), ("one EN", ["END"], "one EN"), ("aaab", ["aab"], "a"),
        ("x世界y", ["世界"], "x"), ("abc", ["c", "bc"], "a"), ("abc", [""], "abc"), ("END", ["END"], ""),
    ],
)  # fmt: skip
def test_a_stop_string_cuts_the_text_before_it(
    tokenizer: Tokenizer, text: str, stop: list[str], shown: str
) -> None:
    assert streamed(tokenizer, text, *stop) == (shown, shown != text)


def test_nothing_that_may_be_a_stop_strings_start_is_ever_shown(tokenizer: Tokenizer) -> None:
    for letters in itertools.product("ab", repeat=6):
        text = "".join(letters)
        shown, stopped = streamed(tokenizer, text, "aab")
        assert shown == (text[: text.index("aab")] if "aab" in text else text)
        assert stopped == ("aab" in text)
