"""Before a group counts as formed, each edge of the ring moves full frames: a connection alone proves little.

A path may let small packets pass and swallow full frames, or move next to nothing. Each rank sends PROOF_BYTES to
the next one over the data connection and takes as many from the one before. What does not get through is reported
while it is waited for: the daemon judges the path by it.

Decides nothing about paths. Raises FormError by deadline, or where a neighbour leaves.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Final, TypeVar

from exoengine.ring.send_queue import unacknowledged_bytes

PROOF_BYTES: Final = 64 * 1024
"""Some 45 full Ethernet frames: a millisecond at a gigabit, three round trips over a VPN, half a second at a
megabit."""

TELL_S: Final = 1.0
"""What makes no progress for so long is reported, and again after as long: a lost packet is sent again after 0.2 s,
and what is lost twice after 0.6 s."""

TURN_S: Final = 0.02

T = TypeVar("T")

Seen = Callable[[int, str, int, float], None]
"""(neighbour's rank, fault, bytes moved, seconds): one of `unanswered`, `refused`, `silent`, `moved`."""


def tell_nobody(rank: int, fault: str, moved_bytes: int, seconds: float) -> None:
    """A Seen for ranks without a daemon."""


class ProofError(Exception):
    """One line for people."""


class EdgeProof:
    """`left` and `right` are the data connections and the ranks at their other ends."""

    def __init__(self, left: tuple[socket.socket, int], right: tuple[socket.socket, int], seen: Seen) -> None:
        (self._left, self._left_rank), (self._right, self._right_rank) = left, right
        self._seen = seen
        self._received = self._sent = 0
        self._first_at = 0.0
        self._acked = 0
        self._acked_at = time.monotonic()

    def run(self, deadline: float, called_off: Callable[[], str | None], wake: socket.socket) -> str | None:
        """Returns why it was called off, or None. Raises ProofError."""
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            selector.register(self._left, selectors.EVENT_READ)
            selector.register(self._right, selectors.EVENT_WRITE)
            while self._received < PROOF_BYTES or self._sent < PROOF_BYTES:
                if (reason := called_off()) is not None:
                    return reason
                now = time.monotonic()
                if now >= deadline:
                    raise ProofError(self._what_is_missing())
                ready = {key.fileobj for key, _ in selector.select(min(TURN_S, deadline - now))}
                if self._left in ready:
                    self._receive()
                if self._right in ready and self._sent < PROOF_BYTES:
                    self._send()
                    if self._sent == PROOF_BYTES:
                        selector.unregister(self._right)
                self._watch(time.monotonic())
        return None

    def _receive(self) -> None:
        piece = self._take(lambda: self._left.recv(PROOF_BYTES - self._received), self._left_rank)
        if piece == b"":
            raise ProofError(f"rank {self._left_rank} left while the edge was tried")
        now = time.monotonic()
        self._first_at = self._first_at or now
        self._received += len(piece or b"")
        if self._received == PROOF_BYTES:
            self._seen(self._left_rank, "moved", PROOF_BYTES, now - self._first_at)

    def _send(self) -> None:
        self._sent += self._take(lambda: self._right.send(bytes(PROOF_BYTES - self._sent)), self._right_rank) or 0

    def _take(self, act: Callable[[], T], rank: int) -> T | None:
        try:
            return act()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ProofError(f"rank {rank}: {error.strerror or error} while the edge was tried") from error

    def _watch(self, now: float) -> None:
        """Tells of bytes that the right neighbour's machine does not acknowledge."""
        acked = self._sent - unacknowledged_bytes(self._right)
        if acked > self._acked or self._sent == acked:
            self._acked, self._acked_at = acked, now
        elif now - self._acked_at >= TELL_S:
            self._seen(self._right_rank, "silent", max(0, acked), now - self._acked_at)
            self._acked_at = now

    def _what_is_missing(self) -> str:
        if self._acked < PROOF_BYTES:
            return f"rank {self._right_rank} acknowledged {self._acked:,} of {PROOF_BYTES:,} bytes"
        return f"rank {self._left_rank} sent {self._received:,} of {PROOF_BYTES:,} bytes"
