"""One TLS connection to a peer's daemon: bytes to messages and back, and when it is given up.

Decides nothing about peers: it reports to `control_plane.py` what opened, came and was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import Final, Protocol, cast

import structlog

from exod.errors import TrustError
from exod.model import NodeCard, NodeId
from exod.peers.peer_messages import ControlMessage, ForeignGreeting, UnknownMessage, encode, take
from exod.peers.trust import peer_id
from exod.platform.system import Platform
from exoengine.framing import FrameError

log = structlog.get_logger()

MAX_BACKLOG_BYTES: Final = 32 * 1024 * 1024
"""Two of the longest messages. A peer that lets more pile up does not read: the connection is closed."""

MAX_CONNECTIONS_PER_PEER: Final = 8

GREETING_S: Final = 5.0
"""The greeting follows the handshake at once. A connection that lost its peer in between would never be noticed:
nothing is asked of it yet."""


_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""struct linger: closing resets the connection."""


class ConnectionOwner(Protocol):
    """What a connection reports to."""

    def opened(self, connection: Connection) -> None: ...

    def received(
        self, connection: Connection, message: ControlMessage | UnknownMessage | ForeignGreeting
    ) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Created by ControlPlane only. `closed` is done when it is gone, for whatever reason."""

    def __init__(self, plane: ConnectionOwner, dialled: bool) -> None:
        self._plane = plane
        self.dialled = dialled
        self.peer: NodeId | None = None
        self.card: NodeCard | None = None
        """The peer's card, once it has greeted."""
        self.proven_by = b""
        """The key by which the other end proved that it belongs here, and its own public key's hash."""
        self.pin = ""
        self.life = ""
        """The number of the peer's process, as it greeted."""
        self.on_trial = False
        """Does an earlier life of the peer still speak? Until that is known nothing is taken from this one."""
        self.local = ""
        self.remote = ""
        self.heard_at = time.monotonic()
        self.opened_at = self.heard_at
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._greeting_timer: asyncio.TimerHandle | None = None

    @property
    def ssl_object(self) -> ssl.SSLObject:
        assert self._transport is not None
        return cast(ssl.SSLObject, self._transport.get_extra_info("ssl_object"))

    @property
    def greeted(self) -> bool:
        return self.card is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is none of asyncio's
        self.local = transport.get_extra_info("sockname")[0]
        self.remote = transport.get_extra_info("peername")[0]
        self._greeting_timer = asyncio.get_running_loop().call_later(GREETING_S, self._judge_greeting)
        try:
            self.peer = peer_id(self.ssl_object)
        except TrustError as error:
            self.refuse(str(error))
            return
        self._plane.opened(self)

    def _judge_greeting(self) -> None:
        if not self.greeted and not self.closed.done():
            self.refuse(f"no greeting came within {GREETING_S:.0f} s")

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._buffer += data
        try:
            while (message := take(self._buffer)) is not None:
                self._plane.received(self, message)
                if not self.is_open:
                    return
        except FrameError as error:
            self.refuse(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._greeting_timer is not None:
            self._greeting_timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        self._plane.lost(self)

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes) -> bool:
        """A whole frame, now. False where this connection takes no more."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            self.refuse("it does not read what it is sent")
            return False
        self._transport.write(data)
        return True

    def send_message(self, message: ControlMessage) -> bool:
        """Over this very connection: preflight measures one path."""
        return self.send(encode(message))

    def give_up_after(self, platform: Platform, after_s: float) -> None:
        """Ends this connection where the peer's kernel acknowledges nothing for so long."""
        if self._transport is not None and self.is_open:
            with contextlib.suppress(OSError):
                platform.give_up_unacknowledged(self._transport.get_extra_info("socket"), after_s)

    def refuse(self, text: str) -> None:
        log.warning("control_connection_refused", peer=self.peer, address=self.remote, text=text)
        self.abort()

    def abort(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self) -> None:
        """At once, and the kernel drops what waits to be sent: once the path is back it would come late and stale,
        and until then the kernel would try.
        """
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.abort()

    def close(self) -> None:
        """After what waits was sent."""
        if self._transport is not None:
            self._transport.close()


def surplus(pool: Sequence[Connection], me: NodeId) -> list[Connection]:
    """One connection for each pair of addresses: the lower id's dial before the other's, the older before the
    younger. Both ends judge alike, but of those that the peer dialled the peer alone closes the surplus: which is
    older may differ by a moment at each end.
    """
    by_pair: dict[tuple[str, str], list[Connection]] = {}
    for connection in pool:
        by_pair.setdefault((connection.local, connection.remote), []).append(connection)
    found = list(pool[MAX_CONNECTIONS_PER_PEER:])
    for same in by_pair.values():
        lower_dials = me < (same[0].peer or "")
        first, *others = sorted(same, key=lambda c: (c.dialled != lower_dials, c.opened_at))
        found += [one for one in others if one.dialled or first.dialled]
    return found


class CardOrder:
    """Which of a peer's cards is its newest: a card goes over every connection, and the slow ones bring old news.

    What left first over a VPN of 50 ms arrives after what left later over the cable. One entry for each peer that
    was ever connected: members alone, so a few dozen.
    """

    def __init__(self) -> None:
        self._newest: dict[NodeId, tuple[int, int]] = {}
        """Incarnation and revision."""

    def is_news(self, card: NodeCard, revision: int) -> bool:
        """False where a later card of the same life came before. 0 from a daemon that numbers none."""
        incarnation, newest = self._newest.get(card.id, (card.incarnation, 0))
        if incarnation == card.incarnation and revision and revision < newest:
            return False
        self._newest[card.id] = (card.incarnation, revision)
        return True
