"""A client's request at its node: submitted until it is confirmed, each token once, and an end in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from exod.core.engine.engine_messages import SubmitRefused, SubmitRequest
from exod.daemon_api.interface import GenerationDelta, GenerationEnd, KeepAlive, TextDelta, Usage
from exod.engine_service import request_streams
from exod.engine_service.request_streams import RequestDesk
from exod.errors import RequestError
from exod.model import NodeId
from exoengine.protocol import Finished, GenerationRequest, RequestFailed, TokenOut

ME = NodeId("000000000000000a")
PATIENCE_S = 20.0

pytestmark = pytest.mark.anyio


class Desk:
    """A desk, and what it asked of the cluster."""

    def __init__(self, recovery_deadline_s: float = 60.0) -> None:
        self.submitted: list[SubmitRequest] = []
        self.cancelled: list[str] = []
        self.trouble = ""
        self.desk = RequestDesk(ME, recovery_deadline_s, self._submit, self.cancelled.append, lambda: self.trouble)

    def _submit(self, submit: SubmitRequest) -> bool:
        self.submitted.append(submit)
        return True

    def generate(self, name: str = "r") -> AsyncGenerator[GenerationDelta, None]:
        return self.desk.generate(GenerationRequest(name, 10, prompt="x"))

    def say(self, *indices: int, name: str = "r") -> None:
        for index in indices:
            self.desk.output(name, TokenOut(name, index, 100 + index, f"t{index} "))

    def finish(self, name: str = "r") -> None:
        self.desk.output(name, Finished(name, "stop", "rest", 3, 1, 2, 0.1, 0.2))


async def read(stream: AsyncGenerator[GenerationDelta, None]) -> GenerationDelta:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(stream)


async def begin(desk: Desk, stream: AsyncGenerator[GenerationDelta, None]) -> asyncio.Task[GenerationDelta]:
    """The first delta, being waited for."""
    first = asyncio.ensure_future(read(stream))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(desk.desk)
    return first


async def test_tokens_come_in_order_and_the_end_carries_the_usage() -> None:
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0, 1)
        desk.finish()
        assert await first == TextDelta(0, "t0 ")
        assert await read(stream) == TextDelta(1, "t1 ")
        assert await read(stream) == GenerationEnd("stop", Usage(3, 2, 1, 0.1, 0.2), "rest")
        with pytest.raises(StopAsyncIteration):
            await read(stream)
    assert desk.cancelled == []
    assert len(desk.desk) == 0


async def test_what_is_replayed_after_a_fault_is_not_said_twice_and_nothing_is_skipped() -> None:
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0, 0, 2, 1, 0, 1, 2)
        assert [await first, await read(stream), await read(stream)] == [
            TextDelta(index, f"t{index} ") for index in range(3)
        ]


async def test_a_submission_is_repeated_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_streams, "SUBMIT_INTERVAL_S", 0.0)
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.desk.handle_timer()
        assert len(desk.submitted) >= 2
        desk.desk.queued("r")
        before = len(desk.submitted)
        desk.desk.handle_timer()
        assert len(desk.submitted) == before
        desk.say(0)
        await first


async def test_a_new_coordinator_is_told_what_is_known_of_the_answer_less_its_last_token() -> None:
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0, 1, 2)
        await first
        desk.desk.coordinator_changed()
        assert desk.submitted[-1].tokens == (100, 101)


async def test_an_answer_that_stopped_coming_is_submitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_streams, "CONFIRMED_INTERVAL_S", 0.0)
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0)
        await first
        before = len(desk.submitted)
        desk.desk.handle_timer()
        assert len(desk.submitted) == before + 1


async def test_a_client_that_goes_away_ends_its_generation() -> None:
    desk = Desk()
    stream = desk.generate()
    first = await begin(desk, stream)
    desk.say(0)
    await first
    await stream.aclose()
    assert desk.cancelled == ["r"]
    assert not desk.desk.waits_for("r")
    desk.say(1)  # too late, and harmless


async def test_a_client_that_goes_away_before_the_first_token_ends_its_generation() -> None:
    desk = Desk()
    stream = desk.generate()
    first = await begin(desk, stream)
    first.cancel()
    await asyncio.wait([first])
    await stream.aclose()
    assert desk.cancelled == ["r"]


@pytest.mark.parametrize(
    "answer",
    [
        SubmitRefused("r", "queue_full", "come again", 10.0),
        RequestFailed("r", "context_length_exceeded", "come again"),
    ],
)
async def test_a_refusal_reaches_the_client_and_cancels_nothing(answer: SubmitRefused | RequestFailed) -> None:
    desk = Desk()
    stream = desk.generate()
    first = await begin(desk, stream)
    desk.desk.output("r", answer)
    with pytest.raises(RequestError) as refused:
        await first
    assert (refused.value.code, refused.value.text) == (answer.code, "come again")
    assert desk.cancelled == []
    assert len(desk.desk) == 0


async def test_an_engine_in_trouble_ends_the_stream_at_the_deadline_with_the_reason() -> None:
    desk = Desk(recovery_deadline_s=0.2)
    desk.trouble = "the rank of b is loading"
    said: list[GenerationDelta] = []

    async def read_to_the_end() -> None:
        async for delta in desk.generate():
            said.append(delta)

    with pytest.raises(RequestError) as ended:
        await asyncio.wait_for(read_to_the_end(), PATIENCE_S)
    assert set(said) == {KeepAlive("the rank of b is loading")}
    assert ended.value.code == "recovery_failed"
    assert "within 0.2 s: the rank of b is loading" in ended.value.text
    assert desk.cancelled == ["r"]


async def test_good_moments_without_a_token_do_not_put_the_deadline_off() -> None:
    desk = Desk(recovery_deadline_s=0.2)
    desk.trouble = "a rank crashed"

    async def read_to_the_end() -> None:
        async for _ in desk.generate():
            desk.desk.queued("r")
            desk.trouble = "" if desk.trouble else "a rank crashed"

    with pytest.raises(RequestError):
        await asyncio.wait_for(read_to_the_end(), PATIENCE_S)


async def test_waiting_ones_turn_has_no_deadline() -> None:
    desk = Desk(recovery_deadline_s=0.05)
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.desk.queued("r")
        deltas = [await first, *[await read(stream) for _ in range(10)]]
        assert set(deltas) == {KeepAlive("the request waits its turn")}


async def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_streams, "MAX_BACKLOG", 3)
    desk = Desk()
    stream = desk.generate()
    first = await begin(desk, stream)
    desk.say(*range(10))
    assert desk.cancelled == ["r"]
    with pytest.raises(RequestError, match="the client stopped reading"):
        await first
    await stream.aclose()


async def test_too_many_streams_are_refused() -> None:
    desk = Desk()
    streams = [desk.generate(f"r{number}") for number in range(request_streams.MAX_PENDING)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as refused:
        await read(desk.generate("one more"))
    assert refused.value.code == "queue_full"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(desk.desk) == 0


async def test_another_model_ends_what_was_begun_and_begins_what_was_not() -> None:
    desk = Desk()
    begun, waiting = desk.generate("begun"), desk.generate("waiting")
    first = await begin(desk, begun)
    other = asyncio.ensure_future(read(waiting))
    await asyncio.sleep(0)
    desk.say(0, name="begun")
    await first
    desk.desk.model_changed("other")
    with pytest.raises(RequestError) as ended:
        await read(begun)
    assert ended.value.code == "model_changed"
    desk.desk.handle_timer()
    assert desk.submitted[-1].request.request_id == "waiting"
    desk.say(0, name="waiting")
    assert await other == TextDelta(0, "t0 ")
    await waiting.aclose()


async def test_an_end_before_which_tokens_were_lost_is_not_taken_for_the_end() -> None:
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0)
        assert await first == TextDelta(0, "t0 ")
        desk.desk.output("r", Finished("r", "stop", "", 3, 1, 2, 0.1, 0.2), token_count=3)
        submitted = len(desk.submitted)
        desk.desk.handle_timer()
        assert len(desk.submitted) == submitted + 1, "what is missing is asked for at once"
        desk.say(1, 2)
        desk.desk.output("r", Finished("r", "stop", "", 3, 1, 2, 0.1, 0.2), token_count=3)
        assert [(await read(stream)).text for _ in range(2)] == ["t1 ", "t2 "]  # type: ignore[union-attr]
        assert isinstance(await read(stream), GenerationEnd)


async def test_a_generation_that_others_cancelled_is_asked_for_again() -> None:
    desk = Desk()
    async with aclosing(desk.generate()) as stream:
        first = await begin(desk, stream)
        desk.say(0)
        assert await first == TextDelta(0, "t0 ")
        desk.desk.output("r", Finished("r", "cancelled", "", 3, 1, 2, 0.1, 0.2), token_count=1)
        submitted = len(desk.submitted)
        desk.desk.handle_timer()
        assert len(desk.submitted) == submitted + 1
