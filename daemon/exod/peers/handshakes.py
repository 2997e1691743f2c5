"""Connections that were accepted and are not authenticated yet: how many there may be, and who gives way.

Decides nothing about who is a peer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from exod.peers.connection import Connection

HANDSHAKE_S: Final = 5.0
"""TLS takes two round trips; 5 s pass even over a VPN at its worst, and bound a half-open connection."""

MAX_HANDSHAKES: Final = 64
MAX_HANDSHAKES_PER_ADDRESS: Final = 8
"""How many half-open connections there may be at a time: all peers of 8 nodes at once. Past it the oldest goes, not
the newest: a peer is through in milliseconds, one that only takes up room is not.
"""


class Handshakes:
    """`connection` makes the protocol of an accepted connection; `refused` gets the address and TLS's error."""

    def __init__(self, connection: Callable[[], Connection], refused: Callable[[str, ssl.SSLError], None]) -> None:
        self._connection, self._refused = connection, refused
        self._under_way: dict[asyncio.Task[None], str] = {}
        """Oldest first, with the address that each came from."""

    def begin(self, tasks: asyncio.TaskGroup, sock: socket.socket, source: str, context: ssl.SSLContext) -> None:
        self._make_room(source)
        task = tasks.create_task(self._shake_hands(sock, source, context), name=f"handshake {source}")
        self._under_way[task] = source
        task.add_done_callback(self._under_way.pop)

    def under_way(self) -> list[asyncio.Task[None]]:
        return list(self._under_way)

    def _make_room(self, address: str) -> None:
        """Ends the oldest half-open connection where there are too many, of this address or of all."""
        same = [task for task, source in self._under_way.items() if source == address]
        if len(same) >= MAX_HANDSHAKES_PER_ADDRESS:
            same[0].cancel()
        elif len(self._under_way) >= MAX_HANDSHAKES:
            next(iter(self._under_way)).cancel()

    async def _shake_hands(self, sock: socket.socket, address: str, context: ssl.SSLContext) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except ssl.SSLError as error:
            sock.close()
            self._refused(address, error)
        except (OSError, TimeoutError):
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
