"""Reads request bodies: how large they may be, how many values they may hold, and how long they may take.

Decides which bodies are read at all (JSON by their type), how many bytes of them this node holds at once, and where
they are decoded. A large one is decoded in a thread, after its values were counted, because msgspec holds the
interpreter lock until it is done. It never looks at the meaning of a body. Sizes are in bytes, times in seconds.
Raises RequestError for what is refused, ClientGoneError where the client left.
"""

from __future__ import annotations

import asyncio
import codecs
import gc
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from starlette.types import Receive

from exod.daemon_api.loop_turns import BODY_S, LoopTurns
from exod.errors import ExitCode, RequestError
from exod.http.exchange import ClientGoneError

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""A context of 1,000,000 tokens in plain text is about 4 MiB."""

MAX_ARRIVING_BYTES: Final = 128 * 1024 * 1024
"""All large bodies together that arrive or wait to be decoded: sixteen of the largest."""

BODY_DEADLINE_S: Final = 30.0
"""At 0.3 MB/s the largest body arrives within this time; a slower client only occupies a connection."""

LIGHT_BYTES: Final = 64 * 1024
"""Bodies up to this size are decoded in the loop, each in its turn: whatever they hold takes a few milliseconds."""

SMALL_BYTES: Final = 4 * 1024
"""Bodies up to this size need no turn of their own: they take a tenth of a millisecond."""

COMPILED: Final = re.compile(rb"schema|guided_|grammar|tools|functions|\\u00[4-7]")
"""Names of fields that are compiled when a body is read, in a process that may take seconds for one. The last is
how JSON can hide such a name: no client needs it for letters."""

MAX_TEXTS: Final = 100_000
MAX_CONTAINERS: Final = 50_000
MAX_VALUES: Final = 1_000_000
"""In one body: texts and names of fields, lists and objects, and values of any kind. A conversation of 10,000 turns
has 40,000 texts and 10,000 objects; a prompt of token ids has as many values as the longest context has tokens.
With these bounds the decoder holds the interpreter lock for 30 ms at most; 8 MiB of empty lists took 500 ms."""

JSON_TYPE: Final = re.compile(r"application/([a-z0-9.+-]+\+)?json")

_STRUCTURE: Final = b'",[{'
_NO_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in _STRUCTURE)

Value = TypeVar("Value")


class BodyReader:
    """Reads and decodes the bodies of one server, and counts the bytes that are held of them."""

    def __init__(self, turns: LoopTurns) -> None:
        self._turns = turns
        self._held = 0
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="http body")
        """One body at a time: two would compete for the interpreter lock and for memory."""
        self._compiling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="http schema")
        """For light bodies that wait for the compiler of schemas: large ones without any do not wait for it."""
        for executor in (self._decoder, self._compiling):
            executor.submit(bool)  # starts the thread now: to start one means to wait until it runs

    async def read(self, headers: dict[str, str], receive: Receive, decode: Callable[[bytes], Value]) -> Value:
        """The body as `decode` reads it. Raises RequestError where the body has another type, is too large, has too
        many values, is too slow, or where `decode` raises it; ClientGoneError where the connection ends early.
        """
        check_body_type(headers)
        with self._room() as grow:
            pieces = await _receive_body(headers, receive, grow)
            size = sum(map(len, pieces))
            executor = self._decoder
            if size <= LIGHT_BYTES:
                data = _joined(pieces)
                if COMPILED.search(data) is None:
                    if size > SMALL_BYTES:
                        await self._turns.wait(BODY_S)
                    return decode(data)
                executor = self._compiling
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(executor, _decode_heavy, pieces, decode)

    def close(self) -> None:
        for executor in (self._decoder, self._compiling):
            executor.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _room(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that takes the body's size as it grows. A small body is not counted."""
        mine = 0

        def grow(size: int) -> None:
            nonlocal mine
            added = size - mine if size > LIGHT_BYTES else 0
            if self._held + added > MAX_ARRIVING_BYTES:
                text = "other large requests fill the memory for bodies; ask again"
                raise RequestError("unavailable", text, ExitCode.DEGRADED)
            mine += added
            self._held += added

        try:
            yield grow
        finally:
            self._held -= mine


def check_body_type(headers: dict[str, str]) -> None:
    """Raises RequestError for a body that is not plain JSON. A page of any site may send a form or plain text
    without a preflight, so these types are refused. A request without a type does not come from a browser, which
    always sends a type or its origin.
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


def check_weight(data: bytes) -> None:
    """Raises RequestError where `data` holds more values than a request may have. Takes a few passes at the speed
    of memory, and does not check that it is JSON.
    """
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(None, _NO_STRUCTURE)
    texts = marks.count(b'"') // 2
    if texts > MAX_TEXTS:
        raise RequestError("invalid_json", f"the body may hold {MAX_TEXTS} texts and names of fields")
    outside = b"".join(marks.split(b'"')[::2])
    if outside.count(b"[") + outside.count(b"{") > MAX_CONTAINERS:
        raise RequestError("invalid_json", f"the body may hold {MAX_CONTAINERS} lists and objects")
    if outside.count(b",") >= MAX_VALUES:
        raise RequestError("invalid_json", f"the body may hold {MAX_VALUES} values, such as token ids")


def _decode_heavy(pieces: list[bytes], decode: Callable[[bytes], Value]) -> Value:
    """In the decoder's thread. What is decoded lives for milliseconds; the collector would walk through all of it
    meanwhile, and hold the loop for up to 60 ms.
    """
    data = _joined(pieces)
    check_weight(data)
    gc.disable()
    try:
        return decode(data)
    finally:
        gc.enable()


def _joined(pieces: list[bytes]) -> bytes:
    """Without a byte order mark, which some editors write."""
    return b"".join(pieces).removeprefix(codecs.BOM_UTF8)


async def _receive_body(headers: dict[str, str], receive: Receive, grow: Callable[[int], None]) -> list[bytes]:
    """The whole body. To put 8 MiB together here would hold the loop for as long as to decode some."""
    too_large = RequestError("body_too_large", f"the body may have {MAX_BODY_BYTES} bytes")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 20 or int(length) > MAX_BODY_BYTES:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > MAX_BODY_BYTES:
                    raise too_large
                grow(size)
                if not message.get("more_body", False):
                    return pieces
    except TimeoutError:
        text = f"the body did not arrive within {BODY_DEADLINE_S:g} s"
        raise RequestError("body_timeout", text) from None
