"""The endpoints that generate: from a body to a stream of tokens, in any dialect.

Decides how many requests this node takes at once, when a quiet stream is kept alive, and that a client which left
ends its generations. The dialects decide what a body may hold and how an answer looks; the daemon decides where it
is computed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from exod.daemon_api import stream_keepalive
from exod.daemon_api.interface import DaemonCommands, GenerationDelta, GenerationEnd, KeepAlive
from exod.daemon_api.resolve_names import check_model
from exod.errors import ExitCode, RequestError
from exod.http.body import BodyReader
from exod.http.dialects.ask import Ask
from exod.http.dialects.choices import together
from exod.http.dialects.openai_answers import Answer, error_object
from exod.http.exchange import ClientGoneError, Reply, StoppedError, client_of, headers_of, unless_over
from exod.http.metrics import HttpMetrics
from exod.http.running import Running
from exod.model import AnswerPace
from exoengine.protocol import GenerationRequest

MAX_GENERATIONS: Final = 64
"""Requests that may be under way or queued through this node: far more than one pipeline serves well, and so few
that their bodies and connections cost little."""

Deltas = AsyncGenerator[tuple[int, GenerationDelta], None]

_log = structlog.get_logger("http_generation")


class AnswerTimes:
    """When the next answer ends, as long as answers have taken of late from their first token on. Seconds of a
    monotonic clock.
    """

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._numbers = itertools.count()
        self._pace = AnswerPace()

    def begun(self, now: float) -> int:
        """The first token of an answer came; `ended` is given the number."""
        number = next(self._numbers)
        self._begun[number] = now
        return number

    def ended(self, number: int, now: float) -> None:
        self._pace = self._pace.after(now - self._begun.pop(number))

    def next_end_s(self, now: float) -> float | None:
        """None where no answer has ended yet."""
        return self._pace.next_end_s(max((now - begun_at for begun_at in self._begun.values()), default=0.0))

    async def noted(self, deltas: Deltas) -> Deltas:
        """Passes an answer's deltas on. Closing it closes `deltas`."""
        number: int | None = None
        try:
            async with aclosing(deltas):
                async for at, delta in deltas:
                    if number is None and not isinstance(delta, KeepAlive):
                        number = self.begun(time.monotonic())
                    yield at, delta
        finally:
            if number is not None:
                self.ended(number, time.monotonic())


class RequestSlots:
    """Counts the requests under way. Over the bound a request is refused at once, instead of waiting without a
    sign.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0
        self.times = AnswerTimes()
        self.idle = asyncio.Event()
        """Set while none is taken."""
        self.idle.set()
        self.closed = False
        """True once the server is being stopped: then no slot is given."""

    @contextmanager
    def take(self) -> Iterator[None]:
        """Holds one slot. Raises RequestError where there is none."""
        if self.closed:
            raise shutting_down()
        if self.taken >= self._size:
            text = f"{self._size} requests are under way through this node already; ask again"
            raise RequestError("queue_full", text, ExitCode.DEGRADED, self.times.next_end_s(time.monotonic()))
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


class Dialect(msgspec.Struct, frozen=True):
    """How one endpoint reads requests and builds answers."""

    read: Callable[[bytes], Ask]
    answer: Callable[[Ask, str, int], Answer]
    """From a request, the model's name and the time (Unix seconds)."""
    error: Callable[[RequestError], dict[str, Any]] = error_object


class GenerationEndpoint:
    """One of the endpoints that generate, which share `bodies`, `slots` and `running`; `stop` ends what still runs,
    with an error.
    """

    def __init__(
        self,
        commands: DaemonCommands,
        metrics: HttpMetrics,
        bodies: BodyReader,
        slots: RequestSlots,
        stop: asyncio.Event,
        running: Running,
        dialect: Dialect,
    ) -> None:
        self._commands = commands
        self._metrics = metrics
        self._bodies = bodies
        self._slots = slots
        self._stop = stop
        self._running = running
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, self._dialect.error)
        headers = headers_of(scope)
        client_id = headers.get("x-request-id", "")
        try:
            ask = await self._bodies.read(headers, receive, self._dialect.read)
            model = check_model(ask.model, self._commands)
            with self._slots.take():  # after the body, so that a slow one occupies no slot
                answer = self._answer(ask, model, reply, client_id, client_of(scope, headers))
                last = await unless_over(answer, receive, self._stop)
            # Only now, when the slot is free: a client that asks again at once must get it.
            await reply.finish(last)
        except ClientGoneError:
            return
        except StoppedError:
            await reply.fail(shutting_down())
        except RequestError as error:
            self._metrics.refused(error.code)
            await reply.fail(error)
        except Exception as error:  # a fault of this daemon: the client gets one line, the log the traceback
            _log.exception("generation_request_failed")
            text = f"an internal error of exod ({type(error).__name__}); its log has the details"
            await reply.fail(RequestError("internal_error", text, ExitCode.INTERNAL))

    async def _answer(self, ask: Ask, model: str, reply: Reply, client_id: str, client: str) -> bytes:
        """Sends all but the end of the answer, and returns the end."""
        with self._running.hold(client, ask.request_id, client_id):
            return await self._generate(ask, model, reply, client)

    async def _generate(self, ask: Ask, model: str, reply: Reply, client: str) -> bytes:
        answer = self._dialect.answer(ask, model, int(time.time()))
        reply.last_event = answer.failed
        requests = [msgspec.structs.replace(request, client=client) for request in ask.generations]
        sources = [self._source(ask, request) for request in requests]
        async with aclosing(self._slots.times.noted(together(sources))) as deltas:
            if ask.stream:
                return await _stream(deltas, answer, reply)
            return await _collect(deltas, answer)

    def _source(self, ask: Ask, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        deltas = self._metrics.timed(self._commands.generate(request))
        return self._running.followed(deltas, ask.request_id, request.max_tokens)


async def _stream(deltas: Deltas, answer: Answer, reply: Reply) -> bytes:
    """Sends events as the deltas come. The head is sent with the first text or after a while: until then a
    refusal can still be an HTTP status.
    """
    begin_anyway_at = time.monotonic() + stream_keepalive.KEEP_ALIVE_S
    begun = False
    async for at, delta in deltas:
        if isinstance(delta, KeepAlive):
            if begun or time.monotonic() >= begin_anyway_at:
                await reply.event((b"" if begun else answer.begin()) + answer.pause())
                begun = True
            continue
        if isinstance(delta, GenerationEnd):
            _refuse_cancelled(delta)
        data = (b"" if begun else answer.begin()) + answer.take(at, delta)
        begun = True
        if all(choice.end is not None for choice in answer.choices):
            return data + answer.close()
        if data:
            await reply.event(data)
    raise _without_end()


async def _collect(deltas: Deltas, answer: Answer) -> bytes:
    """The whole answer at once."""
    async for at, delta in deltas:
        if isinstance(delta, KeepAlive):
            continue
        if isinstance(delta, GenerationEnd):
            _refuse_cancelled(delta)
        answer.choices[at].take(delta)
        if all(choice.end is not None for choice in answer.choices):
            return msgspec.json.encode(answer.whole())
    raise _without_end()


def _refuse_cancelled(end: GenerationEnd) -> None:
    """An answer that was cancelled elsewhere must not look like a finished one."""
    if end.finish_reason == "cancelled":
        raise RequestError("cancelled", "the generation was cancelled on the node that ran it", ExitCode.DEGRADED)


def _without_end() -> RequestError:
    return RequestError("internal_error", "the generation ended without saying why", ExitCode.INTERNAL)
