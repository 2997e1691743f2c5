"""The embedded broker: amqtt's faults are corrected, and it is bounded."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiomqtt
import pytest

from exod.errors import StartError
from exod.mqtt import embedded_broker_amqtt
from exod.mqtt.broker_probe import Listener, who_listens
from exod.mqtt.embedded_broker import CORRECTED_VERSION, EmbeddedBroker, check_version
from tests.conftest import missing
from tests.mqtt.mqtt_parts import RawClient, free_port, subscriber


@asynccontextmanager
async def embedded() -> AsyncGenerator[int, None]:
    port = free_port()
    broker = await EmbeddedBroker.start(port)
    try:
        yield port
    finally:
        await broker.stop()


async def publish(port: int, topic: str, payload: str, retain: bool = True) -> None:
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.publish(topic, payload, qos=1, retain=retain)


# --- retained messages --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_subscriber_to_one_topic_gets_that_topic_alone() -> None:
    """amqtt sends a new client the retained messages of every filter that anybody has subscribed to."""
    async with embedded() as port:
        for topic in ("one/state", "two/state", "three/state"):
            await publish(port, topic, topic)
        async with subscriber(port, "#") as everything, subscriber(port, "one/state") as one:
            await one.saw("one/state", b"one/state")
            await everything.saw("three/state", b"three/state")
            await publish(port, "one/state", "new", retain=False)
            await one.saw("one/state", b"new")
            assert {topic for topic, _, _ in one.messages} == {"one/state"}
            assert set(everything.last) == {"one/state", "two/state", "three/state"}


@pytest.mark.anyio
async def test_mosquitto_sub_gets_its_one_topic_alone() -> None:
    program = shutil.which("mosquitto_sub")
    if program is None:
        missing("mosquitto_sub is not installed")
    assert program is not None
    async with embedded() as port:
        await publish(port, "one/state", "1")
        await publish(port, "two/state", "2")
        async with subscriber(port, "#"):
            client = await asyncio.create_subprocess_exec(
                *(program, "-p", str(port), "-t", "one/state", "-v", "-W", "1"), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await client.communicate()
    assert output.decode().splitlines() == ["one/state 1"]


@pytest.mark.anyio
async def test_retained_messages_are_marked_replaced_and_cleared() -> None:
    async with embedded() as port:
        await publish(port, "a/state", "old")
        await publish(port, "a/state", "new")
        async with subscriber(port) as found:
            await found.saw("a/state", b"new")
            assert found.messages == [("a/state", b"new", True)]
        await publish(port, "a/state", "")
        await publish(port, "b/state", "b")
        async with subscriber(port) as found:
            await found.saw("b/state", b"b")
            assert "a/state" not in found.last


# --- keepalive ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_silent_clients_will_fires_after_one_and_a_half_keepalives() -> None:
    async with embedded() as port, subscriber(port) as found:
        silent = await RawClient.connect(port, "silent", keepalive_s=2, will_topic="silent/will", retain=True)
        started = time.monotonic()
        await asyncio.sleep(2.5)
        assert "silent/will" not in found.last, "not before 1.5 × keepalive"
        await found.saw("silent/will", b"gone")
        assert time.monotonic() - started < 8.0
        await silent.closed()
        silent.close()
        async with subscriber(port, "silent/will") as late:
            await late.saw("silent/will", b"gone")


@pytest.mark.anyio
async def test_an_idle_client_that_pings_as_late_as_its_keepalive_stays() -> None:
    async with embedded() as port, subscriber(port) as found:
        idle = await RawClient.connect(port, "idle", keepalive_s=1, will_topic="idle/will")
        for _ in range(4):
            await asyncio.sleep(1.05)
            await idle.ping()
        assert "idle/will" not in found.last
        idle.close()
        await found.saw("idle/will", b"gone")


@pytest.mark.anyio
async def test_an_idle_library_client_stays_and_one_without_keepalive_too() -> None:
    async with (
        embedded() as port,
        subscriber(port, keepalive=2) as library,
        subscriber(port, keepalive=0) as unlimited,
    ):
        await asyncio.sleep(4.5)
        await publish(port, "still/there", "yes")
        await library.saw("still/there", b"yes")
        await unlimited.saw("still/there", b"yes")


@pytest.mark.anyio
async def test_a_client_that_stops_inside_a_packet_is_silent_too() -> None:
    async with embedded() as port, subscriber(port) as found:
        stuck = await RawClient.connect(port, "stuck", keepalive_s=1, will_topic="stuck/will")
        stuck.send(b"\x30\x7f\x00\x05half")
        await found.saw("stuck/will", b"gone")
        await stuck.closed()
        stuck.close()


@pytest.mark.anyio
async def test_a_clean_disconnect_fires_no_will() -> None:
    async with embedded() as port, subscriber(port) as found:
        client = await RawClient.connect(port, "clean", keepalive_s=1, will_topic="clean/will")
        client.send(b"\xe0\x00")
        client.close()
        await asyncio.sleep(2.0)
        await publish(port, "after", "it")
        await found.saw("after", b"it")
        assert "clean/will" not in found.last


@pytest.mark.anyio
async def test_a_client_id_that_connects_again_takes_over_and_the_old_will_comes_before() -> None:
    async with embedded() as port, subscriber(port) as found:
        old = await RawClient.connect(port, "same", keepalive_s=60, will_topic="node", retain=True)
        async with aiomqtt.Client("127.0.0.1", port, identifier="same") as new:
            await new.publish("node", "online", qos=1, retain=True)
            await found.saw("node", b"online")
            await old.closed()
            assert [payload for _, payload, _ in found.messages] == [b"gone", b"online"]
        old.close()


# --- bounds, versions, ends ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_connections_that_say_nothing_or_nonsense_change_nothing() -> None:
    async with embedded() as port, subscriber(port) as found:
        halves = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\x7f" + b"x" * 100, b"\x00" * 50):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            halves.append((_, writer))
        await publish(port, "still", "there")
        await found.saw("still", b"there")
        for _, writer in halves:
            writer.close()


@pytest.mark.anyio
async def test_a_subscriber_that_never_reads_is_cut_and_costs_no_memory() -> None:
    async with embedded() as port:
        stuck = await RawClient.connect(port, "stuck", keepalive_s=0, will_topic="stuck/will")
        stuck.send(b"\x82\x06\x00\x01\x00\x01#\x00")
        await asyncio.sleep(0.1)
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with subscriber(port, "stuck/will") as found, aiomqtt.Client("127.0.0.1", port) as client:
            for _ in range(60):
                if "stuck/will" in found.last:
                    break
                for _ in range(40):
                    await client.publish("flood", b"x" * 60_000, qos=0)
                await asyncio.sleep(0.05)
            await found.saw("stuck/will", b"gone")
        stuck.close()


def test_another_version_of_amqtt_is_refused_with_a_clear_error() -> None:
    check_version(CORRECTED_VERSION)
    with pytest.raises(StartError, match=r"amqtt 0\.13\.0 is installed and exod knows how to correct 0\.12\.1"):
        check_version("0.13.0")


@pytest.mark.anyio
async def test_a_port_in_use_is_a_clear_error() -> None:
    async with embedded() as port:
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
            await EmbeddedBroker.start(port)


@pytest.mark.anyio
async def test_it_ends_within_two_seconds_with_all_kinds_of_clients_connected() -> None:
    port = free_port()
    broker = await EmbeddedBroker.start(port)
    _, half = await asyncio.open_connection("127.0.0.1", port)
    silent = await RawClient.connect(port, "silent", keepalive_s=60, will_topic="silent/will")
    async with subscriber(port):
        started = time.monotonic()
        await broker.stop()
        assert time.monotonic() - started < 5.0
    assert await who_listens("127.0.0.1", port) is Listener.NOBODY
    half.close()
    silent.close()


@pytest.mark.anyio
async def test_what_the_broker_keeps_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker_amqtt, "MAX_RETAINED_BYTES", 100_000)
    async with embedded() as port:
        for number in range(20):
            await publish(port, f"kept/{number}", "x" * 9_000)
        await publish(port, "kept/0", "")
        await publish(port, "kept/last", "y" * 5_000)
        async with subscriber(port, "kept/#") as everything:
            await everything.saw("kept/last", b"y" * 5_000)
        assert 5 <= len(everything.last) <= 11
        assert "kept/0" not in everything.last
        assert "kept/1" in everything.last


@pytest.mark.anyio
async def test_nothing_is_kept_for_a_client_that_is_away() -> None:
    async with embedded() as port:
        options = {"identifier": "away", "username": "someone", "password": "x", "clean_session": False}
        async with aiomqtt.Client("127.0.0.1", port, **options) as client:  # type: ignore[arg-type]
            await client.subscribe("news/#", qos=1)
        await publish(port, "news/1", "x" * 1000, retain=False)
        async with aiomqtt.Client("127.0.0.1", port, **options) as client:  # type: ignore[arg-type]
            await client.subscribe("news/#", qos=1)
            await publish(port, "news/2", "now", retain=False)
            async with asyncio.timeout(20):
                message = await anext(aiter(client.messages))
            assert str(message.topic) == "news/2"


def subscribe(names: list[bytes], packet_id: int = 1) -> bytes:
    body = packet_id.to_bytes(2, "big") + b"".join(len(name).to_bytes(2, "big") + name + b"\x00" for name in names)
    return b"\x82" + remaining(len(body)) + body


def unsubscribe(names: list[bytes], packet_id: int = 2) -> bytes:
    body = packet_id.to_bytes(2, "big") + b"".join(len(name).to_bytes(2, "big") + name for name in names)
    return b"\xa2" + remaining(len(body)) + body


def remaining(length: int) -> bytes:
    """A packet's length, seven bits a byte (MQTT 3.1.1, 2.2.3)."""
    found = bytearray()
    while length >= 128:
        found.append(length % 128 | 128)
        length //= 128
    return bytes([*found, length])


async def codes(client: RawClient, count: int) -> bytes:
    """Of the next SUBACK."""
    async with asyncio.timeout(20):
        head = remaining(count + 2)
        assert await client.reader.readexactly(1 + len(head)) == b"\x90" + head
        return (await client.reader.readexactly(count + 2))[2:]


@pytest.mark.anyio
async def test_subscriptions_are_bounded_and_what_is_unsubscribed_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded_broker_amqtt, "MAX_FILTERS", 10)
    monkeypatch.setattr(embedded_broker_amqtt, "MAX_ALL_FILTERS", 15)
    port = free_port()
    broker = await EmbeddedBroker.start(port)
    try:
        first, second = [await RawClient.connect(port, name, keepalive_s=0, will_topic="w") for name in ("a", "b")]
        first.send(subscribe([b"n/%d" % number for number in range(12)] + [b"n/0", b"x" * 600, b"a#b"]))
        assert await codes(first, 15) == bytes(10) + b"\x80\x80" + b"\x00" + b"\x80\x80"
        second.send(subscribe([b"m/%d" % number for number in range(7)]))
        assert await codes(second, 7) == bytes(5) + b"\x80\x80"
        first.send(unsubscribe([b"n/%d" % number for number in range(5)]))
        async with asyncio.timeout(20):
            assert await first.reader.readexactly(4) == b"\xb0\x02\x00\x02"
        assert len(broker._broker.subscriptions) == 10, "no name is kept that nobody has"
        first.send(subscribe([b"o/%d" % number for number in range(7)]))
        assert await codes(first, 7) == bytes(5) + b"\x80\x80"
        first.close()
        async with asyncio.timeout(20):
            while len(broker._broker.subscriptions) > 5:  # noqa: ASYNC110 - a plain count
                await asyncio.sleep(0.02)
        second.send(subscribe([b"p/%d" % number for number in range(6)]))
        assert await codes(second, 6) == bytes(5) + b"\x80"
        second.close()
    finally:
        await broker.stop()


@pytest.mark.anyio
async def test_a_packet_full_of_filters_does_not_hold_the_loop() -> None:
    async with embedded() as port:
        async with aiomqtt.Client("127.0.0.1", port) as publisher:
            for number in range(400):
                await publisher.publish(f"kept/{number}", "x", retain=True)
            await publisher.publish("kept/last", "x", qos=1, retain=True)
        client = await RawClient.connect(port, "many", keepalive_s=0, will_topic="w")
        worst, count = 0.0, 20_000
        client.send(subscribe([b"+/+/%d" % number for number in range(count)]))
        acknowledged = asyncio.create_task(codes(client, count))
        while not acknowledged.done():
            before = time.process_time()
            await asyncio.sleep(0)
            worst = max(worst, time.process_time() - before)
        assert (await acknowledged).count(0) == embedded_broker_amqtt.MAX_FILTERS
        client.close()
        assert worst < 0.15, "of processor time in one turn"
