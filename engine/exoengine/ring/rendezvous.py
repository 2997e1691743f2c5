"""How the ranks of a plan meet: TCP connections to both neighbours, each proven to be of this plan and attempt.

Both directions are tried at once, every 20 ms, by deadline, and can be called off; a stranger is turned away.

A ring of n ranks has n edges, from each rank to the next. An edge has a control connection, for the small
messages of message_ring.py; a data connection, for what safe steps send: hidden states or, where the ring closes,
drawn tokens; and a graph connection, for the native group's operations inside graphs.

Decides: who is a neighbour. Listens only while it runs, on the plan's address alone.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import hashlib
import hmac
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from exoengine.interface_binding import bind_where_allowed
from exoengine.ring.edge_proof import TELL_S, EdgeProof, ProofError, Seen, tell_nobody

RETRY_S: Final = 0.02
"""How long after a refused connection the next is tried: far below what a person or a token stream notices."""

LISTEN_S: Final = 1.0
"""A port that cannot be listened on for this long belongs to someone else: the next plan must take another one."""

STRANGER_S: Final = 2.0
"""How long someone who connected may take to say who they are: longer than a VPN's worst round trip."""

MAX_STRANGERS: Final = 64
"""How many may be asked at once, which bounds descriptors; for one more, the oldest is turned away."""

BACKLOG: Final = 512
"""Connections that the kernel keeps until they are taken: a flood must not make it drop a neighbour's first packet,
which would come again a second later."""

MAGIC: Final = b"EXOR"
VERSION: Final = 6
_HELLO: Final = struct.Struct(">4sBBHHI32s16s")
MAC_BYTES: Final = 32
NONCE_BYTES: Final = 16
HELLO_BYTES: Final = _HELLO.size + MAC_BYTES
ANSWER_BYTES: Final = NONCE_BYTES + MAC_BYTES


class Channel(enum.IntEnum):
    CONTROL = 0
    DATA = 1
    GRAPH = 2


class FormError(Exception):
    """The ring was not formed; `code` is stable, `str(error)` is one line for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclasses.dataclass(frozen=True)
class RingPlan:
    """One formation of one plan, as one rank sees it."""

    plan_hash: str
    attempt: int
    rank: int
    size: int
    hosts: tuple[str, ...]
    key: bytes
    connect_from: str = ""
    accept_from: str = ""
    """The left neighbour's address on the edge to this rank; empty: anybody may try to prove to be it."""
    connect_interface: str = ""
    listen_interface: str = ""
    """What connecting and listening sockets are bound to; empty: nothing."""

    @property
    def right(self) -> int:
        return (self.rank + 1) % self.size

    @property
    def left(self) -> int:
        return (self.rank - 1) % self.size

    def address(self, rank: int) -> tuple[str, int]:
        """Where `rank` listens. Raises FormError for what is no `address:port`."""
        host, _, port = self.hosts[rank].rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise FormError("bad_plan", f"rank {rank} has no address:port in the plan: {self.hosts[rank]!r}")
        return host, int(port)


@dataclasses.dataclass
class Edges:
    """The connections of one rank."""

    control_left: socket.socket
    control_right: socket.socket
    data_left: socket.socket
    data_right: socket.socket
    graph_left: socket.socket
    graph_right: socket.socket
    keys: dict[socket.socket, bytes] = dataclasses.field(default_factory=dict, init=False)
    """What the messages of a connection are sealed with (`seal.py`)."""

    def all(self) -> list[socket.socket]:
        return [getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "keys"]

    @property
    def to_right(self) -> list[socket.socket]:
        """What this rank sends on to the next one."""
        return [self.control_right, self.data_right, self.graph_right]

    def close(self) -> None:
        for connection in self.all():
            connection.close()


def meet(
    plan: RingPlan,
    deadline: float,
    called_off: Callable[[], str | None],
    wake: socket.socket,
    seen: Seen = tell_nobody,
) -> Edges:
    """Connects both neighbours, by `deadline` (monotonic). The one that connects says which plan it is of, with a
    nonce; the other answers with a nonce of its own, and both prove that they know the plan's key by a MAC over
    both nonces: what was recorded at another meeting proves nothing. `called_off` gives a reason to give up at
    once; it is asked again whenever `wake` becomes readable. `seen` is told what the edges meet. Raises FormError.
    """
    if not plan.key:
        raise FormError("bad_plan", "the plan has no key for its ranks")
    meeting = _Meeting(plan, seen)
    try:
        edges = meeting.run(deadline, called_off, wake)
    finally:
        meeting.close()
    try:
        proof = EdgeProof((edges.data_left, plan.left), (edges.data_right, plan.right), seen)
        reason = proof.run(deadline, called_off, wake)
    except ProofError as error:
        edges.close()
        raise FormError("edge", str(error)) from error
    if reason is not None:
        edges.close()
        raise FormError("aborted", reason)
    return edges


class _Arrival:
    """Someone who connected and has not proven to be the left neighbour."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.connection, self.until = connection, until
        self.received = b""
        self.channel: Channel | None = None
        """Known once a hello of this plan has come, which a recorded one may be, too."""
        self.proof = b""
        """What is to come after our answer."""

    @property
    def missing(self) -> int:
        return (HELLO_BYTES if self.channel is None else MAC_BYTES) - len(self.received)


class _Departure:
    """The connection to the right neighbour on one channel, being tried."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.connection: socket.socket | None = None
        self.hello = b""
        self.received = b""
        self.retry_at = 0.0
        self.trouble = "has not been tried"
        self.begun_at = 0.0
        """When the present connection's first packet left."""
        self.refused_since: float | None = None
        """Since when the port refuses, without anything else meanwhile."""


class _Meeting:
    def __init__(self, plan: RingPlan, seen: Seen) -> None:
        self._plan, self._seen = plan, seen
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._listen_trouble = ""
        self._listen_at = 0.0
        self._listen_until = time.monotonic() + LISTEN_S
        self._arrivals: dict[_Arrival, None] = {}
        """Oldest first."""
        self._left: dict[Channel, socket.socket] = {}
        self._right: dict[Channel, socket.socket] = {}
        self._departures = {channel: _Departure(channel) for channel in Channel}
        self._keys: dict[socket.socket, bytes] = {}
        """Of each connection that was answered: no other has the same, whatever of it is repeated."""
        self._taken = False

    def run(self, deadline: float, called_off: Callable[[], str | None], wake: socket.socket) -> Edges:
        self._selector.register(wake, selectors.EVENT_READ, None)
        while len(self._left) < len(Channel) or len(self._right) < len(Channel):
            reason = called_off()
            if reason is not None:
                raise FormError("aborted", reason)
            now = time.monotonic()
            if now >= deadline:
                raise FormError("deadline", self._what_is_missing())
            self._start(now)
            for key, _ in self._selector.select(min(RETRY_S, deadline - now)):
                self._handle(key.data)
            self._turn_away(time.monotonic())
            self._tell(time.monotonic())
        self._taken = True
        edges = Edges(*(side[channel] for channel in Channel for side in (self._left, self._right)))
        edges.keys.update(self._keys)
        for connection in edges.all():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return edges

    def close(self) -> None:
        self._selector.close()
        ends = [self._listener, *(arrival.connection for arrival in self._arrivals)]
        if not self._taken:
            ends += [*self._left.values(), *self._right.values()]
            ends += [departure.connection for departure in self._departures.values()]
        for end in ends:
            if end is not None:
                end.close()

    def _start(self, now: float) -> None:
        """Listens, and connects where it is time to."""
        if self._listener is None and now >= self._listen_at:
            self._listen(now)
        for departure in self._departures.values():
            idle = departure.channel not in self._right and departure.connection is None
            if idle and now >= departure.retry_at:
                self._connect(departure, now)

    def _listen(self, now: float) -> None:
        address = self._plan.address(self._plan.rank)
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bind_where_allowed(listener, self._plan.listen_interface)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            self._listen_trouble = f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}"
            self._listen_at = now + RETRY_S
            if now >= self._listen_until:
                raise FormError("listen", self._listen_trouble) from error
            return
        self._listener, self._listen_trouble = listener, ""
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def _connect(self, departure: _Departure, now: float) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        departure.connection, departure.received, departure.begun_at = connection, b"", now
        try:
            bind_where_allowed(connection, self._plan.connect_interface)
            if self._plan.connect_from:
                connection.bind((self._plan.connect_from, 0))
            connection.connect(self._plan.address(self._plan.right))
        except BlockingIOError:
            pass
        except OSError as error:
            self._refused(departure, error)
            return
        self._selector.register(connection, selectors.EVENT_WRITE, departure)

    def _tell(self, now: float) -> None:
        """What the connections to the right meet, once for both and at most once a second."""
        told = False
        for departure in self._departures.values():
            if departure.channel in self._right:
                continue
            if departure.connection is not None and not departure.hello and now - departure.begun_at >= TELL_S:
                self._failed(departure, "did not answer the connection's first packet")
                told = told or self._report("unanswered", TELL_S)
            elif departure.refused_since is not None and now - departure.refused_since >= TELL_S:
                departure.refused_since = now
                told = told or self._report("refused", TELL_S)

    def _report(self, fault: str, seconds: float) -> bool:
        self._seen(self._plan.right, fault, 0, seconds)
        return True

    def _refused(self, departure: _Departure, error: OSError) -> None:
        if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
            departure.refused_since = departure.refused_since or time.monotonic()
        self._failed(departure, error.strerror or str(error))

    def _failed(self, departure: _Departure, trouble: str) -> None:
        departure.trouble = trouble
        departure.retry_at = time.monotonic() + RETRY_S
        if departure.connection is not None:
            if departure.connection in self._selector.get_map():
                self._selector.unregister(departure.connection)
            departure.connection.close()
            departure.connection = None

    def _handle(self, what: object) -> None:
        match what:
            case _Departure():
                self._proceed(what)
            case _Arrival():
                self._ask(what)
            case socket.socket():
                self._accept(what)
            case _:
                pass  # the wake-up: `called_off` is asked at the top of the loop

    def _proceed(self, departure: _Departure) -> None:
        connection = departure.connection
        if connection is None:
            return
        try:
            if not departure.hello:
                trouble = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if trouble:
                    raise OSError(trouble, os.strerror(trouble))
                departure.hello, departure.refused_since = self._hello(departure.channel), None
                connection.sendall(departure.hello)  # a fresh connection's buffer takes these few bytes
                self._selector.modify(connection, selectors.EVENT_READ, departure)
                return
            piece = connection.recv(ANSWER_BYTES - len(departure.received))
            if not piece:
                raise OSError(0, "is not ready for this plan yet")
        except BlockingIOError:
            return
        except OSError as error:
            departure.hello = b""
            self._refused(departure, error)
            return
        departure.received += piece
        if len(departure.received) == ANSWER_BYTES:
            self._judge_answer(departure, connection)

    def _judge_answer(self, departure: _Departure, connection: socket.socket) -> None:
        hello, departure.hello = departure.hello, b""
        nonce, mac = departure.received[:NONCE_BYTES], departure.received[NONCE_BYTES:]
        if not hmac.compare_digest(mac, self._mac(b"answer" + hello + nonce)):
            self._failed(departure, "answered for another plan")
            return
        try:
            connection.sendall(self._mac(b"proof" + hello + nonce))
            self._keys[connection] = self._mac(b"messages" + hello + nonce)
        except OSError as error:
            self._failed(departure, error.strerror or str(error))
            return
        self._selector.unregister(connection)
        self._right[departure.channel] = connection

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_STRANGERS):
            try:
                connection, source = listener.accept()
            except OSError:
                return  # none is left, or it is gone again
            if self._plan.accept_from not in ("", source[0]):
                connection.close()
                continue
            if len(self._arrivals) >= MAX_STRANGERS:
                # One whose hello is right goes last: others cannot push the neighbour out with silence.
                self._dismiss(min(self._arrivals, key=lambda arrival: arrival.channel is not None))
            connection.setblocking(False)
            arrival = _Arrival(connection, time.monotonic() + STRANGER_S)
            self._arrivals[arrival] = None
            self._selector.register(connection, selectors.EVENT_READ, arrival)

    def _ask(self, arrival: _Arrival) -> None:
        if arrival not in self._arrivals:
            return  # turned away since it became readable
        try:
            piece = arrival.connection.recv(arrival.missing)
            if not piece:
                raise OSError("it left")
            arrival.received += piece
            if not arrival.missing:
                self._judge(arrival)
        except BlockingIOError:
            pass
        except OSError:
            self._dismiss(arrival)

    def _judge(self, arrival: _Arrival) -> None:
        """A whole hello, or a whole proof. Raises OSError where the answer cannot be sent."""
        received, arrival.received = arrival.received, b""
        if arrival.channel is None:
            arrival.channel = self._channel_of(received)
            if arrival.channel is None:
                self._dismiss(arrival)
                return
            nonce = os.urandom(NONCE_BYTES)
            arrival.proof = self._mac(b"proof" + received + nonce)
            self._keys[arrival.connection] = self._mac(b"messages" + received + nonce)
            arrival.connection.sendall(nonce + self._mac(b"answer" + received + nonce))
        elif hmac.compare_digest(received, arrival.proof):
            self._selector.unregister(arrival.connection)
            del self._arrivals[arrival]
            older = self._left.get(arrival.channel)
            if older is not None:
                older.close()  # the neighbour gave that one up and came again
            self._left[arrival.channel] = arrival.connection
        else:
            self._dismiss(arrival)

    def _dismiss(self, arrival: _Arrival) -> None:
        self._selector.unregister(arrival.connection)
        del self._arrivals[arrival]
        arrival.connection.close()

    def _turn_away(self, now: float) -> None:
        for arrival in [arrival for arrival in self._arrivals if now >= arrival.until]:
            self._dismiss(arrival)

    def _hello(self, channel: Channel) -> bytes:
        plan = self._plan
        digest = hashlib.sha256(plan.plan_hash.encode()).digest()
        body = _HELLO.pack(
            MAGIC,
            VERSION,
            channel,
            plan.rank,
            plan.right,
            plan.attempt & 0xFFFFFFFF,
            digest,
            os.urandom(NONCE_BYTES),
        )
        return body + self._mac(body)

    def _channel_of(self, hello: bytes) -> Channel | None:
        """The channel that the left neighbour asks for, or None for anyone else."""
        if len(hello) != HELLO_BYTES:
            return None
        body, mac = hello[: _HELLO.size], hello[_HELLO.size :]
        if not hmac.compare_digest(mac, self._mac(body)):
            return None
        magic, version, channel, sender, receiver, attempt, digest, _ = _HELLO.unpack(body)
        plan = self._plan
        expected = (
            MAGIC, VERSION, plan.left, plan.rank, plan.attempt & 0xFFFFFFFF,
            hashlib.sha256(plan.plan_hash.encode()).digest(),
        )  # fmt: skip
        if (magic, version, sender, receiver, attempt, digest) != expected or channel not in set(Channel):
            return None
        return Channel(channel)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._plan.key, body, "sha256")

    def _what_is_missing(self) -> str:
        if self._listen_trouble:
            return self._listen_trouble
        missing = [departure for channel, departure in self._departures.items() if channel not in self._right]
        if missing:
            host, port = self._plan.address(self._plan.right)
            return f"rank {self._plan.right} at {host}:{port} {missing[0].trouble}"
        return f"rank {self._plan.left} did not connect to {self._plan.hosts[self._plan.rank]}"
