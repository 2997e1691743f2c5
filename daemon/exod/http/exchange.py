"""One HTTP exchange below the routes: read a bounded body, send an answer or a stream, notice a client that left.

Decides how much a client may send, how long it may take, and how an error looks before and after an answer has
begun (a status and OpenAI's error object; a last event that holds the same object).
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exod.errors import RequestError
from exod.http.openai_answers import error_object, sse, status_of

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""A context of 1,000,000 tokens in plain text is about 4 MiB."""

BODY_DEADLINE_S: Final = 30.0
"""The largest body passes in this time at 0.3 MB/s; a slower client holds a connection for nothing."""

RETRY_AFTER_S: Final = 2
"""Most of what answers 503 (a mesh that forms, a full queue) is over after a second or two."""

ONCE: Final = (b"host", b"origin", b"authorization", b"content-type", b"content-encoding", b"sec-fetch-site")
"""Headers that decide who may ask, or how a body is read: with two of them, the one that counts is a guess."""

JSON_TYPE: Final = re.compile(r"application/([a-z0-9.+-]+\+)?json")

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client closed the connection: nobody is left to answer."""


class StoppedError(Exception):
    """The server's end came while work was under way."""


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_response(error: RequestError) -> Response:
    status = status_of(error)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JsonResponse(error_object(error), status, headers)


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case, as ASGI has them; of a repeated header the last counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def check_framing(scope: Scope) -> None:
    """Raises RequestError for a head that two readers could understand in two ways: what is between the client and
    this server may have seen another request than this one (RFC 9112, 6.1).
    """
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise RequestError("invalid_request", "a request has a Content-Length or a Transfer-Encoding, not both")
    for name in ONCE:
        if names.count(name) > 1:
            raise RequestError("invalid_request", f"the header {name.decode()} may be sent once")


def check_body_type(headers: dict[str, str]) -> None:
    """Raises RequestError for a body that is not plain JSON. A form's or a text's type is what a page of any site
    may send without asking; a client that names none is no browser, which always names one or its origin.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        text = f"a body is sent as it is, not compressed ('{encoding[:40]}')"
        raise RequestError("unsupported_media_type", text)
    if "content-type" not in headers:
        return
    kind, *parameters = (part.strip().lower() for part in headers["content-type"].split(";"))
    charsets = [part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")]
    if not JSON_TYPE.fullmatch(kind) or any(charset not in ("utf-8", "utf8", "us-ascii") for charset in charsets):
        text = f"the body's Content-Type is application/json, in UTF-8; not '{headers['content-type'][:80]}'"
        raise RequestError("unsupported_media_type", text)


async def read_body(headers: dict[str, str], receive: Receive) -> bytes:
    """The whole body, without a byte order mark. Raises RequestError where it is of another type, too large or too
    slow, ClientGoneError where it is cut.
    """
    check_body_type(headers)
    too_large = RequestError("body_too_large", f"the body may have {MAX_BODY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body.removeprefix(codecs.BOM_UTF8))
    except TimeoutError:
        text = f"the body did not arrive within {BODY_DEADLINE_S:g} s"
        raise RequestError("body_timeout", text) from None


async def unless_over(work: Coroutine[Any, Any, Result], receive: Receive, stop: asyncio.Event) -> Result:
    """The result of `work`; cancels it and raises ClientGoneError or StoppedError where one of these comes first.

    Only to be called once the body was read: the next thing to be received is then the client's end.
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
    """The sending half: an event stream that `begin` opens, or one error, in the shape that still fits."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

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
        """The last events of a stream that has begun; else `last` is the whole answer, as JSON."""
        if not self.begun:
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(last)).encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": fields})
            self.begun = True
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def fail(self, error: RequestError) -> None:
        """A status with the error object, or, in a stream that has begun, the error object as its last event."""
        if self.begun:
            await self.finish(sse(error_object(error)))
            return
        response = error_response(error)
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body, "more_body": False})
