"""Nothing that a client sends holds the event loop: peers would take this node for silent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.types import Message, Receive

from exod.daemon_api.loop_turns import LoopTurns
from exod.errors import RequestError
from exod.http import body
from exod.http.dialects.ask import Ask
from exod.http.dialects.openai_requests import read_chat, read_completion
from tests.http.served import CHAT, served
from tests.http.worst_bodies import BURSTS, ROOM, WORST_BODIES

pytestmark = pytest.mark.anyio

LONGEST_LAG_S = 0.05
TRIES = 6
"""A busy machine delays the loop, too, but not each time."""


def waited_for_a_core_s() -> float:
    """For how long threads of this process could have run and got no core, so far: other processes' doing."""
    waited_ns = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):  # Linux alone
        with contextlib.suppress(OSError):
            waited_ns += int(task.read_text().split()[1])
    return waited_ns / 1e9


async def lateness() -> float:
    """How late a timer was, less what other processes took."""
    due, waited_s = time.monotonic() + 0.005, waited_for_a_core_s()
    await asyncio.sleep(0.005)
    return max(0.0, time.monotonic() - due - (waited_for_a_core_s() - waited_s))


@asynccontextmanager
async def lag_meter() -> AsyncIterator[Callable[[], float]]:
    """Yields what tells the worst lateness of a timer so far, as the daemon's own figure does, less what other
    processes took.
    """
    worst = 0.0

    async def measure() -> None:
        nonlocal worst
        while True:
            worst = max(worst, await lateness())

    measuring = asyncio.create_task(measure())
    await asyncio.sleep(0.02)
    worst = 0.0
    try:
        yield lambda: worst
    finally:
        measuring.cancel()


def send(port: int, path: str, data: bytes, framing: bytes) -> bytes:
    """One request from another thread; returns the answer's first line."""
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n%s\r\n\r\n" % (path.encode(), framing)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(head)
            for start in range(0, len(data), 65536):
                connection.sendall(data[start : start + 65536])
        except OSError:
            pass  # refused before the end
        try:
            return connection.recv(65536).split(b"\r\n")[0]
        except ConnectionResetError:
            return b""


async def worst_lag(port: int, path: str, data: bytes, framing: bytes) -> tuple[float, bytes]:
    async with lag_meter() as worst:
        answer = await asyncio.to_thread(send, port, path, data, framing)
        return worst(), answer


async def assert_loop_free(path: str, data: bytes, framing: bytes | None = None) -> bytes:
    framing = framing or b"content-length: %d" % len(data)
    async with served() as place:
        lags = []
        for _ in range(TRIES):
            lag, answer = await worst_lag(place.api.port, path, data, framing)
            lags.append(lag)
            if lag < LONGEST_LAG_S:
                return answer
    raise AssertionError(f"the loop was held for {min(lags):.3f} s at the least: {lags}")


@pytest.mark.parametrize("name", WORST_BODIES)
async def test_no_body_holds_the_loop(name: str) -> None:
    path = CHAT if b'"messages"' in WORST_BODIES[name][:100] else "/v1/completions"
    answer = await assert_loop_free(path, WORST_BODIES[name])
    assert b" 500 " not in answer


async def test_a_body_in_a_million_pieces_is_refused() -> None:
    pieces = b"1\r\n \r\n" * 1_000_000
    assert b" 400 " in await assert_loop_free(CHAT, pieces, b"transfer-encoding: chunked")


def with_schema(schema: object) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return json.dumps({"messages": [{"role": "user", "content": "x"}], "response_format": form}).encode()


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "pattern": "[a-z]{1,50}"} for n in range(900)},
        },
        {"allOf": [{"type": "object", "properties": {f"p{n}": {"type": "string"}}} for n in range(600)]},
        {"enum": [f"x{n}" for n in range(3000)]},
    ],
    ids=["a thousand fields", "many parts", "many values"],
)
async def test_no_schema_holds_the_loop(schema: object) -> None:
    assert b" 500 " not in await assert_loop_free(CHAT, with_schema(schema))


async def test_a_schema_whose_name_is_hidden_by_escapes_does_not_hold_the_loop_either() -> None:
    fields = {f"p{n}": {"type": "string", "pattern": "[a-z]{1,50}"} for n in range(900)}
    data = with_schema({"type": "object", "properties": fields}).replace(b'"schema"', rb'"\u0073chema"')
    assert b" 200 " in await assert_loop_free(CHAT, data)


async def test_a_schema_without_end_holds_neither_the_loop_nor_other_clients() -> None:
    """It took seven minutes, and all bodies that are decoded in the thread waited behind it."""
    patterns = [{"type": "string", "pattern": f"^.*a.{{{n}}}b"} for n in range(1, 30)]
    long = {"messages": [{"role": "user", "content": "x" * (2 * body.LIGHT_BYTES)}]}
    async with served() as place, lag_meter() as worst:
        endless = asyncio.create_task(place.http.ask("POST", CHAT, with_schema({"allOf": patterns})))
        other = await place.http.ask("POST", CHAT, long)
        assert not endless.done()
        refused = await endless
        after = await place.http.ask("POST", CHAT, with_schema({"type": "object"}))
        lag = worst()
    assert (refused.status, refused.code) == (400, "bad_grammar")
    assert refused.json["error"]["param"] == "response_format.json_schema.schema"
    assert "to compile" in refused.json["error"]["message"]
    assert (other.status, after.status) == (200, 200)
    assert lag < 1.0


@pytest.mark.parametrize("name", BURSTS)
async def test_no_burst_on_a_hundred_connections_holds_the_loop(name: str) -> None:
    """All of it arrives in one turn of the loop."""
    lags = []
    async with served() as place:
        for _ in range(TRIES):
            lags.append(await burst_lag(place.api.port, BURSTS[name]))
            if lags[-1] < LONGEST_LAG_S:
                return
    raise AssertionError(f"the loop was held for {min(lags):.3f} s at the least: {lags}")


async def burst_lag(port: int, data: bytes) -> float:
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(100)]
    try:
        await asyncio.sleep(0.2)  # until they are accepted
        for connection in connections:
            connection.sendall(data)  # no turn of the loop meanwhile
        answered = asyncio.gather(*(asyncio.to_thread(connection.recv, 65536) for connection in connections))
        worst = 0.0
        while not answered.done():
            worst = max(worst, await lateness())
        await answered
        return worst
    finally:
        for connection in connections:
            connection.close()


async def test_a_large_body_is_decoded_without_the_collector() -> None:
    collected: list[str] = []

    def decode(data: bytes) -> Ask:
        before = len(collected)
        ask = read_chat(data)
        assert len(collected) == before
        return ask

    def note(phase: str, _: object) -> None:
        collected.append(phase)

    turns = b",".join([b'{"role":"user","content":"x"}'] * 20_000)
    reader = body.BodyReader(LoopTurns())
    gc.callbacks.append(note)
    try:
        await reader.read({}, parts(b'{"messages":[' + turns + b"]}"), decode)
    finally:
        gc.callbacks.remove(note)
        reader.close()
    assert gc.isenabled()


def parts(data: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": data}

    return receive


async def test_there_are_twenty() -> None:
    assert len(WORST_BODIES) == 20
    assert all(len(data) <= body.MAX_BODY_BYTES for data in WORST_BODIES.values())


async def test_a_long_conversation_and_a_long_context_are_not_too_heavy() -> None:
    turns = b",".join([b'{"role":"user","content":"a, [b], {c}: \\"d\\" \\\\"}'] * 10_000)
    body.check_weight(b'{"messages":[' + turns + b"]}")
    body.check_weight(b'{"prompt":[' + b",".join([b"50000"] * 1_000_000) + b"]}")
    body.check_weight(b'{"prompt":"' + b'\\"[,{,' * (ROOM // 7) + b'"}')


@pytest.mark.parametrize(
    ("piece", "count", "said"),
    [
        (b'"a"', body.MAX_TEXTS, "texts"),
        (b"{}", body.MAX_CONTAINERS, "lists and objects"),
        (b"1", body.MAX_VALUES, "values"),
    ],
    ids=["texts", "objects", "values"],
)
async def test_one_value_too_many_is_refused_before_the_body_is_decoded(
    piece: bytes, count: int, said: str
) -> None:
    """It is refused by its count, whatever its fields mean and however quickly it could be decoded."""
    decoded: list[int] = []
    reader = body.BodyReader(LoopTurns())
    outside = {"texts": 0, "values": 0}.get(said, 1)  # the list around them counts as a list
    try:
        for number in (count - outside, count - outside + 1):
            data = b"[" + b",".join([piece] * number) + b"]"
            if number + outside > count:
                with pytest.raises(RequestError, match=f"may hold {count} {said}"):
                    await reader.read({}, parts(data), lambda data: decoded.append(len(data)))
            else:
                await reader.read({}, parts(data), lambda data: decoded.append(len(data)))
    finally:
        reader.close()
    assert len(decoded) == 1


async def test_what_is_said_of_a_field_is_one_line() -> None:
    with pytest.raises(RequestError) as caught:
        read_completion(b'{"prompt":"a","temperatu\\n_re":1}')
    assert "\n" not in caught.value.text
