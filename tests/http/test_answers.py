"""Answers and streams of the HTTP API, smooth ones and others."""

from __future__ import annotations

import asyncio
import json

import pytest

from exod.daemon_api import stream_keepalive
from exod.errors import RequestError
from exod.http.generation import AnswerTimes
from tests.http.raw_http import DEADLINE_S
from tests.http.served import CHAT, count, data_of, served
from tests.sample_reports import MODEL

pytestmark = pytest.mark.anyio


async def test_a_chat_is_answered_in_one_piece() -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, count(3, 6, model=MODEL))
    assert answer.status == 200
    body = answer.json
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "3 4 5 6"},
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 4,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def test_a_chat_streams_its_role_its_tokens_its_reason_and_its_end() -> None:
    async with served() as place:
        stream = await place.http.open(
            "POST", CHAT, count(3, 6, stream=True, stream_options={"include_usage": True})
        )
        events = await stream.events()
    assert stream.headers["content-type"].startswith("text/event-stream")
    chunks = data_of(events)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "3 4 5 6"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 5 + ["stop"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 4)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_usage_is_streamed_only_where_asked_for() -> None:
    async with served() as place:
        stream = await place.http.open("POST", CHAT, count(3, 4, stream=True))
        assert all(chunk["choices"] for chunk in data_of(await stream.events()))


async def test_completions_answer_and_stream_in_their_own_shape() -> None:
    async with served() as place:
        body = {"model": "default", "prompt": "count from 7 to 9"}
        answer = (await place.http.ask("POST", "/v1/completions", body)).json
        stream = await place.http.open("POST", "/v1/completions", {**body, "stream": True})
        chunks = data_of(await stream.events())
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "7 8 9")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "7 8 9"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_max_tokens_ends_with_length() -> None:
    async with served() as place:
        for field in ("max_tokens", "max_completion_tokens"):
            choice = (await place.http.ask("POST", CHAT, count(1, 9, **{field: 2}))).json["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("1 2", "length")


async def test_logprobs_come_in_both_shapes() -> None:
    async with served() as place:
        chat = (await place.http.ask("POST", CHAT, count(1, 2, logprobs=True, top_logprobs=1))).json
        plain = (await place.http.ask("POST", "/v1/completions", {"prompt": "hi", "logprobs": 1})).json
    assert chat["choices"][0]["logprobs"]["content"][0] == {
        "token": "1",
        "logprob": -0.25,
        "bytes": [49],
        "top_logprobs": [{"token": "<end>", "logprob": -5.5, "bytes": list(b"<end>")}],
    }
    assert plain["choices"][0]["logprobs"]["token_logprobs"] == [-0.25] * 3


async def test_every_field_reaches_the_engine() -> None:
    body = count(
        1,
        2,
        max_tokens=5,
        stop=["7", "8"],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=-1,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"17": -100},
        n=1,
        user="me",
        num_ctx=4096,
    )
    async with served() as place:
        assert (await place.http.ask("POST", CHAT, body)).status == 200
        (request,) = place.daemon.requests
    sampling = request.sampling
    assert (request.max_tokens, request.stop) == (5, ("7", "8"))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.5, 1.5)
    assert (sampling.seed, sampling.logit_bias, sampling.logprobs) == (2**63 - 1, {17: -100.0}, -1)


async def test_without_wishes_an_answer_is_greedy_and_as_long_as_it_must_be() -> None:
    async with served() as place:
        await place.http.ask("POST", CHAT, count(1, 2))
        await place.http.ask("POST", CHAT, count(1, 2, temperature=None, top_p=0))
        first, second = place.daemon.requests
    assert first.sampling.temperature == second.sampling.temperature == 0
    assert first.max_tokens >= 4096
    assert first.sampling.seed != second.sampling.seed


async def test_content_may_be_a_list_of_text_parts_and_developer_means_system() -> None:
    messages = [
        {"role": "developer", "content": "You count."},
        {"role": "user", "content": [{"type": "text", "text": "count from 1 "}, {"type": "text", "text": "to 3"}]},
    ]
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, {"messages": messages})
        sent = place.daemon.requests[0].messages
    assert answer.json["choices"][0]["message"]["content"] == "1 2 3"
    assert sent is not None
    assert sent[0].role == "system"


async def test_a_prompt_may_be_token_ids() -> None:
    async with served() as place:
        for prompt in ([1, 2, 3], [[1, 2, 3]]):
            assert (await place.http.ask("POST", "/v1/completions", {"prompt": prompt})).status == 200
        assert [request.prompt for request in place.daemon.requests] == [(1, 2, 3), (1, 2, 3)]


async def test_a_quiet_stream_begins_and_is_kept_alive_with_data_that_every_reader_skips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A naive reader splits at empty lines and takes each part for data: so each part is data."""
    monkeypatch.setattr(stream_keepalive, "KEEP_ALIVE_S", 0.02)
    empty: dict[str, dict[str, object]] = {CHAT: {"delta": {}}, "/v1/completions": {"text": ""}}
    for path, nothing in empty.items():
        async with served() as place:
            place.daemon.pause = asyncio.Event()
            body = count(1, 5, stream=True) if path == CHAT else {"prompt": "count from 1 to 5", "stream": True}
            stream = await place.http.open("POST", path, body)
            seen = []
            while True:
                event = await stream.event()
                assert event is not None
                assert event.startswith("data: {"), "no event without data"
                seen.append(event)
                choice = json.loads(event[6:])["choices"][0]
                if {key: choice.get(key) for key in nothing} == nothing and choice["finish_reason"] is None:
                    break
            place.daemon.pause.set()
            rest = await stream.events()
        choices = [chunk["choices"][0] for chunk in data_of([*seen, *rest])]
        texts = [choice["delta"].get("content", "") if path == CHAT else choice["text"] for choice in choices]
        assert "".join(texts) == "1 2 3 4 5"


async def test_a_client_that_leaves_cancels_its_generation() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        stream = await place.http.open("POST", CHAT, count(1, 900, stream=True))
        await stream.event()
        stream.close()
        await place.quiet()
        assert place.daemon.cancelled == [place.daemon.requests[0].request_id]


async def test_a_client_that_leaves_cancels_its_whole_answer_too() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        _, writer = await asyncio.open_connection("127.0.0.1", place.api.port)
        body = json.dumps(count(1, 900)).encode()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        async with asyncio.timeout(DEADLINE_S):
            while not place.daemon.running:  # noqa: ASYNC110 - a fake's plain field
                await asyncio.sleep(0.005)
        writer.close()
        await place.quiet()
        assert len(place.daemon.cancelled) == 1


async def test_a_stream_that_breaks_ends_with_an_error_object_and_not_with_done() -> None:
    async with served() as place:
        place.daemon.fail_at = 3
        stream = await place.http.open("POST", CHAT, count(1, 9, stream=True))
        events = await stream.events()
        whole = await place.http.ask("POST", CHAT, count(1, 9))
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("recovery_failed", "server_error")
    assert "studio2 did not return" in error["message"]
    assert "data: [DONE]" not in events
    assert (whole.status, whole.code) == (503, "recovery_failed")


async def test_over_the_bound_requests_get_429_and_say_when_to_come_back() -> None:
    async with served(max_generations=2) as place:
        place.daemon.pause = asyncio.Event()
        streams = [await place.http.open("POST", CHAT, count(1, 5, stream=True)) for _ in range(2)]
        refused = await place.http.ask("POST", CHAT, count(1, 5))
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "queue_full", "2")
        place.daemon.pause.set()
        for stream in streams:
            assert (await stream.events())[-1] == "data: [DONE]"
        assert (await place.http.ask("POST", CHAT, count(1, 5))).status == 200


def test_who_is_refused_is_told_when_the_next_answer_ends_as_long_as_they_take() -> None:
    times = AnswerTimes()
    assert times.next_end_s(0.0) is None, "nothing is known yet"
    times.ended(times.begun(0.0), 8.0)
    assert times.next_end_s(10.0) == 8.0, "the next one has not begun"
    for at in (10.0, 12.0):
        times.begun(at)
    assert [times.next_end_s(now) for now in (12.0, 16.0, 17.9, 30.0)] == [6.0, 2.0, 1.0, 10.0]


async def test_an_answer_that_has_ended_tells_the_next_one_how_long_to_wait() -> None:
    async with served(max_generations=1) as place:
        place.daemon.pace_s = 0.4
        assert (await place.http.ask("POST", CHAT, count(1, 6))).status == 200
        stream = await place.http.open("POST", CHAT, count(1, 6, stream=True))
        refused = await place.http.ask("POST", CHAT, count(1, 5))
        assert (refused.status, int(refused.headers["retry-after"]) >= 2) == (429, True)
        await stream.events()


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("logit_bias: token 5000 is not in the model's vocabulary of 1010", "logit_bias"),
        ("chat_template_kwargs.messages: the server says this to the template", "chat_template_kwargs.messages"),
        ("the chat template refuses these messages: no tools", None),
    ],
)
async def test_a_refusal_that_a_rank_found_names_its_field(text: str, param: str | None) -> None:
    async with served() as place:
        place.daemon.refuse = RequestError("bad_request", text)
        answer = await place.http.ask("POST", CHAT, count(1, 5))
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
