"""What the engine's core delivers reaches its client as a stream; the core hears of a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from exod.core.engine.engine_events import (
    ClientAsked,
    ClientLeft,
    ClientStoppedReading,
    DeliverEnd,
    DeliverError,
    DeliverKeepAlive,
    DeliverToken,
)
from exod.daemon_api.interface import GenerationDelta, GenerationEnd, KeepAlive, TextDelta, Usage
from exod.engine_service import client_streams
from exod.engine_service.client_streams import ClientStreams
from exod.errors import RequestError
from exoengine.protocol import Finished, GenerationRequest, TokenOut

PATIENCE_S = 20.0
REQUEST = GenerationRequest("r", 10, prompt="x")

pytestmark = pytest.mark.anyio


class Streams:
    """The streams, and what they fed to a core that is played by the test."""

    def __init__(self, well: bool = True, *, hears_late: bool = False) -> None:
        self.hears_late = hears_late
        """Is what a client does taken after what is being delivered?"""
        self.fed: list[ClientAsked | ClientLeft | ClientStoppedReading] = []
        self._well = well
        self.streams = ClientStreams(self._feed)

    def _feed(self, event: ClientAsked | ClientLeft | ClientStoppedReading) -> bool:
        self.fed.append(event)
        if isinstance(event, ClientStoppedReading) and not self.hears_late:
            self.streams.deliver(DeliverError("r", "client_too_slow", "the client stopped reading"))
        return self._well

    def say(self, *indices: int) -> None:
        for index in indices:
            self.streams.deliver(DeliverToken("r", TokenOut("r", index, 100 + index, f"t{index} ")))

    def finish(self) -> None:
        self.streams.deliver(DeliverEnd("r", Finished("r", "stop", "rest", 3, 1, 2, 0.1, 0.2)))


async def read(stream: AsyncGenerator[GenerationDelta, None]) -> GenerationDelta:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(stream)


async def begin(streams: Streams, stream: AsyncGenerator[GenerationDelta, None]) -> asyncio.Task[GenerationDelta]:
    """The first delta, being waited for."""
    first = asyncio.ensure_future(read(stream))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert streams.fed == [ClientAsked(REQUEST)]
    return first


async def test_tokens_come_in_order_and_the_end_carries_the_usage() -> None:
    streams = Streams()
    async with aclosing(streams.streams.generate(REQUEST)) as stream:
        first = await begin(streams, stream)
        streams.say(0, 1)
        streams.finish()
        assert await first == TextDelta(0, "t0 ", token=100)
        assert await read(stream) == TextDelta(1, "t1 ", token=101)
        assert await read(stream) == GenerationEnd("stop", Usage(3, 2, 1, 0.1, 0.2), "rest")
        with pytest.raises(StopAsyncIteration):
            await read(stream)
    assert streams.fed == [ClientAsked(REQUEST)]
    assert len(streams.streams) == 0


async def test_a_keep_alive_says_what_is_waited_for() -> None:
    streams = Streams()
    async with aclosing(streams.streams.generate(REQUEST)) as stream:
        first = await begin(streams, stream)
        streams.streams.deliver(DeliverKeepAlive("r", "the request waits its turn"))
        assert await first == KeepAlive("the request waits its turn")


async def test_a_client_that_goes_away_is_told() -> None:
    streams = Streams()
    stream = streams.streams.generate(REQUEST)
    first = await begin(streams, stream)
    streams.say(0)
    await first
    await stream.aclose()
    assert streams.fed == [ClientAsked(REQUEST), ClientLeft("r")]
    streams.say(1)  # too late, and harmless


async def test_a_client_that_goes_away_before_the_first_token_is_told() -> None:
    streams = Streams()
    stream = streams.streams.generate(REQUEST)
    first = await begin(streams, stream)
    first.cancel()
    await asyncio.wait([first])
    await stream.aclose()
    assert streams.fed == [ClientAsked(REQUEST), ClientLeft("r")]


async def test_an_error_reaches_the_client_with_the_time_to_come_again() -> None:
    streams = Streams()
    first = await begin(streams, streams.streams.generate(REQUEST))
    streams.streams.deliver(DeliverError("r", "queue_full", "come again", 10.0))
    with pytest.raises(RequestError) as refused:
        await first
    assert (refused.value.code, refused.value.text) == ("queue_full", "come again")
    assert refused.value.retry_after_s == 10.0
    assert streams.fed == [ClientAsked(REQUEST)]
    assert len(streams.streams) == 0


async def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_streams, "MAX_BACKLOG", 3)
    streams = Streams()
    stream = streams.streams.generate(REQUEST)
    first = await begin(streams, stream)
    streams.say(*range(10))
    assert streams.fed == [ClientAsked(REQUEST), ClientStoppedReading("r")]
    with pytest.raises(RequestError, match="the client stopped reading"):
        await first
    await stream.aclose()
    assert streams.fed == [ClientAsked(REQUEST), ClientStoppedReading("r")]


async def test_the_end_is_taken_however_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_streams, "MAX_BACKLOG", 2)
    streams = Streams()
    async with aclosing(streams.streams.generate(REQUEST)) as stream:
        first = await begin(streams, stream)
        streams.say(0, 1)
        streams.finish()
        deltas = [await first, await read(stream), await read(stream)]
        assert isinstance(deltas[-1], GenerationEnd)


async def test_a_request_that_the_core_could_not_take_is_an_error() -> None:
    stream = Streams(well=False).streams.generate(REQUEST)
    with pytest.raises(RequestError) as failed:
        await read(stream)
    assert failed.value.code == "internal_error"


async def test_an_answer_whose_middle_was_not_kept_never_looks_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several outputs are delivered in one turn: its end may come before the core hears that nobody reads."""
    monkeypatch.setattr(client_streams, "MAX_BACKLOG", 3)
    streams = Streams(hears_late=True)
    async with aclosing(streams.streams.generate(REQUEST)) as stream:
        first = await begin(streams, stream)
        streams.say(0, 1, 2, 3, 4)
        streams.finish()
        with pytest.raises(RequestError, match="stopped reading") as refused:
            await first
    assert refused.value.code == "client_too_slow"
