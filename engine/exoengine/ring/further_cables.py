"""Connections for graphs over further cables between two neighbours, beside the one of the ring's edge: a large
message then takes all of them at once (`mesh.h`), a small one still the first.

Each daemon names the cables that it sees; the two ends may see different ones, so they agree over the edge's own
connection for graphs. The higher rank says where it listens, the lower one which of these it will try, and in the
end which work: those that carried PROOF_BYTES both ways, with both ends proven by a MAC that belongs to the edge's
connection. A cable that does not work is left out; it never fails the group.

Decides which cables are used. Raises FormError where the neighbour leaves or the deadline (monotonic) passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from exoengine.interface_binding import bind_where_allowed
from exoengine.ring.edge_proof import PROOF_BYTES
from exoengine.ring.ring_plan import Cable, FormError

MAX_CABLES: Final = 3
"""With the edge's own four: a Mac has up to six ports, and nobody joins two Macs by more than a few."""

CABLE_S: Final = 0.5
"""How long a step of a cable's proof may take: a cable answers in a millisecond, and a dead one delays the group by
no more than this."""

LOOK_S: Final = 0.05
"""How often an abort is looked for."""

_MAC_BYTES: Final = 32
_PLACE: Final = struct.Struct(">4sH")
"""An IPv4 address and a port."""


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """`edge` is the connection for graphs that both ends agree over, `key` what its messages are sealed with."""

    rank: int
    edge: socket.socket
    key: bytes
    cables: tuple[Cable, ...]

    def mac(self, what: bytes, place: bytes) -> bytes:
        return hmac.digest(self.key, what + place, "sha256")

    def left(self) -> FormError:
        return FormError("edge", f"rank {self.rank} left while further cables were tried")


def connect(to: Neighbour, deadline: float) -> list[socket.socket]:
    """The lower rank's part."""
    offered = _read_places(to, deadline)
    mine = {cable.far: cable for cable in to.cables}
    wanted = [place for place in offered if _address(place) in mine]
    with contextlib.ExitStack() as stack:
        works: list[bytes] = []
        made: list[socket.socket] = []
        for place in wanted:
            connection = _try(to, mine[_address(place)], place)
            if connection is not None:
                works.append(place)
                made.append(connection)
                stack.callback(connection.close)
        _say(to, bytes([len(works)]) + b"".join(works), deadline)
        stack.pop_all()
        return made


def accept(of: Neighbour, port: int, deadline: float, called_off: Callable[[], str | None]) -> list[socket.socket]:
    """The higher rank's part; it listens on `port` of its cables' addresses for as long as this takes."""
    listening = dict(filter(None, (_listen(cable, port) for cable in of.cables)))
    came: dict[bytes, socket.socket] = {}
    chosen: list[bytes] = []
    try:
        _say(of, bytes([len(listening)]) + b"".join(listening), deadline)
        _take_arrivals(of, listening, came, deadline, called_off)
        chosen = _read_places(of, deadline)
        if not came.keys() >= set(chosen):
            chosen = []
            raise FormError("edge", f"rank {of.rank} uses a cable that did not come")
    finally:
        for listener in listening.values():
            listener.close()
        for place in came.keys() - set(chosen):
            came[place].close()
    return [came[place] for place in chosen]


def _take_arrivals(
    of: Neighbour,
    listening: dict[bytes, socket.socket],
    came: dict[bytes, socket.socket],
    deadline: float,
    called_off: Callable[[], str | None],
) -> None:
    """Into `came` what connects and is proven, until the other end says, over the edge, that it is done."""
    sources = {place: cable.far for place in listening for cable in of.cables if cable.near == _address(place)}
    with selectors.DefaultSelector() as selector:
        selector.register(of.edge, selectors.EVENT_READ, b"")
        for place, listener in listening.items():
            selector.register(listener, selectors.EVENT_READ, place)
        is_done = False
        while not is_done:
            if (reason := called_off()) is not None:
                raise FormError("aborted", reason)
            if time.monotonic() >= deadline:
                raise FormError("deadline", f"rank {of.rank} did not say which cables work")
            for key, _ in selector.select(LOOK_S):
                if key.data == b"":
                    is_done = True
                elif (connection := _greet(of, key.data, listening[key.data], sources[key.data])) is not None:
                    came[key.data] = connection


def _try(to: Neighbour, cable: Cable, place: bytes) -> socket.socket | None:
    connection = socket.socket()
    try:
        connection.settimeout(CABLE_S)
        bind_where_allowed(connection, cable.interface)
        connection.bind((cable.near, 0))
        connection.connect(_host(place))
        connection.sendall(to.mac(b"cable", place))
        if not hmac.compare_digest(_read(connection, _MAC_BYTES), to.mac(b"answer", place)):
            raise OSError("someone else answered")
        connection.sendall(bytes(PROOF_BYTES))
        _read(connection, PROOF_BYTES)
    except OSError:
        connection.close()
        return None
    return connection


def _greet(of: Neighbour, place: bytes, listener: socket.socket, source: str) -> socket.socket | None:
    try:
        connection, (address, _) = listener.accept()
    except OSError:
        return None  # it is gone again
    try:
        connection.settimeout(CABLE_S)
        if address != source or not hmac.compare_digest(_read(connection, _MAC_BYTES), of.mac(b"cable", place)):
            raise OSError("a stranger")
        connection.sendall(of.mac(b"answer", place))
        _read(connection, PROOF_BYTES)
        connection.sendall(bytes(PROOF_BYTES))
    except OSError:
        connection.close()
        return None
    return connection


def _listen(cable: Cable, port: int) -> tuple[bytes, socket.socket] | None:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind_where_allowed(listener, cable.interface)
        listener.bind((cable.near, port))
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        return None
    return _PLACE.pack(socket.inet_aton(cable.near), port), listener


def _host(place: bytes) -> tuple[str, int]:
    return _address(place), int(_PLACE.unpack(place)[1])


def _address(place: bytes) -> str:
    return socket.inet_ntoa(_PLACE.unpack(place)[0])


def _read(connection: socket.socket, size: int) -> bytes:
    """Raises OSError where it ends before, or a piece takes longer than its timeout."""
    got = bytearray()
    while len(got) < size:
        piece = connection.recv(size - len(got))
        if not piece:
            raise OSError("the connection ended")
        got += piece
    return bytes(got)


def _say(to: Neighbour, what: bytes, deadline: float) -> None:
    try:
        to.edge.settimeout(max(0.001, deadline - time.monotonic()))
        to.edge.sendall(what)
    except OSError as error:
        raise to.left() from error


def _read_places(to: Neighbour, deadline: float) -> list[bytes]:
    """What `_say` of the other end said: a count, and so many places."""
    try:
        to.edge.settimeout(max(0.001, deadline - time.monotonic()))
        count = _read(to.edge, 1)[0]
        if count > MAX_CABLES:
            raise FormError("edge", f"rank {to.rank} names {count} further cables")
        return [_read(to.edge, _PLACE.size) for _ in range(count)]
    except OSError as error:
        raise to.left() from error
