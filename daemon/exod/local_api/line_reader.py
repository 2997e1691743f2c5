"""Lines of bounded length from a stream, with an eye on its end.

Decides nothing about what a line means. An overlong line is reported once and skipped to its end, so that the next
one is read as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from typing import Final

READ_BYTES: Final = 64 * 1024
"""One read: the default buffer of a Unix socket is of this order."""

READ_AHEAD_BYTES: Final = 1024 * 1024
"""How much is taken in while an answer is under way; beyond it the sender waits, and its end is seen later."""


class OverlongLineError(Exception):
    """A line was longer than allowed; it was skipped."""


class LineReader:
    """Reads lines; between them, `ended` waits for the sender's end without losing what it sent."""

    def __init__(self, stream: asyncio.StreamReader, max_line_bytes: int) -> None:
        self._stream = stream
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False
        self._at_end = False

    async def next(self) -> bytes | None:
        """The next line without its newline; None at the end. Raises OverlongLineError, once for each such line.

        Bytes after the last newline are a line too: a sender may leave the newline away at its end.
        """
        while True:
            cut = self._buffer.find(b"\n", self._searched)
            if cut >= 0:
                line = bytes(self._buffer[:cut])
                del self._buffer[: cut + 1]
                self._searched = 0
                if self._skipping:
                    self._skipping = False
                    continue
                if len(line) > self._max_line_bytes:
                    raise OverlongLineError
                return line
            self._searched = len(self._buffer)
            if self._skipping:
                self._forget()
            elif len(self._buffer) > self._max_line_bytes:
                self._skipping = True
                self._forget()
                raise OverlongLineError
            if self._at_end:
                line = bytes(self._buffer)
                self._forget()
                return line or None
            await self._fill()

    async def ended(self) -> None:
        """Returns when the sender has closed its side. What it sends meanwhile is kept, up to a bound."""
        while not self._at_end and len(self._buffer) < READ_AHEAD_BYTES:
            await self._fill()
        if not self._at_end:
            await asyncio.Event().wait()

    async def _fill(self) -> None:
        try:
            data = await self._stream.read(READ_BYTES)
        except ConnectionError:
            data = b""
        self._buffer += data
        self._at_end = not data

    def _forget(self) -> None:
        self._buffer.clear()
        self._searched = 0
