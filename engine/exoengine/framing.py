"""Frames of every stream that exod speaks: a 4-byte big-endian length and that many bytes. Pure.

Between daemons, between a daemon and its worker, and between ranks. Decides where a message begins and ends and
which one is too long; never what is in it. Each user has its own `limit`, in bytes of the body. A frame over it
raises FrameError: the stream cannot be read on.
"""

from __future__ import annotations

from typing import Final, Protocol

HEADER_BYTES: Final = 4


class FrameError(Exception):
    """A message is too long, or is none of the protocol that the stream carries."""


class ByteReader(Protocol):
    """An `asyncio.StreamReader`, without loading asyncio into a process that only frames."""

    async def readexactly(self, n: int, /) -> bytes:
        """Raises EOFError where the stream ends before."""
        ...


def frame(body: bytes, limit: int) -> bytes:
    """The whole frame, header included."""
    _check(len(body), limit)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


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


def _length(header: bytes | bytearray, limit: int) -> int:
    length = int.from_bytes(header, "big")
    _check(length, limit)
    return length


def _check(length: int, limit: int) -> None:
    if length > limit:
        raise FrameError(f"a message of {length} bytes is over the limit of {limit}")
