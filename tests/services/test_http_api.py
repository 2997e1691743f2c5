"""The HTTP API through real uvicorn and real sockets: answers, streams, refusals, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exod.errors import ConfigError, ExitCode, RequestError, StartError
from exod.model import Event
from exod.reports import Readiness
from exod.services import pacing
from exod.services.http_api import HttpApi
from exod.services.http_exchange import MAX_BODY_BYTES
from tests.fake_daemon import MODEL, STARTED_AT, FakeDaemon
from tests.raw_http import DEADLINE_S, RawHttp, Stream

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
KEY = "0123456789abcdef0123456789abcdef"


def count(first: int, last: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"count from {first} to {last}"}], **more}


class Place:
    """A served API and the fake daemon behind it."""

    def __init__(self, api: HttpApi, daemon: FakeDaemon, running: asyncio.Task[None]) -> None:
        self.api = api
        self.daemon = daemon
        self.running = running
        self.http = RawHttp(api.port)

    async def quiet(self) -> None:
        """Until no stream of the daemon is open any more."""
        async with asyncio.timeout(DEADLINE_S):
            while self.daemon.running:  # noqa: ASYNC110 - a fake's plain field
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(key_file: Path | None = None, max_generations: int = 64) -> AsyncIterator[Place]:
    daemon = FakeDaemon()
    api = HttpApi(daemon, "127.0.0.1", 0, key_file, max_generations=max_generations)
    api.start()
    running = asyncio.create_task(api.run(), name="http api")
    await asyncio.sleep(0)
    place = Place(api, daemon, running)
    try:
        yield place
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await api.stop(0.0)
            await running
        assert daemon.running == 0, "no generation and no follower outlives the server"


def data_of(events: list[str]) -> list[Any]:
    """The JSON of all events but the last, which must say [DONE]."""
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1] if event.startswith("data: ")]


# --- answers ------------------------------------------------------------------------------------------------


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


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "expected float"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"top_p": -0.1}, "top_p", ">= 0"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": 1.5}, "max_tokens", "expected int"),
        ({"seed": 2**70}, "seed", "expected int"),
        ({"n": 2}, "n", "one choice"),
        ({"stop": ""}, "stop", "1 to 256"),
        ({"stop": ["a"] * 17}, "stop", "length <= 16"),
        ({"stop": ["a", 3]}, "stop[1]", "expected str"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "expected int"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "<= 100"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"tools": [{"type": "function"}]}, "tools", "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "only"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": "hi"}, "messages", "expected array"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "robot"),
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
    assert error["code"] in {"invalid_value", "unsupported_value", "unknown_field"}


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [1, -1], [1, "a"], [True], {"a": 1}, None, [[1], [2]], [[]]])
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


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("queue_full", "32 requests wait already"), 503),
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
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
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


async def test_unknown_endpoints_and_methods_are_named_in_openais_shape() -> None:
    async with served() as place:
        lost = await place.http.ask("GET", "/v1/chat/completion")
        wrong = await place.http.ask("GET", CHAT)
        preflight = await place.http.ask("OPTIONS", CHAT, headers={"origin": "http://localhost:3000"})
    assert (lost.status, lost.code) == (404, "not_found")
    assert CHAT in lost.json["error"]["message"]
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert preflight.status == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


async def test_a_fault_of_the_daemon_is_a_500_without_its_story() -> None:
    async with served() as place:
        place.daemon.status = lambda: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        answer = await place.http.ask("GET", "/api/status")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert "Traceback" not in answer.body.decode()
        place.daemon.generate = lambda request: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        answer = await place.http.ask("POST", CHAT, count(1, 2))
        assert (answer.status, answer.code) == (500, "internal_error")


# --- streams that do not go smoothly ------------------------------------------------------------------------


async def test_a_quiet_stream_begins_and_is_kept_alive_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "KEEP_ALIVE_S", 0.02)
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        stream = await place.http.open("POST", CHAT, count(1, 5, stream=True))
        seen = [await stream.event() for _ in range(3)]
        while (event := await stream.event()) != ": keep-alive":
            seen.append(event)
        place.daemon.pause.set()
        rest = await stream.events()
    text = [event for event in [*seen, *rest] if event and not event.startswith(":")]
    contents = [chunk["choices"][0]["delta"].get("content", "") for chunk in data_of(text)]
    assert "".join(contents) == "1 2 3 4 5"


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
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
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


async def test_over_the_bound_requests_get_503_and_say_when_to_come_back() -> None:
    async with served(max_generations=2) as place:
        place.daemon.pause = asyncio.Event()
        streams = [await place.http.open("POST", CHAT, count(1, 5, stream=True)) for _ in range(2)]
        refused = await place.http.ask("POST", CHAT, count(1, 5))
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "queue_full", "2")
        place.daemon.pause.set()
        for stream in streams:
            assert (await stream.events())[-1] == "data: [DONE]"
        assert (await place.http.ask("POST", CHAT, count(1, 5))).status == 200


# --- what else it tells -------------------------------------------------------------------------------------


async def test_models_health_ready_and_status() -> None:
    async with served() as place:
        models = (await place.http.ask("GET", "/v1/models")).json
        assert [model["id"] for model in models["data"]] == [MODEL]
        assert (await place.http.ask("GET", f"/v1/models/{MODEL}")).json["id"] == MODEL
        assert (await place.http.ask("GET", "/health")).json == {"status": "ok"}
        assert (await place.http.ask("GET", "/ready")).json == {"ready": True}
        status = (await place.http.ask("GET", "/api/status")).json
    assert status["schema"] == 1
    assert status["links"][0]["paths"][0]["interface"] == "bridge0"


async def test_metrics_are_prometheus_text_with_the_snapshots_figures() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with served() as place:
        await place.http.ask("POST", CHAT, count(1, 5))
        await place.http.ask("GET", "/no/such/place")
        answer = await place.http.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    values = {name: value for (name, _), value in samples.items()}
    assert values["exod_datagrams_sent_total"] == 1234
    assert values["exod_mesh_epoch"] == 7
    assert values["exod_http_first_token_seconds_count"] == 1
    assert values["exod_http_token_gap_seconds_count"] == 4
    assert samples["exod_health", (("state", "healthy"),)] == 1
    assert samples["exod_http_requests_total", (("code", "404"), ("method", "GET"), ("route", "other"))] == 1
    floors = [value for (name, labels), value in samples.items() if name == "exod_path_rtt_floor_seconds"]
    assert min(floors) == pytest.approx(0.000251)


async def test_events_follow_from_a_given_time() -> None:
    async with served() as place:
        for path, headers in (
            (f"/api/events?since={STARTED_AT}", {}),
            ("/api/events", {"last-event-id": repr(STARTED_AT)}),
        ):
            stream = await place.http.open("GET", path, headers=headers)
            first = await stream.event()
            assert first is not None
            number, data = first.split("\n")
            assert number == f"id: {STARTED_AT + 1!r}"
            assert json.loads(data.removeprefix("data: "))["to"] == "bridge0"
            stream.close()
        await place.quiet()
        stream = await place.http.open("GET", "/api/events?since=1e11")
        await place.daemon.add_event(Event(2e11, "node.down", "studio2", {}))
        assert "node.down" in (await stream.event() or "")
        stream.close()
        wrong = await place.http.ask("GET", "/api/events?since=yesterday")
        assert (wrong.status, wrong.json["error"]["param"]) == (400, "since")


# --- who may ask --------------------------------------------------------------------------------------------


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
        assert strange.status == 200, "whoever has a key may call the host what it likes"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example:52415"}, "host_refused"),
        ({"host": "["}, "host_refused"),
        ({"origin": "https://evil.example"}, "origin_refused"),
        ({"origin": "http://["}, "origin_refused"),
        ({"host": "localhost:52415"}, None),
        ({"host": "studio1"}, None),
        ({"host": "[::1]:52415"}, None),
        ({"host": "host.docker.internal:52415"}, None),
        ({"origin": "http://localhost:3000"}, None),
        ({"origin": "app://obsidian.md"}, None),
    ],
)
async def test_without_keys_web_pages_of_strangers_are_refused(headers: dict[str, str], code: str | None) -> None:
    async with served() as place:
        answer = await place.http.ask("GET", "/v1/models", headers=headers)
    if code is None:
        assert answer.status == 200
    else:
        assert (answer.status, answer.code) == (403, code)


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


# --- beginning and end --------------------------------------------------------------------------------------


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with served() as place:
        with pytest.raises(StartError) as caught:
            HttpApi(FakeDaemon(), "127.0.0.1", place.api.port).start()
    text = str(caught.value)
    assert text.startswith(f"127.0.0.1:{place.api.port}: the HTTP API's port is in use")
    assert "\n" not in text


async def test_an_address_of_no_interface_says_so() -> None:
    with pytest.raises(StartError, match=r"no interface of this host has the address"):
        HttpApi(FakeDaemon(), "192.0.2.1", 0).start()


async def test_it_leaves_the_daemons_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with served() as place:
        await place.http.ask("GET", "/health")
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_stopping_lets_a_generation_end_and_followers_go() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        follower = await place.http.open("GET", "/api/events?since=1e11")
        stream = await place.http.open("POST", CHAT, count(1, 5, stream=True))
        await stream.event()
        stopping = asyncio.create_task(place.api.stop(DEADLINE_S), name="stop")
        assert "shutting_down" in (await follower.events())[-1]
        refused = await place.http.ask("POST", CHAT, count(1, 5))
        assert (refused.status, refused.code) == (503, "shutting_down")
        place.daemon.pause.set()
        assert (await stream.events())[-1] == "data: [DONE]"
        await stopping
        async with asyncio.timeout(DEADLINE_S):
            await place.running
        with pytest.raises(ConnectionRefusedError):
            await place.http.ask("GET", "/health")


async def test_past_the_grace_a_stream_is_told_why_it_ends() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        stream = await place.http.open("POST", CHAT, count(1, 5, stream=True))
        await stream.event()
        await place.api.stop(0.05)
        events = await stream.events()
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert len(place.daemon.cancelled) == 1


async def test_cancelling_the_server_ends_it_and_frees_the_port() -> None:
    daemon = FakeDaemon()
    api = HttpApi(daemon, "127.0.0.1", 0)
    api.start()
    running = asyncio.create_task(api.run(), name="http api")
    await RawHttp(api.port).ask("GET", "/health")
    running.cancel()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait({running})
    assert running.cancelled()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", api.port)) != 0


async def test_the_url_is_one_that_a_client_on_this_host_can_use() -> None:
    for host, expected in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")):
        api = HttpApi(FakeDaemon(), host, 0)
        api.start()
        assert api.url == f"http://{expected}:{api.port}"
        api.close()
