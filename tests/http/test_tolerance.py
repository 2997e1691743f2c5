"""Clients differ in how they say the same thing, and ask for several answers at once."""

from __future__ import annotations

from typing import Any

import pytest

from exod.daemon_api.interface import DEFAULT_MAX_TOKENS, GenerationEnd, TextDelta, Usage
from exod.http.dialects.shown_tokens import ShownTokens
from exoengine.protocol import GenerationRequest
from tests.http.served import CHAT, count, data_of, served

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"


async def asked(path: str, body: dict[str, Any]) -> GenerationRequest:
    async with served() as place:
        answer = await place.http.ask("POST", path, body)
        assert answer.status == 200, answer.body
        return place.daemon.requests[0]


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"max_tokens": -1}, DEFAULT_MAX_TOKENS),
        ({"max_tokens": None}, DEFAULT_MAX_TOKENS),
        ({"max_completion_tokens": -1}, DEFAULT_MAX_TOKENS),
        ({"max_tokens": 7.0}, 7),
        ({"num_predict": 5}, 5),
        ({"max_completion_tokens": 3, "max_tokens": 9}, 3),
    ],
)
async def test_a_limit_may_be_said_in_many_ways(change: dict[str, Any], tokens: int) -> None:
    assert (await asked(CHAT, count(1, 2, **change))).max_tokens == tokens


async def test_fields_of_other_servers_are_honoured_or_ignored() -> None:
    ignored = {
        "min_tokens": 1, "top_a": 0.1, "typical_p": 0.9, "mirostat": 2, "mirostat_tau": 5.0, "num_ctx": 4096,
        "keep_alive": "5m", "models": ["a"], "dry_multiplier": 0.8, "guided_regex": "a+", "xtc_threshold": 0.1,
        "tfs_z": 1, "ignore_eos": False, "provider": {"order": []},
    }  # fmt: skip
    sampling = (
        await asked(CHAT, count(1, 2, repeat_penalty=1.25, repetition_penalty_range=64, seed=3.0, **ignored))
    ).sampling
    assert (sampling.repetition_penalty, sampling.repetition_context_tokens, sampling.seed) == (1.25, 64, 3)


async def test_a_slash_at_the_end_is_no_other_path() -> None:
    async with served() as place:
        assert (await place.http.ask("POST", f"{CHAT}/", count(1, 2))).status == 200
        assert (await place.http.ask("GET", "/v1/models/")).status == 200


async def test_a_slash_at_the_end_of_the_base_url_is_no_other_path() -> None:
    async with served() as place:
        for path in ("/v1//chat/completions", "//v1/chat/completions", "//v1//chat/completions/"):
            assert (await place.http.ask("POST", path, count(1, 2))).status == 200
        answer = await place.http.ask("GET", "/v1/models//srv/models/other")
        assert "'/srv/models/other'" in answer.json["error"]["message"], "a model's full name stays what it is"


@pytest.mark.parametrize(
    ("written", "tokens"), [("3e1", 30), ("3.5E+1", 35), ("-1e0", DEFAULT_MAX_TOKENS), ("7.000", 7)]
)
async def test_a_whole_number_may_be_written_with_an_exponent(written: str, tokens: int) -> None:
    body = b'{"messages": [{"role": "user", "content": "count from 1 to 2"}], "max_tokens": %s}' % written.encode()
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, body)).status == 200
        assert place.daemon.requests[0].max_tokens == tokens


@pytest.mark.parametrize("written", ["3.5", "35e-1", "1e99", "12345e-3"])
async def test_another_number_may_not(written: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "count from 1 to 2"}], "max_tokens": %s}' % written.encode()
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "max_tokens")


async def test_what_was_thought_in_earlier_turns_is_dropped() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "reasoning", "text": "so"},
        {"type": "text", "text": "1"},
    ]
    messages = [
        {"role": "user", "content": "count from 1 to 2"},
        {"role": "assistant", "content": parts, "reasoning_content": "hm"},
        {"role": "user", "content": "count from 3 to 4"},
    ]
    request = await asked(CHAT, {"messages": messages})
    assert request.messages is not None
    assert request.messages[1].content == "1"


async def test_several_choices_come_with_their_index_and_a_seed_each() -> None:
    async with served() as place:
        whole = (await place.http.ask("POST", CHAT, count(1, 3, n=3, seed=5, temperature=1))).json
        stream = await place.http.open("POST", CHAT, count(1, 3, n=2, stream=True))
        chunks = data_of(await stream.events())
        seeds = sorted(request.sampling.seed for request in place.daemon.requests[:3])
    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [
        (0, "1 2 3"), (1, "1 2 3"), (2, "1 2 3"),
    ]  # fmt: skip
    assert seeds == [5, 6, 7]
    assert whole["usage"]["prompt_tokens"] == 12, "the prompt counts once"
    assert whole["usage"]["completion_tokens"] == 9
    for at in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == at]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "1 2 3"
        assert mine[-1]["finish_reason"] == "stop"


async def test_prompts_in_a_batch_are_answered_in_their_order() -> None:
    async with served() as place:
        prompts = ["count from 1 to 2", "count from 5 to 6", "count from 8 to 9"]
        body = (await place.http.ask("POST", COMPLETIONS, {"prompt": prompts, "n": 2})).json
        ids = (await place.http.ask("POST", COMPLETIONS, {"prompt": [[1, 2], [3]]})).json
    assert [choice["text"] for choice in body["choices"]] == ["1 2", "1 2", "5 6", "5 6", "8 9", "8 9"]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert body["usage"]["prompt_tokens"] == 36
    assert len(ids["choices"]) == 2


async def test_one_choice_that_fails_ends_the_request_and_the_others() -> None:
    async with served() as place:
        place.daemon.fail_at = 1
        answer = await place.http.ask("POST", CHAT, count(1, 9, n=3))
        assert (answer.status, answer.code) == (503, "recovery_failed")
        await place.quiet()


async def test_an_echo_begins_with_the_prompt() -> None:
    async with served() as place:
        body = {"prompt": "count from 1 to 2", "echo": True}
        whole = (await place.http.ask("POST", COMPLETIONS, body)).json
        stream = await place.http.open("POST", COMPLETIONS, {**body, "stream": True})
        chunks = data_of(await stream.events())
        await place.http.ask("POST", COMPLETIONS, {**body, "logprobs": 1, "max_tokens": 0})
        scored = place.daemon.requests[-1]
    assert whole["choices"][0]["text"] == "count from 1 to 21 2"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "count from 1 to 21 2"
    assert (scored.scores_prompt, scored.max_tokens) == (True, 0)


async def test_log_probabilities_of_completions_have_keys_of_their_own_and_offsets() -> None:
    async with served() as place:
        body = {"prompt": "count from 1 to 3", "logprobs": 1}
        logprobs = (await place.http.ask("POST", COMPLETIONS, body)).json["choices"][0]["logprobs"]
        stream = await place.http.open("POST", COMPLETIONS, {**body, "stream": True})
        chunks = data_of(await stream.events())
    assert logprobs["tokens"] == ["1", " 2", " 3"]
    assert logprobs["text_offset"] == [0, 1, 3]
    assert logprobs["top_logprobs"][0] == {"<end>": -5.5, "1": -0.25}
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [one["text_offset"][0] for one in streamed] == [0, 1, 3]


def test_the_first_token_of_an_echo_takes_up_the_text_that_it_shows() -> None:
    """Where the tokenizer puts a space before the first word, and where the prompt has one."""
    for text in ("one two", " one two"):
        shown = ShownTokens()
        tokens = shown.take(TextDelta(0, text, -1.0, piece=b" two", head=b" one"))
        tokens += shown.take(TextDelta(1, "!", -1.0, piece=b"!"))
        assert [token.offset for token in tokens] == [0, text.index(" two"), len(text)]


STOPPED = (
    TextDelta(0, "1", -0.1, piece=b" 1"),
    TextDelta(1, " 2 ", -0.2, piece=b" 2"),
    TextDelta(2, "", -0.3, piece=b" 3"),
    TextDelta(3, "", -0.4, piece=b" 4"),
)
"""While the stop strings may be "3 4" or "3 5": each token's text is held where it may begin one."""


@pytest.mark.parametrize(
    ("rest", "end", "text", "tokens", "offsets"),
    [
        ((), GenerationEnd("stop", Usage(3, 4), stop_string="3 4"), "1 2 ", [" 1", " 2"], [0, 1]),
        (
            (TextDelta(4, "3 4 6", -0.5, piece=b" 6"),), GenerationEnd("stop", Usage(3, 5)),
            "1 2 3 4 6", [" 1", " 2", " 3", " 4", " 6"], [0, 1, 3, 5, 7],
        ),
        (
            (), GenerationEnd("length", Usage(3, 4), text="3 4"),
            "1 2 3 4", [" 1", " 2", " 3", " 4"], [0, 1, 3, 5],
        ),
        (
            (TextDelta(4, "3 4\n", -0.5, piece="\n\N{GRINNING FACE}".encode()[:3]),),
            GenerationEnd("length", Usage(3, 5)),
            "1 2 3 4\n", [" 1", " 2", " 3", " 4", "bytes:\\x0a\\xf0\\x9f"], [0, 1, 3, 5, 7],
        ),
    ],
    ids=["a stop string", "a near match", "cut while held", "cut in a character"],
)  # fmt: skip
async def test_log_probabilities_are_those_of_the_text_that_was_shown(
    rest: tuple[TextDelta, ...], end: GenerationEnd, text: str, tokens: list[str], offsets: list[int]
) -> None:
    async with served() as place:
        place.daemon.script = (*STOPPED, *rest, end)
        body = {"prompt": "hi", "logprobs": 0, "stop": ["3 4", "3 5"]}
        whole = (await place.http.ask("POST", COMPLETIONS, body)).json["choices"][0]
        stream = await place.http.open("POST", COMPLETIONS, {**body, "stream": True})
        chunks = [chunk["choices"][0] for chunk in data_of(await stream.events())]
        chat = count(1, 4, logprobs=True, stop=["3 4", "3 5"])
        said = (await place.http.ask("POST", CHAT, chat)).json["choices"][0]
        stream = await place.http.open("POST", CHAT, {**chat, "stream": True})
        deltas = [chunk["choices"][0] for chunk in data_of(await stream.events())]
    assert (whole["text"], whole["logprobs"]["tokens"], whole["logprobs"]["text_offset"]) == (text, tokens, offsets)
    parts = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    assert "".join(chunk["text"] for chunk in chunks) == text
    assert [token for part in parts for token in part["tokens"]] == tokens
    assert [offset for part in parts for offset in part["text_offset"]] == offsets
    assert [token["token"] for token in said["logprobs"]["content"]] == tokens
    streamed = [token["token"] for delta in deltas for token in (delta["logprobs"] or {"content": ()})["content"]]
    assert streamed == tokens


def test_line_ends_and_markers_that_are_not_shown_hold_nothing_up() -> None:
    shown = ShownTokens()
    pieces = [("", b"<th"), ("", b"ink>"), ("", b"\n\n"), ("So", b"\nSo"), (", one", b", one")]
    tokens = [
        [(token.delta.piece, token.offset) for token in shown.take(TextDelta(at, text, -1.0, piece=piece))]
        for at, (text, piece) in enumerate(pieces)
    ]
    assert tokens[:3] == [[], [], []]
    assert tokens[3] == [(b"<th", 0), (b"ink>", 0), (b"\n\n", 0), (b"\nSo", 0)]
    assert tokens[4] == [(b", one", 2)]
