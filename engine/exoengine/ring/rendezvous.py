"""How the ranks of a plan meet: TCP connections to both neighbours, and in a tensor group to every other rank, each
proven to be of this plan and attempt.

All are tried at once, every 20 ms, by deadline, and can be called off; a stranger is turned away.

A ring of n ranks has n edges, from each rank to the next. An edge has a control connection, for the small
messages of message_ring.py; a data connection, for what safe steps send: hidden states or, where the ring closes,
drawn tokens; and a graph connection, for the native group's operations inside graphs. Across the ring there is a
graph connection alone.

Decides: who belongs to the plan. Listens only while it runs, on the plan's addresses alone.
"""

from __future__ import annotations

import dataclasses
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
from exoengine.ring.ring_plan import Channel, FormError, Key, RingConnection, RingPlan, split_host

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

CURE: Final = ": is that TCP port open on both hosts? `exoctl links` shows what the ring met on each path"
"""Of an edge that does not come."""

MAGIC: Final = b"EXOR"
VERSION: Final = 8
_HELLO: Final = struct.Struct(">4sBBHHI32s16s")
MAC_BYTES: Final = 32
NONCE_BYTES: Final = 16
HELLO_BYTES: Final = _HELLO.size + MAC_BYTES
ANSWER_BYTES: Final = NONCE_BYTES + MAC_BYTES


@dataclasses.dataclass
class Edges:
    """The connections of one rank."""

    control_left: socket.socket
    control_right: socket.socket
    data_left: socket.socket
    data_right: socket.socket
    graph_left: socket.socket
    graph_right: socket.socket
    across: dict[int, socket.socket] = dataclasses.field(default_factory=dict)
    """For graphs, by rank."""
    keys: dict[socket.socket, bytes] = dataclasses.field(default_factory=dict, init=False)
    """What the messages of a connection are sealed with (`seal.py`)."""

    def all(self) -> list[socket.socket]:
        return [
            self.control_left, self.control_right, self.data_left, self.data_right, self.graph_left,
            self.graph_right, *self.across.values(),
        ]  # fmt: skip

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
    *,
    thorough: bool = False,
) -> Edges:
    """Connects both neighbours, by `deadline` (monotonic). The one that connects says which plan it is of, with a
    nonce; the other answers with a nonce of its own, and both prove that they know the plan's key by a MAC over
    both nonces: what was recorded at another meeting proves nothing. `called_off` gives a reason to give up at
    once; it is asked again whenever `wake` becomes readable. `seen` gets what happens on the edges. `thorough`: no
    client waits, so the edges are proven with more bytes. Raises FormError.
    """
    if not plan.key:
        raise FormError("bad_plan", "the plan has no key for its ranks")
    meeting = _Meeting(plan, seen)
    try:
        edges = meeting.run(deadline, called_off, wake)
    finally:
        meeting.close()
    try:
        proof = EdgeProof((edges.data_left, plan.left), (edges.data_right, plan.right), seen, thorough=thorough)
        reason = proof.run(deadline, called_off, wake)
    except ProofError as error:
        edges.close()
        raise FormError("edge", str(error)) from error
    if reason is not None:
        edges.close()
        raise FormError("aborted", reason)
    return edges


class _Arrival:
    """Someone who connected and has not proven to be of this plan."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.connection, self.until = connection, until
        self.received = b""
        self.key: Key | None = None
        """Known once a hello of this plan has come, which a recorded one may be, too."""
        self.proof = b""
        """What is to come after our answer."""

    @property
    def missing(self) -> int:
        return (HELLO_BYTES if self.key is None else MAC_BYTES) - len(self.received)


class _Listening:
    """On one of this rank's addresses, or about to."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.listener: socket.socket | None = None
        self.trouble = ""
        self.retry_at = 0.0


class _Departure:
    """A connection that this rank makes, being tried."""

    def __init__(self, key: Key, tie: RingConnection) -> None:
        self.key, self.tie = key, tie
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
        self._outward, self._inward = plan.outward(), plan.inward()
        self._listening = {split_host(tie.host): _Listening(tie.interface) for tie in self._inward.values()}
        self._sources = {tie.source for tie in self._inward.values()}
        self._listen_until = time.monotonic() + LISTEN_S
        self._arrivals: dict[_Arrival, None] = {}
        """Oldest first."""
        self._accepted: dict[Key, socket.socket] = {}
        self._made: dict[Key, socket.socket] = {}
        self._departures = {key: _Departure(key, tie) for key, tie in self._outward.items()}
        self._keys: dict[socket.socket, bytes] = {}
        """Of each connection that was answered: no other has the same, whatever of it is repeated."""
        self._taken = False
        self._told_at: dict[int, float] = {}
        """When a failure of each peer's edge was told last."""

    def run(self, deadline: float, called_off: Callable[[], str | None], wake: socket.socket) -> Edges:
        self._selector.register(wake, selectors.EVENT_READ, None)
        while len(self._accepted) < len(self._inward) or len(self._made) < len(self._outward):
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
        left, right = (
            {channel: made[peer, channel] for channel in Channel}
            for made, peer in ((self._accepted, self._plan.left), (self._made, self._plan.right))
        )
        edges = Edges(
            control_left=left[Channel.CONTROL],
            control_right=right[Channel.CONTROL],
            data_left=left[Channel.DATA],
            data_right=right[Channel.DATA],
            graph_left=left[Channel.GRAPH],
            graph_right=right[Channel.GRAPH],
            across={
                tie.peer: (self._made if tie.connects else self._accepted)[tie.peer, Channel.GRAPH]
                for tie in self._plan.across
            },
        )
        edges.keys.update(self._keys)
        for connection in edges.all():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return edges

    def close(self) -> None:
        self._selector.close()
        ends = [one.listener for one in self._listening.values()]
        ends += [arrival.connection for arrival in self._arrivals]
        if not self._taken:
            ends += [*self._accepted.values(), *self._made.values()]
            ends += [departure.connection for departure in self._departures.values()]
        for end in ends:
            if end is not None:
                end.close()

    def _start(self, now: float) -> None:
        """Listens, and connects where it is time to."""
        for address, listening in self._listening.items():
            if listening.listener is None and now >= listening.retry_at:
                self._listen(address, listening, now)
        for departure in self._departures.values():
            idle = departure.key not in self._made and departure.connection is None
            if idle and now >= departure.retry_at:
                self._connect(departure, now)

    def _listen(self, address: tuple[str, int], listening: _Listening, now: float) -> None:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bind_where_allowed(listener, listening.interface)
            listener.bind(address)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            listening.trouble = f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}"
            listening.retry_at = now + RETRY_S
            if now >= self._listen_until:
                raise FormError("listen", listening.trouble) from error
            return
        listening.listener, listening.trouble = listener, ""
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def _connect(self, departure: _Departure, now: float) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        departure.trouble = "has not answered yet"
        departure.connection, departure.received, departure.begun_at = connection, b"", now
        try:
            bind_where_allowed(connection, departure.tie.interface)
            if departure.tie.source:
                connection.bind((departure.tie.source, 0))
            connection.connect(split_host(departure.tie.host))
        except BlockingIOError:
            pass
        except OSError as error:
            self._refused(departure, error)
            return
        self._selector.register(connection, selectors.EVENT_WRITE, departure)

    def _tell(self, now: float) -> None:
        """What the connections that this rank makes meet: of each peer once, and at most once a second."""
        for departure in self._departures.values():
            if departure.key in self._made:
                continue
            if departure.connection is not None and not departure.hello and now - departure.begun_at >= TELL_S:
                self._failed(departure, "did not answer the connection's first packet")
                self._report(departure, "unanswered", now)
            elif departure.refused_since is not None and now - departure.refused_since >= TELL_S:
                departure.refused_since = now
                self._report(departure, "refused", now)

    def _report(self, departure: _Departure, fault: str, now: float) -> None:
        """The connections to one peer fail within milliseconds of each other: that is one failure of its edge."""
        peer = departure.key[0]
        if now - self._told_at.get(peer, -TELL_S) >= TELL_S:
            self._told_at[peer] = now
            self._seen(peer, fault, 0, TELL_S)

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
                departure.hello, departure.refused_since = self._hello(departure.key), None
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
        self._made[departure.key] = connection

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_STRANGERS):
            try:
                connection, source = listener.accept()
            except OSError:
                return  # none is left, or it is gone again
            if not self._sources & {"", source[0]}:
                connection.close()
                continue
            if len(self._arrivals) >= MAX_STRANGERS:
                # One whose hello is right goes last: others cannot push the neighbour out with silence.
                self._dismiss(min(self._arrivals, key=lambda arrival: arrival.key is not None))
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
        if arrival.key is None:
            arrival.key = self._key_of(received)
            if arrival.key is None:
                self._dismiss(arrival)
                return
            nonce = os.urandom(NONCE_BYTES)
            arrival.proof = self._mac(b"proof" + received + nonce)
            self._keys[arrival.connection] = self._mac(b"messages" + received + nonce)
            arrival.connection.sendall(nonce + self._mac(b"answer" + received + nonce))
        elif hmac.compare_digest(received, arrival.proof):
            self._selector.unregister(arrival.connection)
            del self._arrivals[arrival]
            older = self._accepted.get(arrival.key)
            if older is not None:
                older.close()  # the other rank gave that one up and came again
            self._accepted[arrival.key] = arrival.connection
        else:
            self._dismiss(arrival)

    def _dismiss(self, arrival: _Arrival) -> None:
        self._selector.unregister(arrival.connection)
        del self._arrivals[arrival]
        arrival.connection.close()

    def _turn_away(self, now: float) -> None:
        for arrival in [arrival for arrival in self._arrivals if now >= arrival.until]:
            self._dismiss(arrival)

    def _hello(self, key: Key) -> bytes:
        plan, (peer, channel) = self._plan, key
        digest = hashlib.sha256(plan.plan_hash.encode()).digest()
        body = _HELLO.pack(
            MAGIC,
            VERSION,
            channel,
            plan.rank,
            peer,
            plan.attempt & 0xFFFFFFFF,
            digest,
            os.urandom(NONCE_BYTES),
        )
        return body + self._mac(body)

    def _key_of(self, hello: bytes) -> Key | None:
        """Which of the connections that this rank waits for it is; None for anyone else."""
        if len(hello) != HELLO_BYTES:
            return None
        body, mac = hello[: _HELLO.size], hello[_HELLO.size :]
        if not hmac.compare_digest(mac, self._mac(body)):
            return None
        magic, version, channel, sender, receiver, attempt, digest, _ = _HELLO.unpack(body)
        plan = self._plan
        expected = (
            MAGIC, VERSION, plan.rank, plan.attempt & 0xFFFFFFFF, hashlib.sha256(plan.plan_hash.encode()).digest()
        )  # fmt: skip
        if (magic, version, receiver, attempt, digest) != expected or channel not in set(Channel):
            return None
        key = (sender, Channel(channel))
        return key if key in self._inward else None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._plan.key, body, "sha256")

    def _what_is_missing(self) -> str:
        for listening in self._listening.values():
            if listening.trouble:
                return listening.trouble
        for key, departure in self._departures.items():
            if key not in self._made:
                return f"rank {key[0]} at {departure.tie.host} {departure.trouble}{CURE}"
        peer, tie = next((key[0], tie) for key, tie in self._inward.items() if key not in self._accepted)
        return f"rank {peer} did not connect to {tie.host}{CURE}"
