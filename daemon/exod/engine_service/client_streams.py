"""Streams of deltas for the clients of this node: what the engine's core delivers, queued until a client reads it.

Decides nothing but that a client has stopped reading once too much waits for it; the core ends its request then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from exod.core.engine.client_requests import TOO_SLOW, TOO_SLOW_TEXT
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
from exod.errors import ExitCode, RequestError
from exoengine.protocol import Finished, GenerationRequest

MAX_BACKLOG: Final = 65_536
"""Deliveries that wait for a client that reads slowly: a long answer as a whole, a few MB. The last one of a
request is always taken."""

Delivery = DeliverToken | DeliverKeepAlive | DeliverEnd | DeliverError


class _Stream:
    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self.stopped_reading = False
        self.error: DeliverError | None = None
        """Of a client that stopped reading: raised before what waits."""
        self.ended = False
        """Did the core deliver its last?"""


class ClientStreams:
    """`feed` gives an input to the engine's core; False where that failed."""

    def __init__(self, feed: Callable[[ClientAsked | ClientLeft | ClientStoppedReading], bool]) -> None:
        self._feed = feed
        self._streams: dict[str, _Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def deliver(self, delivery: Delivery) -> None:
        stream = self._streams.get(delivery.request_id)
        if stream is None or stream.ended:
            return
        stream.ended = isinstance(delivery, DeliverEnd | DeliverError)
        if stream.stopped_reading:
            self._end_with_error(stream, delivery)
        elif stream.ended or stream.waiting.qsize() < MAX_BACKLOG:
            stream.waiting.put_nowait(delivery)
        else:
            stream.stopped_reading = True
            self._feed(ClientStoppedReading(delivery.request_id))

    def _end_with_error(self, stream: _Stream, delivery: Delivery) -> None:
        """What waits lacks its middle. The answer may end before the core hears of it: that is no end."""
        if isinstance(delivery, DeliverEnd):
            delivery = DeliverError(delivery.request_id, TOO_SLOW, TOO_SLOW_TEXT)
        if isinstance(delivery, DeliverError):
            stream.error = delivery
            stream.waiting.put_nowait(delivery)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """The deltas of one generation; closing it cancels. Raises RequestError where it cannot be served."""
        request_id = request.request_id
        stream = self._streams[request_id] = _Stream()
        try:
            if not self._feed(ClientAsked(request, request.client)):
                raise RequestError("internal_error", "an internal error of exod: see its log", ExitCode.INTERNAL)
            while True:
                delivery = await stream.waiting.get()
                delta = _delta(stream.error or delivery)
                yield delta
                if isinstance(delta, GenerationEnd):
                    return
        finally:
            del self._streams[request_id]
            if not stream.ended:
                self._feed(ClientLeft(request_id))


def _delta(delivery: Delivery) -> GenerationDelta:
    match delivery:
        case DeliverToken(token=token):
            return TextDelta(
                index=token.index,
                text=token.text,
                logprob=token.logprob,
                top_logprobs=token.top_logprobs,
                token=token.token,
                piece=token.piece,
                head=token.head,
                reasoning=token.reasoning,
                calls=token.calls,
            )
        case DeliverKeepAlive(text=text):
            return KeepAlive(text)
        case DeliverEnd(end=end):
            return GenerationEnd(end.reason, _usage(end), end.text, end.reasoning, end.calls, end.stop_string)
        case DeliverError(code=code, text=text, retry_after_s=retry_after_s):
            raise RequestError(code, text, ExitCode.INTERNAL, retry_after_s)


def _usage(end: Finished) -> Usage:
    return Usage(
        prompt_tokens=end.prompt_tokens,
        completion_tokens=end.completion_tokens,
        cached_tokens=end.cached_tokens,
        prefill_s=end.prefill_s,
        decode_s=end.decode_s,
        reasoning_tokens=end.reasoning_tokens,
    )
