"""One HTTP exchange below the routes: send an answer or a stream, notice a client that left.

Decides which heads are unambiguous, and how an error looks: a status and OpenAI's error object before an answer has
begun, a last event with the same object after that.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exod.errors import RequestError
from exod.http.dialects.anthropic import anthropic_error
from exod.http.dialects.openai_answers import error_object, sse, status_of
from exod.http.guard import key_of

RETRY_AFTER_S: Final = 2
"""Most causes of a 503, such as a mesh that forms, last a second or two; the others name a time of their own."""

ONCE: Final = (
    b"host", b"origin", b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"sec-fetch-site",
)  # fmt: skip
"""Headers that decide who may ask, or how a body is read: of two, it is not defined which one counts."""

NOT_AGAIN: Final = frozenset({"cancelled", "request_given_up"})
NO_RETRY: Final = {"x-should-retry": "false"}
"""OpenAI's and Anthropic's clients ask again by themselves after a 500 or 503, but for this header: what was
cancelled would begin anew, and what two processes died of would have more."""

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed the connection."""


class StoppedError(Exception):
    """The server is being stopped while work is under way."""


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_shape(path: str) -> Callable[[RequestError], dict[str, Any]]:
    """The error object that clients of this path read: Anthropic's beneath `/v1/messages`, else OpenAI's."""
    return anthropic_error if f"{path}/".startswith("/v1/messages/") else error_object


def error_response(error: RequestError, shape: Callable[[RequestError], dict[str, Any]] = error_object) -> Response:
    status = status_of(error)
    retry_after_s = RETRY_AFTER_S if error.retry_after_s is None else math.ceil(error.retry_after_s)
    headers = {"retry-after": str(retry_after_s)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.code in NOT_AGAIN:
        headers = NO_RETRY
    return JsonResponse(shape(error), status, headers)


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case, as ASGI has them; of a repeated header the last counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def client_of(scope: Scope, headers: dict[str, str]) -> str:
    """The client's name in the queue, for fair turns: one for each key (which cannot be found from it), or else for
    each address.
    """
    key = key_of(headers)
    if key:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return str((scope.get("client") or ("",))[0])


def check_framing(scope: Scope) -> None:
    """Raises RequestError for an ambiguous head: a proxy before this server may have read another request in it
    (RFC 9112, 6.1).
    """
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise RequestError("invalid_request", "a request has a Content-Length or a Transfer-Encoding, not both")
    for name in ONCE:
        if names.count(name) > 1:
            raise RequestError("invalid_request", f"the header {name.decode()} may be sent once")


async def unless_over(work: Coroutine[Any, Any, Result], receive: Receive, stop: asyncio.Event) -> Result:
    """The result of `work`; cancels it and raises ClientGoneError or StoppedError where one of these comes first.

    To be called only after the body was read: the next message that is received is then the client's disconnect.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work, name="http work")
    leaving = asyncio.create_task(gone(), name="http client's end")
    stopping = asyncio.create_task(stop.wait(), name="http server's end")
    tasks: set[asyncio.Task[Any]] = {working, leaving, stopping}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError if leaving.done() else StoppedError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Reply:
    """The sending half: an event stream that `begin` opens, or one answer, or an error in the shape that fits."""

    def __init__(self, send: Send, error_shape: Callable[[RequestError], dict[str, Any]] = error_object) -> None:
        self._send = send
        self._error_shape = error_shape
        self.begun = False
        self.last_event: Callable[[RequestError], bytes] = lambda error: sse(error_shape(error))
        """How an error ends a stream that has begun."""

    async def begin(self) -> None:
        """Sends the head of an event stream; after it, errors can only be events."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.begun = True

    async def event(self, data: bytes) -> None:
        if not self.begun:
            await self.begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, last: bytes) -> None:
        """Sends `last`: the last events of a stream that has begun, or else the whole answer as JSON."""
        if not self.begun:
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(last)).encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": fields})
            self.begun = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def fail(self, error: RequestError) -> None:
        """A status with the error object, or, in a stream that has begun, the error object as its last event."""
        if self.begun:
            await self.finish(self.last_event(error))
            return
        response = error_response(error, self._error_shape)
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body, "more_body": False})
