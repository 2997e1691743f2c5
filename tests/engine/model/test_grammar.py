"""Masks: whatever a model would say, its answer follows the grammar, and a replay finds the same masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exoengine.embedded import model_folder
from exoengine.generate.request import Generation, accept
from exoengine.model import grammar
from exoengine.model.loading import load
from exoengine.model.sampling import Sampler
from exoengine.model.text import Tokenizer
from exoengine.model_files.model_folder import inspect
from exoengine.protocol import (
    ChatMessage,
    Finished,
    FromWorker,
    GenerationRequest,
    Grammar,
    Load,
    RequestFailed,
    Sampling,
    TokenOut,
    Tools,
)
from tests.engine.model.test_answer_text import HARMONY, MARKERS, PLAIN, WITH_TOOLS, byte_level
from tests.engine.models import EOS, LLAMA, write_model

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bergen"]}, "rain": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["city", "rain", "n"],
    "additionalProperties": False,
}
REFERRING = {
    **SCHEMA,
    "properties": {**SCHEMA["properties"], "city": {"$ref": "#/$defs/place"}},  # type: ignore[dict-item]
    "$defs": {"place": {"enum": ["Oslo", "Bergen"]}},
}
WEATHER = [
    {"type": "function", "function": {"name": "get_weather", "parameters": REFERRING}},
    {"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}}},
]


def width(tokenizer: Tokenizer) -> int:
    return len(tokenizer._wrapped) + 6  # some models have more logits than tokens


def wild(tokenizer: Tokenizer, request: GenerationRequest, seed: int) -> tuple[Generation, list[FromWorker]]:
    """The answer of a model that would say anything at all."""
    said: list[FromWorker] = []
    generation = accept(1, request, (), tokenizer, width(tokenizer), 4096, said.append)
    assert isinstance(generation, Generation), generation
    sampler = Sampler(request.sampling, width(tokenizer), generation.given, generation.mask)
    while generation.finished is None:
        index = len(generation.tokens)
        logits = mx.random.normal((1, width(tokenizer)), key=mx.random.key(seed * 1000 + index))
        token, _ = sampler.draw(logits, generation.recent(20), index)
        generation.add(int(token.item()))
    return generation, said


def text_of(said: list[FromWorker]) -> str:
    return "".join(one.text for one in said if isinstance(one, TokenOut | Finished))


def asked(**more: Any) -> GenerationRequest:
    return GenerationRequest("q", 400, messages=(ChatMessage("user", "hi"),), sampling=Sampling(1.0), **more)


def test_what_all_grammars_share_is_made_by_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second for a large vocabulary, in which no other answer would go on."""
    folder = write_model(tmp_path / "model", {**LLAMA, "eos_token_id": EOS})
    loaded = load(Load(str(folder), 0, inspect(folder).total_layers), lambda *_: None)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a request makes it again")

    monkeypatch.setattr(grammar, "LLTokenizer", refuse)
    wanted = asked(grammar=Grammar("json_schema", json.dumps({"type": "integer"})))
    assert loaded.tokenizer.answer_mask(wanted, False, loaded.summary.vocab_size) is not None


def test_a_tokenizer_that_follows_no_grammar_says_so_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    monkeypatch.setattr(grammar, "LLTokenizer", lambda *_, **__: 1 / 0)
    tokenizer.prepare_grammars(width(tokenizer))
    for _ in range(2):
        with pytest.raises(grammar.GrammarError, match="cannot follow a grammar: division by zero"):
            tokenizer.answer_mask(asked(grammar=Grammar("json_object")), False, width(tokenizer))


def test_any_model_answers_by_the_schema(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    for seed in range(5):
        generation, said = wild(tokenizer, asked(grammar=Grammar("json_schema", json.dumps(SCHEMA))), seed)
        value = json.loads(text_of(said))
        assert generation.finished == "stop"
        assert value.keys() == {"city", "rain", "n"}
        assert value["city"] in ("Oslo", "Bergen")
        assert isinstance(value["n"], int)
        assert abs(value["n"]) < 2**53


def test_masks_are_a_function_of_the_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    request = asked(grammar=Grammar("json_schema", json.dumps(SCHEMA)))
    generation, _ = wild(tokenizer, request, 1)
    mask = generation.mask
    assert mask is not None
    fresh = tokenizer.answer_mask(request, False, width(tokenizer))
    assert fresh is not None
    for index in (len(generation.tokens) - 1, 3, 0, 9):
        again = fresh.at(generation.tokens[:index], width(tokenizer))
        assert mx.array_equal(mask(index, width(tokenizer)), again), index


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("choice", ["required", "named"])
def test_a_call_that_must_be_made_is_made(tmp_path: Path, folded: bool, choice: Any) -> None:
    tokenizer = byte_level(tmp_path, PLAIN if folded else WITH_TOOLS, MARKERS)
    request = asked(
        tools=Tools(json.dumps(WEATHER), choice, "get_weather" if choice == "named" else ""),
        template='{"enable_thinking": false}',
    )
    whole = 0
    for seed in range(5):
        generation, said = wild(tokenizer, request, seed)
        calls = [call for one in said if isinstance(one, TokenOut | Finished) for call in one.calls]
        names = {call.name for call in calls if call.name}
        assert names <= ({"get_weather"} if choice == "named" else {"get_weather", "wait"})
        assert len([call for call in calls if call.id]) == 1
        assert text_of(said) == ""
        if generation.finished != "length":  # some strings of a wild model have no end
            whole += 1
            assert isinstance(json.loads("".join(call.arguments for call in calls)), dict)
    assert whole >= 2


def test_what_a_model_thinks_follows_no_grammar(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    mask = tokenizer.answer_mask(asked(grammar=Grammar("json_object")), True, width(tokenizer))
    assert mask is not None
    thought = tokenizer.encode("so, ")
    assert mask.at(thought, width(tokenizer)) is None
    after = mask.at([*thought, *tokenizer.encode("</think>")], width(tokenizer))
    allowed = [token for token, bias in enumerate(after.tolist()) if bias == 0]
    assert {tokenizer.decode([token]) for token in allowed} == {"{"}


def test_a_grammar_begins_behind_the_header_that_says_so(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN, HARMONY)
    mask = tokenizer.answer_mask(asked(grammar=Grammar("json_object")), False, width(tokenizer))
    assert mask is not None
    header = tokenizer.encode(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    assert mask.at(header[:-1], width(tokenizer)) is None
    allowed = [token for token, bias in enumerate(mask.at(header, width(tokenizer)).tolist()) if bias == 0]
    assert {tokenizer.decode([token]) for token in allowed} == {"{"}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", '{"type": "wrong"}'), "wrong"),
        (Grammar("json_schema", '{"type": "string", "pattern": "(?<=a)b"}'), "look-around"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(tmp_path: Path, grammar: Grammar, words: str) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    refused = accept(1, asked(grammar=grammar), (), tokenizer, width(tokenizer), 4096, lambda _: None)
    assert isinstance(refused, RequestFailed)
    assert refused.code == "bad_grammar"
    assert words in refused.text


@pytest.mark.parametrize("field", ["specs", "template", "schema"])
def test_what_is_nested_too_deeply_is_refused_and_ends_nothing(tmp_path: Path, field: str) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    request = {
        "specs": asked(tools=Tools(f'[{{"function": {{"name": "f", "parameters": {deep}}}}}]', "required")),
        "template": asked(template=deep),
        "schema": asked(grammar=Grammar("json_schema", deep)),
    }[field]
    refused = accept(1, request, (), tokenizer, width(tokenizer), 4096, lambda _: None)
    assert isinstance(refused, RequestFailed)


def test_a_vocabulary_that_cannot_write_json_is_told() -> None:
    tokenizer = Tokenizer(model_folder("embedded:count"), None)
    refused = accept(1, asked(grammar=Grammar("json_object")), (), tokenizer, 1010, 4096, lambda _: None)
    assert isinstance(refused, RequestFailed)
    assert "vocabulary cannot write" in refused.text


def test_a_vocabulary_that_cannot_write_a_call_is_told() -> None:
    """It has one token for all unknown text, which is not the marker of a call."""
    tokenizer = Tokenizer(model_folder("embedded:count"), None)
    request = asked(tools=Tools(json.dumps(WEATHER), "required"))
    refused = accept(1, request, (), tokenizer, 1010, 4096, lambda _: None)
    assert isinstance(refused, RequestFailed), refused
    assert "vocabulary cannot write" in refused.text


def test_a_prompt_that_is_scored_has_the_models_own_probabilities(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    request = GenerationRequest("q", 2, prompt="Hé", scores_prompt=True, sampling=Sampling(logprobs=1))
    generation, said = wild(tokenizer, request, 3)
    outs = [one for one in said if isinstance(one, TokenOut)]
    assert [out.token for out in outs[:2]] == tokenizer.encode("Hé")[1:]
    assert outs[0].head == b"H"
    assert "".join(out.text for out in outs[:2]) == "Hé"
    (end,) = (one for one in said if isinstance(one, Finished))
    assert (end.prompt_tokens, end.completion_tokens) == (3, 2)
    assert len(generation.tokens) == 4
