"""Small messages between neighbouring ranks: what to run next, which token came, what everyone holds.

They run over plain connections beside those of the native group: they need no graph, exist without that group, and
a rank that waits here sleeps.

Decides nothing: it moves messages. Every wait ends at once when the group is aborted. Belongs to the MLX thread.
"""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any, Final

import msgspec

from exoengine import framing
from exoengine.decoding import DecodingError, from_msgpack
from exoengine.framing import FrameError
from exoengine.ring.seal import Seal, SealError

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""A history of 1,000,000 tokens fits well; more is not a neighbour of ours."""

LAST_WORDS_S: Final = 0.5
"""When the next rank has left, its last message may still be on its way round the ring: this long."""


class RingLostError(Exception):
    """A neighbour is gone, or the group was aborted; `str(error)` says which."""


class TokenRing:
    """Messages go to the right (rank + 1) and come from the left (rank - 1), in order."""

    def __init__(
        self, rank: int, size: int, left: socket.socket, right: socket.socket, left_key: bytes, right_key: bytes
    ) -> None:
        self.rank, self.size = rank, size
        self._sealed_left, self._sealed_right = Seal(left_key), Seal(right_key)
        self._left, self._right = left, right
        self._received = bytearray()
        self._lost_at: float | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(left, selectors.EVENT_READ)
        self._selector.register(right, selectors.EVENT_READ)  # nothing ever comes from there but its end

    def send(self, message: bytes) -> None:
        """Raises RingLostError where the next rank is gone, FrameError where the message is too long."""
        try:
            self._right.sendall(framing.frame(self._sealed_right.close(message), MAX_MESSAGE_BYTES))
        except OSError as error:
            raise RingLostError(f"the next rank is gone: {error.strerror or error}") from error

    def receive(self) -> bytes:
        """Sleeps until the next message is here. Raises RingLostError."""
        message = self._take()
        while message is None:
            self._read_when_ready()
            message = self._take()
        return message

    def arrived(self) -> bytes | None:
        """The next message, if it is here. Raises RingLostError."""
        message = self._take()
        if message is None and any(key.fileobj is self._left for key, _ in self._selector.select(0)):
            self._read()
            message = self._take()
        return message

    def receive_or_wake(self, wake: socket.socket) -> bytes | None:
        """The next message, or None once `wake` is readable. Raises RingLostError."""
        message = self._take()
        if message is not None:
            return message
        self._selector.register(wake, selectors.EVENT_READ)
        try:
            while message is None:
                if wake in self._read_when_ready():
                    return self._take()
                message = self._take()
            return message
        finally:
            self._selector.unregister(wake)

    def gather(self, mine: bytes) -> list[bytes]:
        """Every rank's message, by rank; every rank must call this. Raises RingLostError."""
        parts = [b""] * self.size
        parts[self.rank] = passing = mine
        for distance in range(1, self.size):
            self.send(passing)
            passing = self.receive()
            parts[(self.rank - distance) % self.size] = passing
        return parts

    def close(self) -> None:
        self._selector.close()

    def _read_when_ready(self) -> set[object]:
        timeout_s = None if self._lost_at is None else max(0.0, self._lost_at + LAST_WORDS_S - time.monotonic())
        ready: set[object] = {key.fileobj for key, _ in self._selector.select(timeout_s)}
        if self._left in ready:
            self._read()
        elif not ready and self._lost_at is not None:
            raise RingLostError("the next rank closed its connection")
        if self._right in ready:
            self._lost_at = time.monotonic()
            self._selector.unregister(self._right)
        return ready

    def _read(self) -> None:
        try:
            piece = self._left.recv(65536)
        except OSError as error:
            raise RingLostError(f"the rank before is gone: {error.strerror or error}") from error
        if not piece:
            raise RingLostError("the rank before closed its connection")
        self._received += piece

    def _take(self) -> bytes | None:
        try:
            sealed = framing.take(self._received, MAX_MESSAGE_BYTES)
            return self._sealed_left.open(sealed) if sealed is not None else None
        except (FrameError, SealError) as error:
            raise RingLostError(f"the rank before sent {error}") from None


def encode(message: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(message: bytes, kind: Any) -> Any:
    """Raises RingLostError where the rank before sent something else: it must not be trusted further."""
    try:
        return from_msgpack(message, kind)
    except DecodingError as error:
        raise RingLostError(f"the rank before sent what cannot be read: {error}") from error
