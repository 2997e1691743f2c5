"""What the HTTP API refuses, with which status and words: requests, and who may make them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from exod.daemon_api.shapes import Readiness
from exod.errors import ConfigError, ExitCode, RequestError
from exod.http.body import MAX_BODY_BYTES
from exod.http.server import HttpApi
from tests.fake_daemon import FakeDaemon
from tests.http.raw_http import Stream
from tests.http.served import CHAT, KEY, count, served
from tests.sample_reports import MODEL

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "expected float"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"top_p": -0.1}, "top_p", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": 1.5}, "max_tokens", "expected int"),
        ({"seed": 2**70}, "seed", "expected int"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 129}, "n", "<= 128"),
        ({"stop": ""}, "stop", "1 to 256"),
        ({"stop": ["a"] * 17}, "stop", "length <= 16"),
        ({"stop": ["a", 3]}, "stop[1]", "expected str"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "expected int"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "<= 100"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", ">= 0"),
        ({"logit_bias": {str(2**70): 1}}, "logit_bias", "<= 2147483647"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "only function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": "maybe"}, "tool_choice", '"none"'),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}},
            "tool_choice.allowed_tools.mode",
            '"required"',
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
            "at least one",
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "f"}],
                }
            },
            "tool_choice.tools[0]",
            "there is no function 'f'",
        ),
        ({"functions": [{"name": "f f"}]}, "functions[0].name", "letters"),
        (
            {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
            "function_call.name",
            "no tool called 'g'",
        ),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call", '"auto"'),
        ({"function_call": {"name": "g"}}, "function_call", "needs functions"),
        (
            {"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
            "functions",
            "one of the two",
        ),
        (
            {"functions": [{"name": "f", "parameters": {"type": "wrong"}}], "function_call": {"name": "f"}},
            "functions[0].parameters",
            "wrong",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "wrong"}}}],
                "response_format": {"type": "json_object"},
            },
            "tools[0].function.parameters",
            "wrong",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", '"json_schema"'),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "is missing"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "wrong"}}}},
                }
            },
            "response_format.json_schema.schema.properties.a",
            "wrong",
        ),
        ({"max_token": 3}, "max_token", "did you mean max_tokens"),
        ({"repeat_penalty": "x"}, "repeat_penalty", "expected float"),
        ({"continue_final_message": True}, "continue_final_message", "assistant"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": "hi"}, "messages", "expected array"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "one of system, developer, user"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "needs a text"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "expected str | array"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "only text",
        ),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"stream": "yes"}, "stream", "expected bool"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage", "expected bool"),
    ],
)
async def test_bad_input_is_a_400_that_names_the_field(change: dict[str, Any], param: str, words: str) -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, {**count(1, 2), **change})
        assert place.daemon.requests == []
    error = answer.json["error"]
    assert answer.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert words in error["message"]
    assert error["message"].startswith(param)
    assert error["code"] in {"invalid_value", "unsupported_value", "unknown_field", "bad_grammar"}


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, -1], [1, "a"], [True], {"a": 1}, None, [[1], "a"], [[]]])
async def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    async with served() as place:
        answer = await place.http.ask("POST", "/v1/completions", {"prompt": prompt})
    assert (answer.status, answer.json["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b'{"messages":"\\ud800"}', b"[" * 100_000])
async def test_what_is_no_json_object_is_a_400(body: bytes) -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, body)
    assert answer.status == 400


async def test_another_model_is_a_404_that_names_what_is_served() -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, count(1, 2, model="gpt-4o"))
        lookup = await place.http.ask("GET", "/v1/models/gpt-4o")
    for refusal in (answer, lookup):
        assert (refusal.status, refusal.code, refusal.json["error"]["param"]) == (404, "model_not_found", "model")
        assert MODEL in refusal.json["error"]["message"]


async def test_before_a_model_is_served_requests_get_503_with_the_reason() -> None:
    async with served() as place:
        place.daemon.models_now = []
        place.daemon.ready_now = Readiness(False, "model_loading", "embedded:count is loading")
        answer = await place.http.ask("POST", CHAT, count(1, 2))
        ready = await place.http.ask("GET", "/ready")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "model_loading", "2")
    assert (ready.status, ready.json["reason"], ready.code) == (503, "embedded:count is loading", "model_loading")
    assert ready.headers["retry-after"] == "2"


async def test_a_refusal_that_knows_when_to_come_again_says_so() -> None:
    async with served() as place:
        place.daemon.refuse = RequestError("queue_full", "64 requests wait already", retry_after_s=9.5)
        answer = await place.http.ask("POST", CHAT, count(1, 2))
    assert (answer.status, answer.headers["retry-after"]) == (429, "10")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("queue_full", "32 requests wait already"), 429),
        (RequestError("context_length_exceeded", "9000 tokens do not fit 4096"), 400),
        (RequestError("something_new", "text", ExitCode.USAGE), 400),
        (RequestError("something_new", "text", ExitCode.NO_PATH), 503),
        (RequestError("something_new", "text", ExitCode.INTERNAL), 500),
    ],
)
async def test_a_refusal_of_the_daemon_is_a_status_even_for_a_stream(error: RequestError, status: int) -> None:
    async with served() as place:
        place.daemon.refuse = error
        for stream in (False, True):
            answer = await place.http.ask("POST", CHAT, count(1, 2, stream=stream))
            assert (answer.status, answer.code) == (status, error.code)
            assert answer.json["error"]["message"] == error.text


async def test_too_large_a_body_is_refused_before_it_is_read() -> None:
    async with served() as place:
        announced = await place.http.open("POST", CHAT, b"", {"content-length": str(MAX_BODY_BYTES + 1)})
        assert announced.status == 413
        assert json.loads(await announced.body())["error"]["code"] == "body_too_large"
        announced.close()
        odd = await place.http.open("POST", CHAT, b"", {"content-length": "-5"})
        assert odd.status in (400, 413)
        odd.close()


async def test_a_chunked_body_is_bounded_too() -> None:
    async with served() as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.api.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        piece = b"%x\r\n%s\r\n" % (1024 * 1024, b" " * (1024 * 1024))

        async def flood() -> None:
            try:
                for _ in range(MAX_BODY_BYTES // (1024 * 1024) + 2):
                    writer.write(piece)
                    await writer.drain()
            except ConnectionError:
                pass

        sending = asyncio.create_task(flood(), name="flood")
        stream = Stream(reader, writer)
        await stream.head()
        assert stream.status == 413
        sending.cancel()
        stream.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"messages": [', "ends too early"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "one half of a character"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d and more of it"}]}', "one half of a character"),
        (b'{"messages": [{"role": "user", "content": "\\ude00 and more of it"}]}', "one half of a character"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]', "ends too early"),
    ],
)
async def test_what_is_no_json_is_told_in_the_senders_terms(body: bytes, said: str) -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, body)
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert said in answer.json["error"]["message"]


async def test_unknown_endpoints_and_methods_are_named_in_openais_shape() -> None:
    async with served() as place:
        lost = await place.http.ask("GET", "/v1/chat/completion")
        wrong = await place.http.ask("GET", CHAT)
        asked = await place.http.ask("OPTIONS", CHAT)
    assert (lost.status, lost.code) == (404, "not_found")
    assert CHAT in lost.json["error"]["message"]
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert wrong.json["error"]["message"].endswith("takes POST")
    assert asked.status == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


async def test_a_fault_of_the_daemon_is_a_500_without_its_story() -> None:
    async with served() as place:
        place.daemon.status = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        answer = await place.http.ask("GET", "/api/status")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert "Traceback" not in answer.body.decode()
        place.daemon.generate = lambda request: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        answer = await place.http.ask("POST", CHAT, count(1, 2))
        assert (answer.status, answer.code) == (500, "internal_error")


async def test_with_keys_everything_but_health_needs_one(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\nanother-key-for-the-lab\n")
    file.chmod(0o600)
    async with served(file) as place:
        assert (await place.http.ask("GET", "/health")).status == 200
        for path in ("/v1/models", "/ready", "/metrics", "/api/status", "/api/events", "/nothing"):
            for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"}):
                answer = await place.http.ask("GET", path, headers=headers)
                assert (answer.status, answer.code) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        for key in (KEY, "another-key-for-the-lab"):
            answer = await place.http.ask("GET", "/v1/models", headers={"authorization": f"bearer {key}"})
            assert answer.status == 200
        strange = await place.http.ask(
            "GET", "/v1/models", headers={"authorization": f"Bearer {KEY}", "host": "a.b"}
        )
        assert strange.status == 200, "a client with a key may name any host"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (KEY, 0o644, "chmod 600"),
        ("short", 0o600, "at least 16"),
        ("# nothing\n", 0o600, "one key a line"),
        (None, 0o600, "cannot be read"),
    ],
)
async def test_a_key_file_that_is_no_good_is_one_line(
    tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        HttpApi(FakeDaemon(), "127.0.0.1", 0, file).start()
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
