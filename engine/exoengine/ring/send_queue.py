"""What a connection has sent and nobody has acknowledged yet, and whether that has come to a standstill.

The theory. The receiving machine acknowledges what reaches it, whatever its processes do; so bytes that stay
unacknowledged while the kernel sends them again were lost on the way. A receiver that takes nothing more is
something else: it acknowledges, and its window is closed.

Linux counts how often the oldest packet was sent again. macOS counts the send buffer's bytes, with those that were
not sent yet because the window is closed, so there the window is looked at: bytes that stand still beside an open
window are on the way and unacknowledged. That has not run on a Mac.

Decides nothing about groups or paths.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import sys
from typing import Final

STALL_S: Final = 0.6
"""From the first repetition on, which comes after 0.2 s: a packet lost three times in a row, and a second failure
still comes within three seconds."""

_SIOCOUTQ: Final = 0x5411
_TCP_INFO: Final = 11
_RETRANSMITS_AT: Final = 2
"""In Linux's struct tcp_info: how often the oldest unacknowledged packet was sent again."""
_SO_NWRITE: Final = 0x1024
"""macOS, sys/socket.h: bytes in the send buffer."""
_TCP_CONNECTION_INFO: Final = 0x106
"""macOS, netinet/tcp.h."""
_CONNECTION_INFO: Final = struct.Struct("=16xI8xI80x")
"""macOS's struct tcp_connection_info: the largest segment, and the window of the other end."""


def unacknowledged_bytes(connection: socket.socket) -> int:
    """0 where that cannot be told, as for a closed connection."""
    try:
        if sys.platform == "darwin":
            return connection.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        found = array.array("i", [0])
        fcntl.ioctl(connection.fileno(), _SIOCOUTQ, found)
        return found[0]
    except (OSError, ValueError):
        return 0


def is_sent_again(connection: socket.socket) -> bool:
    """Is the kernel repeating what it sent, if nothing is acknowledged for STALL_S?"""
    try:
        if sys.platform == "darwin":
            told = connection.getsockopt(socket.IPPROTO_TCP, _TCP_CONNECTION_INFO, _CONNECTION_INFO.size)
            segment, window = _CONNECTION_INFO.unpack(told)
            return bool(window >= segment)  # the kernel holds back what fits into no full segment
        return connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 8)[_RETRANSMITS_AT] > 0
    except (OSError, ValueError, struct.error):
        return False


class SendWatch:
    """Watches connections that send. `stalled` may be asked from any thread, several times a second."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[int, float]] = {}
        """By descriptor: how much was unacknowledged, and since when exactly that."""

    def stalled(self, connections: list[socket.socket], now: float) -> float | None:
        """For how many seconds one of them has had nothing acknowledged, past STALL_S; None where none has."""
        kept: dict[int, tuple[int, float]] = {}
        longest: float | None = None
        for connection in connections:
            number, waiting = connection.fileno(), unacknowledged_bytes(connection)
            if number < 0 or waiting == 0 or not is_sent_again(connection):
                continue
            before, since = self._since.get(number, (waiting, now))
            kept[number] = (waiting, since if before == waiting else now)
            standing = now - kept[number][1]
            if standing >= STALL_S and (longest is None or standing > longest):
                longest = standing
        self._since = kept
        return longest
