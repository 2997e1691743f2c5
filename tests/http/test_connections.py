"""Clients that say nothing, that stop reading or that are too many: proper requests are served."""

from __future__ import annotations

import asyncio
import gc
import socket
import time

import pytest

from exod.http import body, connection
from exod.http.exchange import client_of
from tests import fake_daemon
from tests.http.raw_http import DEADLINE_S
from tests.http.served import CHAT, Place, count, served

pytestmark = pytest.mark.anyio

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SLOW_BODY = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode()


async def connect(place: Place, data: bytes = b"", source: str = "127.0.0.1") -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", place.api.port, local_addr=(source, 0))
    writer.write(data)
    return reader, writer


async def closed(client: Client) -> bytes:
    """What comes until the other end closes."""
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await client[0].read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("data", [b"", b"GET /health HT", SLOW_BODY], ids=["silent", "half a head", "slow body"])
async def test_a_flood_of_connections_that_ask_nothing_leaves_everybody_served(data: bytes) -> None:
    async with served() as place:
        clients = [await connect(place, data) for _ in range(connection.MAX_CONNECTIONS + 8)]
        for _ in range(3):
            assert (await place.http.ask("POST", CHAT, count(1, 3))).status == 200
            assert (await place.http.ask("GET", "/health")).status == 200
        for _, writer in clients:
            writer.close()


@pytest.mark.usefixtures("second_loopback")
async def test_a_flood_from_one_address_takes_no_place_of_another_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_PER_ADDRESS", 4)
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 8)
    async with served() as place:
        waiting = [await connect(place, source="127.0.0.2") for _ in range(4)]
        flood = [await connect(place) for _ in range(40)]
        assert await closed(flood[35]) == b"", "the oldest of the flood gave way to its own"
        for reader, writer in waiting:  # the oldest of all
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for _, writer in (*waiting, *flood):
            writer.close()


async def test_asking_without_pause_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUESTS_PER_S", 20.0)
    monkeypatch.setattr(connection, "BURST_REQUESTS", 5)
    async with served() as place:
        begun = time.monotonic()
        client = await connect(place)
        for _ in range(16):
            client[1].write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                assert (await client[0].readuntil(b"}")).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun > 10 / 20 - 0.1, "five for nothing, the other ten after a wait each"
        client[1].close()


def test_the_pace_is_each_address_s_own_and_nobody_waits_long() -> None:
    pace = connection.RequestPace()
    for _ in range(connection.BURST_REQUESTS):
        pace.count("10.0.0.1", 0.0)
    assert pace.wait_s("10.0.0.1", 0.0) == pytest.approx(0.0, abs=1e-9)
    for _ in range(100_000):
        pace.count("10.0.0.1", 0.0)
    assert pace.wait_s("10.0.0.1", 0.0) == pytest.approx(connection.LONGEST_WAIT_S)
    assert pace.wait_s("10.0.0.2", 0.0) == 0
    assert pace.wait_s("10.0.0.1", connection.LONGEST_WAIT_S) == pytest.approx(0.0, abs=1e-9)
    for number in range(2 * connection.MAX_PACED):
        pace.count(f"address {number}", 0.0)
    assert pace.wait_s("10.0.0.1", 0.0) == 0, "it was forgotten: others are remembered, and only so many"


async def test_whoever_watches_is_answered_where_every_connection_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_PER_ADDRESS", 4)
    monkeypatch.setattr(connection, "RESERVED_CONNECTIONS", 2)
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        busy = [await place.http.open("POST", CHAT, count(1, 9, stream=True)) for _ in range(3)]
        followed = await place.http.open("GET", "/api/events")
        for path in ("/health", "/ready", "/metrics"):
            answer = await place.http.ask("GET", path)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        refused = await place.http.ask("POST", CHAT, count(1, 2))
        assert (refused.status, refused.code) == (503, "unavailable")
        assert "retry-after" in refused.headers
        place.daemon.pause.set()
        for stream in busy:
            assert (await stream.events())[-1] == "data: [DONE]"
        followed.close()


async def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_DEADLINE_S", 0.2)
    async with served() as place:
        assert await closed(await connect(place)) == b""
        late = await closed(await connect(place, b"GET /health HTTP/1.1\r\nhost: local"))
        assert late.startswith(b"HTTP/1.1 408")
        assert b"head_timeout" in late
        dripping = await connect(place, b"GET /health HTTP/1.1\r\n")
        answer = asyncio.create_task(closed(dripping))
        while not answer.done():  # bytes that drip do not move the deadline
            dripping[1].write(b"x")
            await asyncio.sleep(0.05)
        assert (await answer).startswith(b"HTTP/1.1 408")


def sends_all_then_reads(port: int, data: bytes) -> bytes:
    """As most clients do. Raises ConnectionResetError where the server cut it off."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.sendall(data)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


TOO_LARGE = 3 * body.MAX_BODY_BYTES
REFUSED = {
    "a long head": (b"GET / HTTP/1.1\r\nhost: localhost\r\ncookie: " + b"a" * 6_000_000 + b"\r\n\r\n", b" 400 "),
    "many lines": (
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n" + bytes(6_000_000),
        b" 400 ",
    ),
    "a large body": (
        b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        % (CHAT.encode(), TOO_LARGE)
        + bytes(TOO_LARGE),
        b" 413 ",
    ),
    "a page": (
        b"POST %s HTTP/1.1\r\nhost: localhost\r\norigin: null\r\nconnection: close\r\n" % CHAT.encode()
        + b"content-length: 6000000\r\n\r\n"
        + bytes(6_000_000),
        b" 403 ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_client_that_is_refused_while_it_sends_can_read_why(name: str) -> None:
    """A socket that is closed with bytes unread is reset, and the answer is lost with it."""
    data, status = REFUSED[name]
    async with served() as place:
        answer = await asyncio.to_thread(sends_all_then_reads, place.api.port, data)
        assert status in answer.split(b"\r\n")[0]
        assert b'"error"' in answer


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HT"], ids=["invalid", "late"])
async def test_a_refused_client_is_heard_out_for_a_while(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(connection, "HEAD_DEADLINE_S", 0.3)
    async with served() as place:
        _, writer = await connect(place, data)
        async with asyncio.timeout(DEADLINE_S):
            while not writer.is_closing():  # it goes on without reading what it was told
                writer.write(b"x")
                await asyncio.sleep(0.02)


async def test_what_a_refused_client_sends_on_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNREAD_BYTES", 1_000_000)
    async with served() as place:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await asyncio.to_thread(sends_all_then_reads, place.api.port, b"nonsense\r\n\r\n" + bytes(30_000_000))


async def test_the_next_head_on_a_connection_has_the_same_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_DEADLINE_S", 0.3)
    async with served() as place:
        client = await connect(place, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /health HT")
        answer = await closed(client)
        client2 = await connect(place, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            await client2[0].readuntil(b"\r\n\r\n")
        client2[1].write(b"GET /health HT")
        assert b" 408 " in await closed(client2)
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_client_that_stops_reading_is_cut_off_and_its_generation_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "WRITE_DEADLINE_S", 0.5)
    async with served(max_generations=1) as place:
        monkeypatch.setattr(fake_daemon, "answer_to", lambda _request: ["x" * 200_000] * 200)
        stream = await place.http.open("POST", CHAT, count(1, 900, stream=True))
        async with asyncio.timeout(DEADLINE_S):
            while place.api.requests_under_way:  # noqa: ASYNC110 - a plain count
                await asyncio.sleep(0.02)
        await place.quiet()
        assert len(place.daemon.cancelled) == 1
        stream.close()


async def test_a_slow_body_holds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_DEADLINE_S", 0.5)
    async with served(max_generations=1) as place:
        slow = await connect(place, SLOW_BODY)
        await asyncio.sleep(0.05)
        assert (await place.http.ask("POST", CHAT, count(1, 2))).status == 200
        assert b"body_timeout" in await asyncio.wait_for(slow[0].readuntil(b"}}"), DEADLINE_S)
        slow[1].close()


async def test_large_bodies_have_one_budget_and_small_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_ARRIVING_BYTES", 1024 * 1024)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000000\r\n\r\n".encode()
    async with served() as place:
        first = await connect(place, head + b" " * 900_000)
        await asyncio.sleep(0.2)
        second = await connect(place, head + b" " * 900_000)
        answer = await asyncio.wait_for(second[0].readuntil(b"}}"), DEADLINE_S)
        assert b" 503 " in answer
        assert b"unavailable" in answer
        assert (await place.http.ask("POST", CHAT, count(1, 2))).status == 200
        first[1].close()
        second[1].close()


async def test_a_connection_that_ended_leaves_nothing_to_the_collector() -> None:
    """A flood of connections would make it hold the loop."""
    left: list[object] = []
    async with served() as place:
        asked = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for data in (b"", b"GET / HT", b"\x16\x03\x01\r\n\r\n", asked):
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    reader, writer = await connect(place, data)
                    if data == asked:
                        await reader.readuntil(b"\r\n\r\n")
                    writer.close()
                await asyncio.sleep(0.2)
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                left += [one for one in gc.garbage if isinstance(one, connection.HttpConnection)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
    assert left == []


def test_clients_are_told_apart_by_their_key_else_by_their_address() -> None:
    scope = {"client": ("10.0.0.7", 40123)}
    assert client_of(scope, {}) == "10.0.0.7"
    first, second = (client_of(scope, {"authorization": f"Bearer {key}"}) for key in ("one", "two"))
    assert len({first, second, "10.0.0.7"}) == 3
    assert "one" not in first
