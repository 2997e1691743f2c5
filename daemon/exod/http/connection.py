"""Connections to the HTTP API: how many there may be, from whom, and how long each may keep us waiting.

Decides which connections are closed so that others are served: those whose head does not come, those whose client
does not read the answer and, where there are too many, the one that has waited longest without a whole request. A
refused client is heard out, so that it can read why. Who asks without pause waits between requests.
Never looks at what is requested. `OpenConnections` knows all of a server; `HttpConnection` is uvicorn's protocol
with these bounds. Times are in seconds on the loop's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import h11
import msgspec
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from exod.daemon_api.loop_turns import LoopTurns
from exod.errors import RequestError
from exod.http.dialects.openai_answers import error_object

HEAD_DEADLINE_S: Final = 10.0
"""For the first byte, for a whole head, and for the rest of a request that was refused. A browser that opened a
connection in advance opens another one after that."""

MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Of a request that was refused, before its connection is cut: eight of the largest bodies."""

WRITE_DEADLINE_S: Final = 30.0
"""For a client that has stopped reading: longer than a laptop's lid is closed by accident, shorter than a slot may
be occupied for nothing."""

MAX_CONNECTIONS: Final = 512
MAX_PER_ADDRESS: Final = 128
"""More than all generations, event streams and idle clients of one host. One address can never use all
connections."""

REQUESTS_PER_S: Final = 250.0
"""Of one address. Agents, pages and monitors of a host ask some ten times a second. Polling as fast as possible
(8,500 times `/health`, 1,100 times `/metrics`) took a tenth of a running answer's speed on two cores."""
BURST_REQUESTS: Final = 500
"""Without a wait: a page with all its parts, a crowd of clients that begins, a script's loop of seconds."""
LONGEST_WAIT_S: Final = 1.0
"""Other clients of that address wait with it; and far below the deadline for a head."""
MAX_PACED: Final = 1024
"""Addresses whose requests are remembered: twice the connections that there may be."""

RESERVED_CONNECTIONS: Final = 32
"""Beyond these bounds, where all connections are busy: they get answers of `/health`, `/ready` and `/metrics`
only."""

CROWDED: Final = "crowded"
"""In the ASGI scope's state of such a connection."""

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEAD_LINES: Final = 128
"""A browser's cookies for localhost, of all programs that were ever served there, take some 10 KiB in one line; a
browser sends 20 lines, and proxies add as many. To read the lines of the longest head takes 4 ms."""

FREE_PIECES: Final = 256
MEAN_PIECE_BYTES: Final = 256
"""Of a chunked body. Each chunk costs 10 µs, whatever its size: without a bound, 256 KiB in chunks of one byte
block the loop for half a second."""


class RequestPace:
    """How long each address's next request waits, so that it has `REQUESTS_PER_S` in the long run. Pure."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        """When all that an address asked is paid for, at so many a second; longest unused first."""

    def count(self, address: str, now: float) -> None:
        """A request of the address is answered."""
        most = now + LONGEST_WAIT_S + BURST_REQUESTS / REQUESTS_PER_S
        due = min(most, max(self._due.pop(address, now), now) + 1 / REQUESTS_PER_S)
        while len(self._due) >= MAX_PACED:
            del self._due[next(iter(self._due))]
        self._due[address] = due

    def wait_s(self, address: str, now: float) -> float:
        return max(0.0, self._due.get(address, now) - now - BURST_REQUESTS / REQUESTS_PER_S)


class OpenConnections:
    """All connections of one server. `enter` decides about each new one, `turns` when what arrived is read."""

    def __init__(self, turns: LoopTurns) -> None:
        self.turns = turns
        self.pace = RequestPace()
        self._all: dict[HttpConnection, str] = {}
        """Oldest first, each with its address."""
        self._crowded: set[HttpConnection] = set()

    def enter(self, connection: HttpConnection, address: str) -> bool:
        """May the connection stay? Closes another one for it where there are too many."""
        theirs = [other for other, place in self._all.items() if place == address]
        if len(theirs) >= MAX_PER_ADDRESS:
            full, choice = True, theirs
        else:
            full, choice = len(self._all) >= MAX_CONNECTIONS, list(self._all)
        if full:
            waiting = next((other for other in choice if other.waits), None)
            if waiting is not None:
                waiting.evict()
            elif len(self._crowded) >= RESERVED_CONNECTIONS:
                return False
            else:
                self._crowded.add(connection)
                connection.app_state = {**connection.app_state, CROWDED: True}
        self._all[connection] = address
        return True

    def leave(self, connection: HttpConnection) -> None:
        self._all.pop(connection, None)
        self._crowded.discard(connection)


class HttpConnection(H11Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: OpenConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._others = connections
        self.conn = FramingConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._arrived = b""
        """What its turn has not come for."""
        self._head = _Deadline(self.loop, self._head_is_late)
        self._reader = _Deadline(self.loop, self._nobody_reads)
        self._is_heard_out = False
        self._unread = 0
        """Bytes that came since then."""

    @property
    def waits(self) -> bool:
        """Is nothing computed for it? Either no whole request has come, or the last one is answered."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def evict(self) -> None:
        self._others.leave(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OrderlyTransport(transport, self._client_still_sends, self._hear_out))  # type: ignore[arg-type]
        if not self._others.enter(self, self._address):
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.leave(self)
        self._head.end()
        self._reader.end()
        self._arrived = b""
        super().connection_lost(exc)
        self.transport.forget()  # type: ignore[attr-defined]
        # No circle is left for the collector: thousands of ended connections held the loop for 40 ms.
        self.cycle = None  # type: ignore[assignment]  # uvicorn begins with None, too

    def data_received(self, data: bytes) -> None:
        if self._is_heard_out:
            self._unread += len(data)
            if self._unread > MAX_UNREAD_BYTES:
                self.transport.abort()
            return
        waits, self._arrived = bool(self._arrived), self._arrived + data
        if not waits:
            self._take_in_turn()
        if self._arrived:
            self.flow.pause_reading()

    def _take_in_turn(self) -> None:
        wait_s = 0.0 if self._is_in_a_request else self._others.pace.wait_s(self._address, self.loop.time())
        if wait_s > 0:
            self.loop.call_later(wait_s, self._others.turns.run, self._take_arrived)
        else:
            self._others.turns.run(self._take_arrived)

    @property
    def _is_in_a_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _take_arrived(self) -> None:
        data, self._arrived = self._arrived, b""
        if not data or self.transport.is_closing():
            return
        self.flow.resume_reading()
        super().data_received(data)
        if self._is_in_a_request:
            self._head.cancel()
        else:
            self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._others.pace.count(self._address, self.loop.time())
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if begun or self.conn.their_state is h11.SEND_BODY:  # the rest of a refused body
            self._expect_head()
        if self.transport.get_write_buffer_size():
            self._expect_reader()

    def shutdown(self) -> None:
        if self._is_heard_out:
            self.transport.abort()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        self._reader.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, RequestError("invalid_request", "this is not a valid HTTP/1.1 request"))

    def _refuse(self, status: int, error: RequestError) -> None:
        """Answers an invalid request, where an answer can still be sent, and closes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # work that was started for it ends without an answer
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = msgspec.json.encode(error_object(error))
            fields = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=fields),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._expect_reader()

    def _client_still_sends(self) -> bool:
        unfinished = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        return unfinished or bool(self._arrived or self.conn.trailing_data[0])

    def _hear_out(self) -> None:
        """The last answer is on its way: what else comes of the request is read and thrown away for a while."""
        self._arrived, self._is_heard_out = b"", True
        self.flow.resume_reading()
        self._head.cancel()
        self._head.begin(HEAD_DEADLINE_S)

    def _expect_head(self) -> None:
        """Starts the deadline. Bytes that come in small pieces do not move it."""
        if not self.transport.is_closing():
            self._head.begin(HEAD_DEADLINE_S)

    def _head_is_late(self) -> None:
        if self._is_heard_out:
            self.transport.abort()
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            text = f"the head of the request did not arrive within {HEAD_DEADLINE_S:g} s"
            self._refuse(408, RequestError("head_timeout", text))
        else:
            self.transport.abort()

    def _expect_reader(self) -> None:
        self._reader.begin(WRITE_DEADLINE_S)

    def _nobody_reads(self) -> None:
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()


class _OrderlyTransport:
    """The transport, whose `close` does not cut off a client that still sends: a kernel that closes a socket with
    bytes unread resets it, and the client may lose the answer that said why. Only this end is closed then, and
    `hear_out` reads on until the client closes its own. TLS has no such half-closed connection.
    """

    def __init__(
        self, transport: asyncio.Transport, still_sends: Callable[[], bool], hear_out: Callable[[], None]
    ) -> None:
        self._transport, self._still_sends, self._hear_out = transport, still_sends, hear_out
        self._is_half_closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_half_closed or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._still_sends() and self._transport.can_write_eof():
            self._is_half_closed = True
            self._transport.write_eof()
            self._hear_out()
        else:
            self._transport.close()

    def forget(self) -> None:
        """The connection is lost: nothing holds its owner any more."""
        self._still_sends, self._hear_out = bool, _nothing


class FramingConnection(h11.Connection):
    """Refuses a head of more lines, and a body in more pieces, than any real client sends."""

    def __init__(self, role: type[h11.SERVER], max_head_bytes: int) -> None:
        super().__init__(role, max_head_bytes)
        self._pieces = 0
        self._bytes = 0

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            raise error.with_traceback(None) from None  # h11 leaves a circle of the error and its frames
        if isinstance(event, h11.Request):
            if len(event.headers) > MAX_HEAD_LINES:
                raise h11.RemoteProtocolError("the head has too many lines")
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_PIECES + self._bytes // MEAN_PIECE_BYTES:
                raise h11.RemoteProtocolError("the body comes in too many pieces")
        return event


class _Deadline:
    """A timer that is started once; to start it again does not move it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._pass)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """For good: its owner is gone."""
        self.cancel()
        self._passed = _nothing

    def _pass(self) -> None:
        self._timer = None
        self._passed()


def _nothing() -> None:
    pass
