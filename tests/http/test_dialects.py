"""Other dialects over the same core, texts and tokens, and requests that somebody else ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from exod.errors import ExitCode, RequestError
from exod.http.dialects import responses
from tests.http.served import CHAT, KEY, count, served
from tests.http.test_chat_extras import CALLED, WEATHER
from tests.sample_reports import MODEL

pytestmark = pytest.mark.anyio

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


def named(events: list[str]) -> list[tuple[str, Any]]:
    """(name, data) of each event; each has both."""
    pairs = [event.split("\n") for event in events]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "default", "max_tokens": 99, **count(3, 5), **more}


async def test_a_message_of_anthropics_is_a_list_of_blocks() -> None:
    tools = [{"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}]  # type: ignore[index]
    async with served() as place:
        plain = (await place.http.ask("POST", MESSAGES, asked(system="You count."))).json
        place.daemon.script = CALLED
        called = (await place.http.ask("POST", MESSAGES, asked(tools=tools))).json
        sent = place.daemon.requests[0].messages or ()
    assert plain["content"] == [{"type": "text", "text": "3 4 5"}]
    assert (plain["type"], plain["role"], plain["stop_reason"], plain["model"]) == (
        "message", "assistant", "end_turn", MODEL,
    )  # fmt: skip
    assert plain["usage"]["input_tokens"] + plain["usage"]["cache_read_input_tokens"] == 12
    assert [message.role for message in sent] == ["system", "user"]
    assert [block["type"] for block in called["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert called["content"][2]["input"] == {"city": "Oslo"}
    assert called["stop_reason"] == "tool_use"


async def test_a_stream_of_anthropics_opens_and_closes_each_block() -> None:
    async with served() as place:
        place.daemon.script = CALLED
        stream = await place.http.open("POST", MESSAGES, asked(stream=True))
        events = named(await stream.events())
    names = [name for name, _ in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 4
    partial = [data["delta"]["partial_json"] for _, data in events if "partial_json" in data.get("delta", {})]
    assert "".join(partial) == '{"city": "Oslo"}{}'


async def test_errors_of_anthropics_have_their_own_shape() -> None:
    async with served() as place:
        lost = await place.http.ask("POST", MESSAGES, asked(model="claude"))
        wrong = await place.http.ask(
            "POST", MESSAGES, asked(messages=[{"role": "user", "content": [{"type": "image"}]}])
        )
        place.daemon.fail_at = 1
        stream = await place.http.open("POST", MESSAGES, asked(stream=True))
        name, data = named(await stream.events())[-1]
    assert (lost.status, lost.json["type"], lost.json["error"]["type"]) == (404, "error", "not_found_error")
    assert "messages[0].content[0].type" in wrong.json["error"]["message"]
    assert (name, data["error"]["type"]) == ("error", "overloaded_error")


async def test_a_response_has_items_and_is_remembered() -> None:
    async with served() as place:
        first = (
            await place.http.ask("POST", RESPONSES, {"input": "count from 1 to 2", "instructions": "Be brief."})
        ).json
        body = {"input": "count from 3 to 4", "previous_response_id": first["id"]}
        second = (await place.http.ask("POST", RESPONSES, body)).json
        lost = await place.http.ask("POST", RESPONSES, {"input": "a", "previous_response_id": "resp-gone"})
        sent = [message.content for message in place.daemon.requests[1].messages or ()]
    assert first["output"][0]["content"][0]["text"] == "1 2"
    assert (first["status"], first["usage"]["output_tokens"]) == ("completed", 2)
    assert second["previous_response_id"] == first["id"]
    assert sent == ["count from 1 to 2", "1 2", "count from 3 to 4"], "instructions are of one response alone"
    assert (lost.status, lost.code) == (400, "previous_response_not_found")


async def test_what_is_remembered_of_responses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_KEPT", 2)
    async with served() as place:
        ids = [(await place.http.ask("POST", RESPONSES, {"input": "hi"})).json["id"] for _ in range(3)]
        states = [
            (await place.http.ask("POST", RESPONSES, {"input": "hi", "previous_response_id": one})).status
            for one in ids
        ]
    assert states == [400, 200, 400], "what was used last stays"


async def test_a_response_streams_events_in_their_order() -> None:
    async with served() as place:
        place.daemon.script = CALLED
        stream = await place.http.open("POST", RESPONSES, {"input": "weather?", "stream": True})
        events = named(await stream.events())
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [name for name, _ in events][:2] == ["response.created", "response.in_progress"]
    name, last = events[-1]
    assert name == "response.completed"
    assert [item["type"] for item in last["response"]["output"]] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    added = [data["item"]["type"] for kind, data in events if kind == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call", "function_call"]


async def test_a_response_has_the_log_probabilities_that_it_was_asked_to_include() -> None:
    body = {"input": "count from 1 to 2", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with served() as place:
        whole = (await place.http.ask("POST", RESPONSES, body)).json
        stream = await place.http.open("POST", RESPONSES, {**body, "stream": True})
        events = named(await stream.events())
        plain = (await place.http.ask("POST", RESPONSES, {"input": "count from 1 to 2", "top_logprobs": 0})).json
        many = await place.http.ask("POST", RESPONSES, {**body, "top_logprobs": 21})
    deltas = [data["logprobs"] for name, data in events if name == "response.output_text.delta"]
    assert [[one["token"] for one in told] for told in deltas] == [["1"], [" 2"]]
    done = [data["logprobs"] for name, data in events if name == "response.output_text.done"]
    last = events[-1][1]["response"]
    for told in (whole["output"][0]["content"][0]["logprobs"], last["output"][0]["content"][0]["logprobs"], *done):
        assert [(one["token"], one["logprob"]) for one in told] == [("1", -0.25), (" 2", -0.25)]
        assert told[0]["top_logprobs"][0] == {"token": "<end>", "logprob": -5.5, "bytes": list(b"<end>")}
    assert whole["top_logprobs"] == 1
    assert plain["output"][0]["content"][0]["logprobs"] == []
    assert (many.status, many.json["error"]["param"]) == (400, "top_logprobs")


async def test_texts_become_tokens_and_tokens_texts() -> None:
    async with served() as place:
        told = (await place.http.ask("POST", "/tokenize", {"content": "héj", "with_pieces": True})).json
        back = (await place.http.ask("POST", "/detokenize", {"tokens": told["tokens"]})).json
        chat = (await place.http.ask("POST", "/tokenize", {"messages": count(1, 2)["messages"]})).json
        counted = (await place.http.ask("POST", f"{MESSAGES}/count_tokens", count(1, 2))).json
        bad = await place.http.ask("POST", "/tokenize", {})
    assert told["count"] == len(told["tokens"]) == 3
    assert [one["piece"] for one in told["pieces"]] == ["h", "é", "j"]
    assert back["content"] == "héj"
    assert chat["count"] == counted["input_tokens"] == len("count from 1 to 2")
    assert bad.status == 400


async def test_embeddings_are_refused_by_their_name() -> None:
    async with served() as place:
        answer = await place.http.ask("POST", "/v1/embeddings", {"input": "a", "model": "default"})
    assert (answer.status, answer.code) == (400, "embeddings_not_supported")


async def test_the_description_names_every_endpoint() -> None:
    async with served() as place:
        told = (await place.http.ask("GET", "/openapi.json")).json
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"} <= told["paths"].keys()
    assert "messages" in told["components"]["schemas"]["ChatBody"]["properties"]


async def test_a_request_can_be_cancelled_by_its_id() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        stream = await place.http.open("POST", CHAT, count(1, 9, stream=True))
        first = await stream.event()
        assert first is not None
        request_id = json.loads(first.removeprefix("data: "))["id"]
        done = await place.http.ask("POST", f"/v1/cancel/{request_id}")
        events = await stream.events()
        await place.quiet()
        again = await place.http.ask("POST", f"/v1/cancel/{request_id}")
        assert place.daemon.cancelled == [request_id]
    assert (done.status, done.json["cancelled"]) == (200, True)
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "cancelled"
    assert again.status == 404


async def test_a_request_can_be_cancelled_by_the_clients_own_id() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        waiting = asyncio.create_task(place.http.ask("POST", CHAT, count(1, 9), {"x-request-id": "mine"}))
        while not place.daemon.running:  # noqa: ASYNC110 - a fake's plain field
            await asyncio.sleep(0.005)
        assert (await place.http.ask("POST", "/v1/cancel/mine")).status == 200
        answer = await waiting
    assert (answer.status, answer.code) == (503, "cancelled")
    assert answer.headers["x-should-retry"] == "false", "openai's client would ask again by itself"
    assert "retry-after" not in answer.headers


async def test_what_the_ranks_died_of_is_not_asked_again_by_a_client_itself() -> None:
    async with served() as place:
        place.daemon.refuse = RequestError("request_given_up", "two processes ended over it", ExitCode.INTERNAL)
        answer = await place.http.ask("POST", CHAT, count(1, 9))
        place.daemon.refuse = RequestError("recovery_failed", "studio2 did not return", ExitCode.DEGRADED)
        passing = await place.http.ask("POST", CHAT, count(1, 9))
    assert (answer.status, answer.headers["x-should-retry"]) == (500, "false")
    assert (passing.status, "x-should-retry" in passing.headers) == (503, False)


async def test_models_are_shown_by_names_that_are_no_paths() -> None:
    async with served() as place:
        place.daemon.models_now = ["Qwen3-4B"]
        place.daemon.full_model_now = "/Users/me/models/Qwen3-4B"
        for name in ("default", "Qwen3-4B", "/Users/me/models/Qwen3-4B"):
            answer = await place.http.ask("POST", CHAT, count(1, 2, model=name))
            assert (answer.status, answer.json["model"]) == (200, "Qwen3-4B")
        listed = (await place.http.ask("GET", "/v1/models")).json["data"]
        assert [model["id"] for model in listed] == ["Qwen3-4B"]
        assert (await place.http.ask("GET", "/v1/models/Qwen3-4B")).status == 200


def test_a_refusal_of_the_daemon_is_an_error_in_each_dialect() -> None:
    from exod.http.dialects.anthropic import anthropic_error

    assert anthropic_error(RequestError("queue_full", "full"))["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("DELETE", "/v1/messages/count_tokens", 405, "invalid_request_error"),
    ],
)
async def test_below_messages_every_error_is_anthropics(method: str, path: str, status: int, kind: str) -> None:
    async with served() as place:
        answer = await place.http.ask(method, path, {} if method == "POST" else None)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)


async def test_a_path_that_only_begins_like_messages_is_openais() -> None:
    async with served() as place:
        answer = await place.http.ask("GET", "/v1/messagesX")
    assert (answer.status, answer.code, "type" in answer.json) == (404, "not_found", False)


async def test_a_conversation_that_is_not_kept_here_is_not_left_out_in_silence() -> None:
    async with served() as place:
        for conversation in ("conv_1", {"id": "conv_1"}):
            answer = await place.http.ask("POST", RESPONSES, {"input": "weather?", "conversation": conversation})
            assert (answer.status, answer.json["error"]["param"]) == (400, "conversation")
        assert (await place.http.ask("POST", RESPONSES, {"input": "hm?", "conversation": None})).status == 200


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"),
        (MESSAGES, {"mcp_servers": [{"type": "url", "url": "https://tools.example", "name": "t"}]}, "mcp_servers"),
        (MESSAGES, {"thinking": {"type": "always"}}, "thinking.type"),
        (MESSAGES, {"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        (MESSAGES, {"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
async def test_neither_is_anything_else_that_the_answer_would_lack(
    path: str, more: dict[str, Any], param: str
) -> None:
    body = {"input": "hi"} if path == RESPONSES else asked()
    async with served() as place:
        answer = await place.http.ask("POST", path, {**body, **more})
        assert (answer.status, answer.json["error"]["message"].partition(": ")[0]) == (400, param)
        nothing = dict.fromkeys(more)
        assert (await place.http.ask("POST", path, {**body, **nothing})).status == 200


async def test_what_a_model_said_and_called_in_one_turn_is_one_message_again() -> None:
    """Templates want one message a turn, with all its calls; the items of a response are apart."""
    call: dict[str, Any] = {"type": "function_call", "name": "get_weather", "arguments": "{}"}
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": "Let me see."},
        {**call, "call_id": "call_1"},
        {**call, "call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2", "output": "sun"},
        {**call, "call_id": "call_3"},
        {"type": "function_call_output", "call_id": "call_3", "output": "fog"},
    ]
    async with served() as place:
        assert (await place.http.ask("POST", RESPONSES, {"input": items})).status == 200
        (request,) = place.daemon.requests
    turns = [(one.role, one.content, [call.id for call in one.tool_calls]) for one in request.messages or ()]
    assert turns == [
        ("user", "weather?", []),
        ("assistant", "Let me see.", ["call_1", "call_2"]),
        ("tool", "rain", []),
        ("tool", "sun", []),
        ("assistant", "", ["call_3"]),
        ("tool", "fog", []),
    ]


async def test_items_of_earlier_answers_can_be_referred_to() -> None:
    async with served() as place:
        place.daemon.script = CALLED
        first = (await place.http.ask("POST", RESPONSES, {"input": "weather?"})).json
        stream = await place.http.open("POST", RESPONSES, {"input": "weather?", "stream": True})
        streamed = named(await stream.events())[-1][1]["response"]
        place.daemon.script = None
        for response in (first, streamed):
            items = [
                {"role": "user", "content": "weather?"},
                *({"type": "item_reference", "id": item["id"]} for item in response["output"]),
                {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            ]
            assert (await place.http.ask("POST", RESPONSES, {"input": items})).status == 200
        bare = {"input": [{"role": "user", "content": "weather?"}, {"id": first["output"][1]["id"]}]}
        assert (await place.http.ask("POST", RESPONSES, bare)).status == 200
        sent = [
            [(one.role, one.content, [call.id for call in one.tool_calls]) for one in request.messages or ()]
            for request in place.daemon.requests[2:]
        ]
    turns = [
        ("user", "weather?", []),
        ("assistant", "Let me see.", ["call_1", "call_2"]),
        ("tool", "rain", []),
    ]
    assert sent == [turns, turns, [turns[0], ("assistant", "Let me see.", [])]]


async def test_an_item_that_is_not_kept_here_is_named() -> None:
    async with served() as place:
        unkept = (await place.http.ask("POST", RESPONSES, {"input": "hi", "store": False})).json["output"][0]["id"]
        kept = (await place.http.ask("POST", RESPONSES, {"input": "hi"})).json["output"][0]["id"]
        for name in (unkept, "msg_gone_0", "x", f"{kept}0"):
            body = {"input": [{"role": "user", "content": "hi"}, {"type": "item_reference", "id": name}]}
            answer = await place.http.ask("POST", RESPONSES, body)
            assert (answer.status, answer.code, answer.json["error"]["param"]) == (
                400, "item_not_found", "input[1].id",
            )  # fmt: skip
        nameless = await place.http.ask("POST", RESPONSES, {"input": [{"type": "item_reference"}]})
    assert (nameless.status, nameless.json["error"]["param"]) == (400, "input[0].id")


async def test_documents_of_text_are_read() -> None:
    text = {"type": "text", "media_type": "text/plain", "data": "Oslo lies by a fjord."}
    inner = {"type": "content", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    plain = {
        "type": "document",
        "source": text,
        "title": "Cities",
        "context": "Of Norway",
        "citations": {"enabled": True},
    }
    found = {
        "type": "search_result",
        "source": "a.example",
        "title": "A",
        "content": [{"type": "text", "text": "b"}],
    }
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document", "source": inner}]}
    content = [plain, found, {"type": "text", "text": "Where?"}]
    turns = [{"role": "user", "content": content}, {"role": "user", "content": [result]}]
    async with served() as place:
        assert (await place.http.ask("POST", MESSAGES, asked(messages=turns))).status == 200
        counted = await place.http.ask("POST", f"{MESSAGES}/count_tokens", {"messages": turns})
        first, second = place.daemon.requests[0].messages or ()
    assert counted.status == 200
    for words in ("<source>Cities</source>", "Of Norway", "Oslo lies by a fjord.", "A a.example", "\nb\n"):
        assert words in first.content
    assert first.content.endswith("</document>\nWhere?")
    assert second.role == "tool"
    assert "one\ntwo" in second.content


@pytest.mark.parametrize(
    ("source", "place_of"),
    [
        ({"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}, "source.type"),
        ({"type": "url", "url": "https://a.example/a.pdf"}, "source.type"),
        ({"type": "content", "content": [{"type": "image", "source": {}}]}, "source.content[0].type"),
        ({"type": "content", "content": 7}, "source.content"),
        ("text", "source"),
        (None, "source"),
    ],
)
async def test_a_document_that_cannot_be_read_is_named(source: Any, place_of: str) -> None:
    body = asked(messages=[{"role": "user", "content": [{"type": "document", "source": source}]}])
    async with served() as place:
        answer = await place.http.ask("POST", MESSAGES, body)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(f"messages[0].content[0].{place_of}: ")


WRONG: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "wrong"}}}
WISHED = {"type": "json_schema", "schema": WRONG}
FLAT = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (RESPONSES, {"tools": [{"type": "function", "name": "f f"}]}, "tools[0].name"),
        (RESPONSES, {"tools": [FLAT], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        (
            RESPONSES,
            {"tools": [{"type": "function", "name": "f", "parameters": WRONG}], "tool_choice": "required"},
            "tools[0].parameters.properties.a",
        ),
        (RESPONSES, {"text": {"format": {**WISHED, "name": "a"}}}, "text.format.schema.properties.a"),
        (MESSAGES, {"tools": [{"name": "f f"}]}, "tools[0].name"),
        (MESSAGES, {"tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        (
            MESSAGES,
            {"tools": [{"name": "f", "input_schema": WRONG}], "tool_choice": {"type": "any"}},
            "tools[0].input_schema.properties.a",
        ),
        (MESSAGES, {"output_format": WISHED}, "output_format.schema.properties.a"),
    ],
)  # fmt: skip
async def test_a_place_is_named_as_the_dialect_names_it(path: str, body: dict[str, Any], where: str) -> None:
    said = {"input": "hi"} if path == RESPONSES else asked()
    async with served() as place:
        answer = await place.http.ask("POST", path, {**said, **body})
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith(f"{where}: ")


async def test_a_request_is_cancelled_by_its_own_client_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n{KEY[::-1]}\n")
    keys.chmod(0o600)
    mine, other = ({"authorization": f"Bearer {key}", "x-request-id": "same"} for key in (KEY, KEY[::-1]))
    async with served(keys) as place:
        place.daemon.pause = asyncio.Event()
        waiting = [asyncio.create_task(place.http.ask("POST", CHAT, count(1, 9), mine)) for _ in range(2)]
        while place.daemon.running < 2:  # noqa: ASYNC110 - a fake's plain field
            await asyncio.sleep(0.005)
        (request_id, _) = [request.request_id for request in place.daemon.requests]
        refused = [
            (await place.http.ask("POST", f"/v1/cancel/{name}", None, other)).status
            for name in ("same", request_id)
        ]
        assert place.daemon.running == 2
        done = await place.http.ask("POST", "/v1/cancel/same", None, mine)
        answers = await asyncio.gather(*waiting)
    assert (refused, done.status) == ([404, 404], 200)
    assert [(answer.status, answer.code) for answer in answers] == [(503, "cancelled")] * 2, "one id, two requests"
