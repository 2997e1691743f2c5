"""The stream of a file connection once both ends are proved: records of AES-256-GCM, each a good part of a file.

TLS has records of 16 KiB, each a call of its own on both ends; with records sixteen times as long a file costs a
third of the processor time. So TLS proves who is there and carries two fresh keys, one a direction (`Keys`), and
ends; all that follows is here. A record is a frame (`exoengine/framing.py`) of the encrypted content and its tag of
16 bytes; its number is the nonce, so none can be left out, repeated or moved.

Decides nothing of what is said. Blocks, within the socket's timeout. Raises OSError, and FrameError where a record
was not made by the other end.
"""

from __future__ import annotations

import socket
from typing import Final

from exoengine import framing
from exoengine.framing import HEADER_BYTES, FrameError

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 12
"""The count of records, which never repeats under one key (NIST SP 800-38D, 8.2.1)."""

RECORD_BYTES: Final = 1 << 18
"""Fits a processor's cache twice, and keeps Python's lock, which the daemon's loop needs, for 50 µs."""


class SealedStream:
    """One end. `send_key` and `receive_key` have no other use."""

    def __init__(self, sock: socket.socket, send_key: bytes, receive_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._sock = sock
        self._seal, self._open = AESGCM(send_key), AESGCM(receive_key)
        self._sent = self._received = 0
        self._outgoing = memoryview(bytearray(HEADER_BYTES + RECORD_BYTES + TAG_BYTES))
        self._incoming = memoryview(bytearray(RECORD_BYTES + TAG_BYTES))
        self._opened = memoryview(bytearray(RECORD_BYTES))
        self._rest = self._opened[:0]
        """Of the newest record what nobody took yet."""

    def sendall(self, data: bytes | memoryview) -> None:
        content = memoryview(data)
        for at in range(0, len(content), RECORD_BYTES):
            self._send_record(content[at : at + RECORD_BYTES])

    def recv_into(self, buffer: memoryview) -> int:
        """As a socket's: some bytes, at most what `buffer` holds; 0 at the end."""
        if not self._rest:
            length = framing.receive_into(self._sock, self._incoming)
            if length is None:
                return 0
            size = length - TAG_BYTES
            if 0 < size <= len(buffer):
                self._open_record(buffer[:size])
                return size
            self._rest = self._opened[: max(size, 0)]
            self._open_record(self._rest)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _send_record(self, content: memoryview) -> None:
        length = len(content) + TAG_BYTES
        self._outgoing[:HEADER_BYTES] = framing.header(length, len(self._incoming))
        record = self._outgoing[: HEADER_BYTES + length]
        self._seal.encrypt_into(_nonce(self._sent), content, None, record[HEADER_BYTES:])
        self._sent += 1
        self._sock.sendall(record)

    def _open_record(self, content: memoryview) -> None:
        """Raises FrameError, also for a record without content: that would look like the end."""
        from cryptography.exceptions import InvalidTag

        sealed = self._incoming[: len(content) + TAG_BYTES]
        try:
            self._open.decrypt_into(_nonce(self._received), sealed, None, content)
        except InvalidTag:
            raise FrameError("a record that the other end did not make") from None
        if not content:
            raise FrameError("a record that holds nothing")
        self._received += 1


def _nonce(number: int) -> bytes:
    return number.to_bytes(NONCE_BYTES, "big")
