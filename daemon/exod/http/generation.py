"""`POST /v1/chat/completions` and `POST /v1/completions`: from a body to a stream of tokens.

Decides how many generations this node takes at once, when a quiet stream gets a keep-alive comment, and that a
client which left ends its generation. What a body may say is in `openai_requests.py`, how an answer looks in
`openai_answers.py`, where it is computed is the daemon's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from exod.daemon_api import stream_keepalive
from exod.daemon_api.interface import DaemonCommands, GenerationDelta, GenerationEnd, KeepAlive, TextDelta
from exod.daemon_api.resolve_names import check_model
from exod.errors import ExitCode, RequestError
from exod.http.body import BodyReader
from exod.http.exchange import ClientGoneError, Reply, StoppedError, headers_of, unless_over
from exod.http.metrics import HttpMetrics
from exod.http.openai_answers import SSE_DONE, AnswerShape, sse, sse_comment
from exod.http.openai_requests import Ask

MAX_GENERATIONS: Final = 64
"""Requests that may be under way or queued through this node: far more than one pipeline serves well, few
enough that their bodies and connections cost little."""

_log = structlog.get_logger("http_generation")


class Slots:
    """Counts what is under way; over the bound, a request is refused at once instead of waiting unseen."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0
        self.idle = asyncio.Event()
        """Set while none is taken."""
        self.idle.set()
        self.closed = False
        """True once the server is being stopped: no more are given out."""

    @contextmanager
    def take(self) -> Iterator[None]:
        """Holds one slot. Raises RequestError where there is none."""
        if self.closed:
            raise shutting_down()
        if self.taken >= self._size:
            text = f"{self._size} requests are under way through this node already; ask again"
            raise RequestError("queue_full", text, ExitCode.DEGRADED)
        self.taken += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.taken -= 1
            if not self.taken:
                self.idle.set()


def shutting_down() -> RequestError:
    return RequestError(
        "shutting_down", "this exod is being stopped; ask again, or ask another node", ExitCode.DEGRADED
    )


class GenerationEndpoint:
    """One of the two endpoints, which share `bodies` and `slots`; `stop` ends what still runs, with an error."""

    def __init__(
        self,
        commands: DaemonCommands,
        metrics: HttpMetrics,
        bodies: BodyReader,
        slots: Slots,
        stop: asyncio.Event,
        read: Callable[[bytes], Ask],
        *,
        chat: bool,
    ) -> None:
        self._commands = commands
        self._metrics = metrics
        self._bodies = bodies
        self._slots = slots
        self._stop = stop
        self._read = read
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send)
        try:
            ask = await self._bodies.read(headers_of(scope), receive, self._read)
            model = check_model(ask.model, self._commands)
            with self._slots.take():  # not before: a slow body holds no slot
                last = await unless_over(self._answer(ask, model, reply), receive, self._stop)
            # Only now that the slot is free: a client which asks again at once must find it.
            await reply.finish(last)
        except ClientGoneError:
            return
        except StoppedError:
            await reply.fail(shutting_down())
        except RequestError as error:
            await reply.fail(error)
        except Exception as error:  # a fault of this daemon: the client gets one line, the log the story
            _log.exception("generation_request_failed")
            text = f"an internal error of exod ({type(error).__name__}); its log has the story"
            await reply.fail(RequestError("internal_error", text, ExitCode.INTERNAL))

    async def _answer(self, ask: Ask, model: str, reply: Reply) -> bytes:
        """Sends what comes before the end, and returns what the answer ends with."""
        request = ask.generation
        shape = AnswerShape(
            chat=self._chat,
            request_id=request.request_id,
            model=model,
            created=int(time.time()),
            logprobs=request.sampling.logprobs >= 0,
        )
        async with aclosing(self._metrics.timed(self._commands.generate(request))) as deltas:
            if ask.stream:
                return await _stream(deltas, shape, reply, include_usage=ask.include_usage)
            return await _collect(deltas, shape)


Deltas = AsyncGenerator[GenerationDelta, None]


async def _stream(deltas: Deltas, shape: AnswerShape, reply: Reply, *, include_usage: bool) -> bytes:
    """Events as the deltas come. Until the first text, or for a while, a refusal can still be a status."""
    begin_anyway_at = time.monotonic() + stream_keepalive.KEEP_ALIVE_S
    opened = False
    async for delta in deltas:
        if isinstance(delta, TextDelta | GenerationEnd) and not opened:
            opened = True
            first = shape.first_chunk()
            if first is not None:
                await reply.event(sse(first))
        match delta:
            case TextDelta():
                if delta.text or delta.logprob is not None:
                    await reply.event(sse(shape.text_chunk(delta)))
            case GenerationEnd():
                _refuse_cancelled(delta)
                usage = sse(shape.usage_chunk(delta.usage)) if include_usage else b""
                return sse(shape.last_chunk(delta.text, delta.finish_reason)) + usage + SSE_DONE
            case KeepAlive(text=text):
                if reply.begun or time.monotonic() >= begin_anyway_at:
                    await reply.event(sse_comment(text or "keep-alive"))
    raise _without_end()


async def _collect(deltas: Deltas, shape: AnswerShape) -> bytes:
    """The whole answer at once."""
    tokens: list[TextDelta] = []
    async for delta in deltas:
        if isinstance(delta, TextDelta):
            tokens.append(delta)
        elif isinstance(delta, GenerationEnd):
            _refuse_cancelled(delta)
            text = "".join(token.text for token in tokens) + delta.text
            return msgspec.json.encode(shape.whole(text, tokens, delta.finish_reason, delta.usage))
    raise _without_end()


def _refuse_cancelled(end: GenerationEnd) -> None:
    """An answer that somebody else cut short must not look like a finished one."""
    if end.finish_reason == "cancelled":
        raise RequestError("cancelled", "the generation was cancelled on the node that ran it", ExitCode.DEGRADED)


def _without_end() -> RequestError:
    return RequestError("internal_error", "the generation ended without saying why", ExitCode.INTERNAL)
