"""Before a group counts as formed, each edge of the ring moves full frames: a connection alone proves little.

A path may let small packets pass and swallow full frames, or move next to nothing, or slow down after a while: a
token bucket on the way lets a first burst through. So each rank sends the next one a run of pieces over the data
connection, and takes one from the rank before. Where nobody waits for an answer it is THOROUGH_BYTES, less on a
slow path; in mid-answer PROOF_BYTES, because clients wait for it. The sender decides: each piece says whether
another one follows. What does not get through is reported while it is waited for: the daemon judges the path by it.

Decides nothing about paths. Raises ProofError by deadline, or where a neighbour leaves.
"""

from __future__ import annotations

import functools
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final, TypeVar

from exoengine.ring.send_queue import unacknowledged_bytes

PROOF_BYTES: Final = 64 * 1024
"""Some 45 full Ethernet frames: a millisecond at a gigabit, three round trips over a VPN, half a second at a
megabit."""

THOROUGH_BYTES: Final = 4 * 1024 * 1024
"""What a long prompt's hidden states come to, and more than a token bucket holds that slows a ring down: 35 ms at a
gigabit."""

THOROUGH_S: Final = 0.5
"""Nothing takes longer than this: by then the rate of a slow path is known, whatever its first burst was."""

PIECE_BYTES: Final = 16 * 1024
"""Where the time is over, so much is still sent: a quarter of a second at 64 KiB/s."""

MORE: Final = b"\1"
LAST: Final = b"\0"
"""The first byte of a piece: does another one follow?"""

ON_ITS_WAY: Final = 64 * 1024
"""More is not sent before it is acknowledged, or as much as was: what waits in the kernel when the time is over
holds the group's first messages up."""

TELL_S: Final = 1.0
"""What makes no progress for so long is reported, and again after as long: a lost packet is sent again after 0.2 s,
and what is lost twice after 0.6 s."""

RATE_TOLD_S: Final = 1.5
"""A run that takes so long is reported with its rate so far. On a cable that is fit all would have passed."""

TURN_S: Final = 0.02
SENDING_TURN_S: Final = 0.001
"""64 MB/s with what may be on its way at first: far beyond what any medium must move."""

CURE: Final = ": set the same MTU on both hosts, look at the cable (`exoctl links`)"

T = TypeVar("T")

Seen = Callable[[int, str, int, float], None]
"""(neighbour's rank, fault, bytes moved, seconds): one of `unanswered`, `refused`, `silent`, `moved`."""


def tell_nobody(rank: int, fault: str, moved_bytes: int, seconds: float) -> None:
    """A Seen for ranks without a daemon."""


class ProofError(Exception):
    """One line for people."""


class EdgeProof:
    """`left` and `right` are the data connections and the ranks at their other ends."""

    def __init__(
        self, left: tuple[socket.socket, int], right: tuple[socket.socket, int], seen: Seen, *, thorough: bool
    ) -> None:
        (self._left, self._left_rank), (self._right, self._right_rank) = left, right
        self._seen, self._thorough = seen, thorough
        self._sent = 0
        self._piece = b""
        """What of the present piece is not sent yet."""
        self._is_last = self._sent_last = self._received_last = False
        self._received = 0
        self._more = True
        """Does another piece follow the one that is received?"""
        self._first_at = self._told_at = 0.0
        self._acked = 0
        self._acked_at = self._turned_at = time.monotonic()
        self._took_s = 0.0

    def run(self, deadline: float, called_off: Callable[[], str | None], wake: socket.socket) -> str | None:
        """Returns why it was called off, or None. Raises ProofError."""
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            selector.register(self._left, selectors.EVENT_READ)
            while not (self._received_last and self._sent_last):
                if (reason := called_off()) is not None:
                    return reason
                now = time.monotonic()
                if now >= deadline:
                    raise ProofError(self._what_is_missing())
                if not self._sent_last:
                    self._send()
                turn_s = TURN_S if self._sent_last else SENDING_TURN_S
                ready = {key.fileobj for key, _ in selector.select(min(turn_s, deadline - now))}
                if self._left in ready and self._receive():
                    selector.unregister(self._left)
                now = time.monotonic()
                self._count(now)
                self._watch(now)
        return None

    def _receive(self) -> bool:
        """Takes what has come, and nothing that follows the last piece. Returns whether that is here."""
        while not self._received_last:
            rest = PIECE_BYTES - self._received % PIECE_BYTES
            piece = self._take(functools.partial(self._left.recv, rest), self._left_rank)
            if piece is None:
                return False
            if not piece:
                raise ProofError(f"rank {self._left_rank} left while the edge was tried")
            now = time.monotonic()
            if not self._first_at:
                self._first_at = self._told_at = now
            if rest == PIECE_BYTES:
                self._more = piece[:1] == MORE
            self._received += len(piece)
            self._received_last = not self._more and len(piece) == rest
        self._seen(self._left_rank, "moved", self._received, time.monotonic() - self._first_at)
        return True

    def _send(self) -> None:
        while not self._sent_last and unacknowledged_bytes(self._right) < max(ON_ITS_WAY, self._acked):
            if not self._piece:
                self._is_last = self._is_enough()
                self._piece = (LAST if self._is_last else MORE) + bytes(PIECE_BYTES - 1)
            sent = self._take(lambda: self._right.send(self._piece), self._right_rank) or 0
            if not sent:
                return
            self._piece, self._sent = self._piece[sent:], self._sent + sent
            self._sent_last = self._is_last and not self._piece

    def _is_enough(self) -> bool:
        """With the piece that comes next."""
        wanted = THOROUGH_BYTES if self._thorough and self._took_s < THOROUGH_S else PROOF_BYTES
        return self._sent + PIECE_BYTES >= wanted

    def _count(self, now: float) -> None:
        """The time of the run, less what this process was kept from running: that says nothing of the path."""
        self._took_s += min(now - self._turned_at, TURN_S)
        self._turned_at = now

    def _take(self, act: Callable[[], T], rank: int) -> T | None:
        try:
            return act()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ProofError(f"rank {rank}: {error.strerror or error} while the edge was tried") from error

    def _watch(self, now: float) -> None:
        """Tells of bytes that the right neighbour's machine does not acknowledge, and of a run that takes long."""
        acked = self._sent - unacknowledged_bytes(self._right)
        if acked > self._acked or self._sent == acked:
            self._acked, self._acked_at = acked, now
        elif now - self._acked_at >= TELL_S:
            self._seen(self._right_rank, "silent", max(0, acked), now - self._acked_at)
            self._acked_at = now
        if self._first_at and not self._received_last and now - self._told_at >= RATE_TOLD_S:
            self._told_at = now
            self._seen(self._left_rank, "moved", self._received, now - self._first_at)

    def _what_is_missing(self) -> str:
        if not self._sent_last or self._acked < self._sent:
            return f"rank {self._right_rank} acknowledged {self._acked:,} bytes of the proof, and not all{CURE}"
        return f"rank {self._left_rank} sent {self._received:,} bytes of the proof, and not all{CURE}"
