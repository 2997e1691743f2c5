"""Tools, reasoning and forms of answers: what reaches the engine, and what a client sees of its deltas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exoengine.protocol import CallDelta, Grammar, ToolCall, Tools
from tests.http.served import CHAT, count, data_of, served

pytestmark = pytest.mark.anyio

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED = [
    TextDelta(0, "", reasoning="It is"),
    TextDelta(1, "", reasoning=" far."),
    TextDelta(2, "Let me see."),
    TextDelta(3, "", calls=(CallDelta(0, "", "call_1", "get_weather"), CallDelta(0, '{"city"'))),
    TextDelta(4, "", calls=(CallDelta(0, ': "Oslo"}'), CallDelta(1, "{}", "call_2", "get_weather"))),
    GenerationEnd("stop", Usage(20, 5, reasoning_tokens=2)),
]


async def test_calls_and_reasoning_come_whole() -> None:
    async with served() as place:
        place.daemon.script = CALLED
        body = (await place.http.ask("POST", CHAT, count(1, 2, tools=[WEATHER]))).json
        (request,) = place.daemon.requests
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "It is far."
    assert choice["message"]["content"] == "Let me see."
    assert [(call["id"], call["type"], call["function"]) for call in choice["message"]["tool_calls"]] == [
        ("call_1", "function", {"name": "get_weather", "arguments": '{"city": "Oslo"}'}),
        ("call_2", "function", {"name": "get_weather", "arguments": "{}"}),
    ]
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert request.tools is not None
    assert json.loads(request.tools.specs) == [WEATHER]


async def test_calls_and_reasoning_come_in_deltas() -> None:
    async with served() as place:
        place.daemon.script = CALLED
        stream = await place.http.open("POST", CHAT, count(1, 2, tools=[WEATHER], stream=True))
        deltas = [chunk["choices"][0] for chunk in data_of(await stream.events())]
    assert "".join(one["delta"].get("reasoning_content", "") for one in deltas) == "It is far."
    calls = [call for one in deltas for call in one["delta"].get("tool_calls", [])]
    assert all(len(one["delta"].get("tool_calls", ["no call"])) == 1 for one in deltas), "as OpenAI sends them"
    assert [call["id"] for call in calls if "id" in call] == ["call_1", "call_2"]
    first = "".join(call["function"]["arguments"] for call in calls if call["index"] == 0)
    assert first == '{"city": "Oslo"}'
    assert deltas[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("change", "tools"),
    [
        ({}, ("auto", "", True)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ("required", "", False)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            ("named", "get_weather", True),
        ),
        ({"tool_choice": "none"}, None),
    ],
)
async def test_the_choice_of_tools_reaches_the_engine(change: dict[str, Any], tools: Any) -> None:
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, count(1, 2, tools=[WEATHER], **change))).status == 200
        told: Tools | None = place.daemon.requests[0].tools
    assert (None if told is None else (told.choice, told.name, told.parallel)) == tools


OTHER: dict[str, Any] = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_of_the_tools_only_the_allowed_ones_reach_the_engine(mode: str) -> None:
    async with served() as place:
        chat = count(1, 2, tools=[OTHER, WEATHER], tool_choice=allowed(mode, "get_weather"))
        assert (await place.http.ask("POST", CHAT, chat)).status == 200
        choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "get_weather"}]}
        flat = [{"type": "function", **tool["function"]} for tool in (OTHER, WEATHER)]
        asked = {"input": "count from 1 to 2", "tools": flat, "tool_choice": choice}
        answer = await place.http.ask("POST", "/v1/responses", asked)
        told = [request.tools for request in place.daemon.requests]
    assert answer.json["tool_choice"] == choice
    for tools in told:
        assert tools is not None
        assert (tools.choice, [one["function"]["name"] for one in json.loads(tools.specs)]) == (
            mode,
            ["get_weather"],
        )


async def test_turns_with_tools_are_history() -> None:
    called = {
        "id": "call_9",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
    }
    messages = [
        {"role": "user", "content": "count from 1 to 2"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_9", "content": "rain"},
        {"role": "user", "content": "count from 3 to 4"},
    ]
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, {"messages": messages})).status == 200
        sent = place.daemon.requests[0].messages or ()
    assert sent[1].tool_calls == (ToolCall("call_9", "get_weather", '{"city":"Oslo"}'),)
    assert (sent[2].role, sent[2].tool_call_id, sent[2].content) == ("tool", "call_9", "rain")


async def test_a_call_in_the_older_form_is_history_and_a_tool_may_return_nothing() -> None:
    older = {"name": "get_weather", "arguments": '{"city":"Oslo"}'}
    messages = [
        {"role": "user", "content": "count from 1 to 2"},
        {"role": "assistant", "content": None, "function_call": older},
        {"role": "function", "name": "get_weather", "content": None},
        {"role": "user", "content": "count from 3 to 4"},
    ]
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, {"messages": messages})).status == 200
        sent = place.daemon.requests[0].messages or ()
    assert sent[1].tool_calls == (ToolCall("get_weather", "get_weather", '{"city":"Oslo"}'),)
    assert (sent[2].role, sent[2].tool_call_id, sent[2].content) == ("tool", "get_weather", "")


async def test_what_the_template_is_told_reaches_the_engine() -> None:
    body = count(1, 2, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True, "x": 1})
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, body)).status == 200
        options = json.loads(place.daemon.requests[0].template)
    assert options == {"reasoning_effort": "none", "enable_thinking": True, "x": 1}


async def test_forms_of_answers_reach_the_engine() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    async with served() as place:
        for wished in (
            {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
            {"type": "text"},
        ):
            assert (await place.http.ask("POST", CHAT, count(1, 2, response_format=wished))).status == 200
        first, second, third = (request.grammar for request in place.daemon.requests)
    assert first == Grammar("json_object")
    assert second is not None
    assert json.loads(second.schema) == schema
    assert third is None


async def test_tools_in_the_older_form_are_answered_in_it() -> None:
    function = WEATHER["function"]
    async with served() as place:
        place.daemon.script = CALLED
        more: dict[str, Any] = {"functions": [function], "function_call": {"name": "get_weather"}}
        whole = (await place.http.ask("POST", CHAT, count(1, 2, **more))).json["choices"][0]
        stream = await place.http.open("POST", CHAT, count(1, 2, **more, stream=True))
        parts = [chunk["choices"][0] for chunk in data_of(await stream.events())]
        requests = place.daemon.requests
    assert [json.loads(one.tools.specs) for one in requests if one.tools] == [[WEATHER]] * 2
    assert [(one.tools.choice, one.tools.parallel) for one in requests if one.tools] == [("named", False)] * 2
    assert whole["finish_reason"] == "function_call"
    assert whole["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert "tool_calls" not in whole["message"]
    called = [part["delta"]["function_call"] for part in parts if "function_call" in part["delta"]]
    assert called[0]["name"] == "get_weather"
    assert "".join(one["arguments"] for one in called) == '{"city": "Oslo"}'
    assert not any("tool_calls" in part["delta"] for part in parts)
    assert parts[-1]["finish_reason"] == "function_call"


async def test_an_older_function_call_of_none_hides_the_functions() -> None:
    async with served() as place:
        for wish, offered in (("none", False), ("auto", True), (None, True)):
            more = {"functions": [WEATHER["function"]], "function_call": wish}
            answer = await place.http.ask("POST", CHAT, count(1, 2, **more))
            assert answer.json["choices"][0]["finish_reason"] == "stop"
            assert (place.daemon.requests[-1].tools is not None) == offered
        assert (await place.http.ask("POST", CHAT, count(1, 2, functions=[], function_call="auto"))).status == 200
