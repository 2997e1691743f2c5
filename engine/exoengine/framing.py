"""Frames of every stream that exod speaks: a 4-byte big-endian length and that many bytes. Pure.

Between daemons, between a daemon and its worker, and between ranks. Decides where a message begins and ends and
which one is too long; never what is in it. Each user has its own `limit`, in bytes of the body. A frame over it
raises FrameError: the stream cannot be read on.
"""

from __future__ import annotations

from typing import Final, Protocol

HEADER_BYTES: Final = 4
_ENDED_WITHIN: Final = "the connection ended within a message"


class FrameError(Exception):
    """A message is too long, or is none of the protocol that the stream carries."""


class ByteReader(Protocol):
    """An `asyncio.StreamReader`, without loading asyncio into a process that only frames."""

    async def readexactly(self, n: int, /) -> bytes:
        """Raises EOFError where the stream ends before."""
        ...


class BlockingStream(Protocol):
    """A connected socket, plain or TLS, whose reads wait for bytes."""

    def recv_into(self, buffer: memoryview, /) -> int: ...


def frame(body: bytes, limit: int) -> bytes:
    """The whole frame, header included."""
    return header(len(body), limit) + body


def header(length: int, limit: int) -> bytes:
    """What stands before a body of this length."""
    _check(length, limit)
    return length.to_bytes(HEADER_BYTES, "big")


def take(buffer: bytearray, limit: int) -> bytes | None:
    """The body of the first frame, taken out of `buffer`; None until it is whole."""
    if len(buffer) < HEADER_BYTES:
        return None
    end = HEADER_BYTES + _length(buffer[:HEADER_BYTES], limit)
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER_BYTES:end])
    del buffer[:end]
    return body


async def read(reader: ByteReader, limit: int) -> bytes | None:
    """The body of the next frame; None at the end of the stream, and where it breaks."""
    try:
        return await reader.readexactly(_length(await reader.readexactly(HEADER_BYTES), limit))
    except (EOFError, ConnectionError):
        return None


def receive(stream: BlockingStream, limit: int) -> bytes | None:
    """As `read`, of a socket that blocks. Raises ConnectionResetError where the stream ends within a frame."""
    length = _next_length(stream, limit)
    if length is None:
        return None
    body = bytearray(length)
    _fill(stream, memoryview(body))
    return bytes(body)


def receive_into(stream: BlockingStream, buffer: memoryview) -> int | None:
    """As `receive`, into the beginning of `buffer`, whose length is the limit. Returns the body's length."""
    length = _next_length(stream, len(buffer))
    if length is not None:
        _fill(stream, buffer[:length])
    return length


def _next_length(stream: BlockingStream, limit: int) -> int | None:
    """None where the stream ends before the first byte of a frame."""
    start = memoryview(bytearray(HEADER_BYTES))
    got = stream.recv_into(start)
    if not got:
        return None
    _fill(stream, start[got:])
    return _length(bytes(start), limit)


def _fill(stream: BlockingStream, view: memoryview) -> None:
    while view:
        got = stream.recv_into(view)
        if not got:
            raise ConnectionResetError(_ENDED_WITHIN)
        view = view[got:]


def _length(start: bytes | bytearray, limit: int) -> int:
    length = int.from_bytes(start, "big")
    _check(length, limit)
    return length


def _check(length: int, limit: int) -> None:
    if length > limit:
        raise FrameError(f"a message of {length} bytes is over the limit of {limit}")
