"""The control thread of a worker: the daemon's socket, heartbeats, and deadlines.

Stays responsive whatever the MLX thread does: it answers the daemon, sends heartbeats, and aborts the group when
the daemon says so or a deadline passes. Keeps everything that was told of each unfinished request, so that a daemon
that connects later misses nothing, and of the last finished ones, so that one that asks again gets the same answer.
Decides nothing about models or plans; never touches MLX.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from exoengine.process.processor_watch import ProcessorWatch
from exoengine.process.shared_state import SharedState
from exoengine.protocol import (
    Abort,
    ActiveRequest,
    Begin,
    Finished,
    FromWorker,
    Hello,
    KeepWaiting,
    Leave,
    Load,
    LoadFailed,
    Prepare,
    ProtocolError,
    RequestFailed,
    TextAsked,
    TokenOut,
    ToWorker,
    decode_to_worker,
    encode,
    read_frame,
)  # fmt: skip

HEARTBEAT_S: Final = 1.0
TICK_S: Final = 0.05
"""How late a deadline may be noticed: small against every deadline."""

MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
"""A daemon that reads nothing for this long is as good as gone."""

MAX_LOGS: Final = 256
"""Finished requests that no daemon has heard of are kept up to this many."""

TOLD_KEPT: Final = 64
"""Finished requests that a daemon has heard of: it may have died before it made anything of the end, and the next
one asks for the last requests again, twice as many as can be open at once (`engine.max_concurrent`)."""

PAUSE_S: Final = 3.0
"""How long the ranks may take to agree on a step's end before the group is aborted instead."""

ORPHAN_FACTOR: Final = 5.0
"""While it generates, a worker waits this many times longer for a daemon to come back."""

MAX_LOG_BYTES: Final = 8 * 1024 * 1024
"""Of the file that standard error goes to: a worker runs for months, and a library may repeat a warning at each
step. Twice what the daemon moves aside when a worker starts."""

EXIT_GRACE_S: Final = 5.0
"""Past the deadline of a Leave the process ends itself, whatever the MLX thread does."""


def trim_log(descriptor: int = 2, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Empties the file behind `descriptor` where it has grown too large: it is open for appending."""
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size > max_bytes:
            os.ftruncate(descriptor, 0)


class RequestLog:
    """All that was told of one request."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.messages: list[FromWorker] = []

    @property
    def active(self) -> ActiveRequest:
        """With the tokens that it was begun with: a process that was given a half answer told only the rest."""
        tokens = list(self.begin.tokens)
        for message in self.messages:
            if isinstance(message, TokenOut) and message.index == len(tokens):
                tokens.append(message.token)
        return ActiveRequest(self.begin.order, self.begin.request, tuple(tokens))

    @property
    def is_finished(self) -> bool:
        return bool(self.messages) and isinstance(self.messages[-1], Finished | RequestFailed)

    def beyond(self, known: int) -> list[FromWorker]:
        """What somebody lacks who has the answer's first `known` tokens."""
        return [one for one in self.messages if not (isinstance(one, TokenOut) and one.index < known)]


class Mailbox:
    """Commands from the control thread to the MLX thread, in order."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._messages: deque[ToWorker] = deque()
        self._wake = wake

    def put(self, message: ToWorker) -> None:
        self._messages.append(message)
        self._wake()

    def take(self) -> ToWorker | None:
        try:
            return self._messages.popleft()
        except IndexError:
            return None

    def ends_loading(self) -> bool:
        """Does a command wait that makes whatever is being loaded useless?"""
        return any(isinstance(message, Load | Leave) for message in tuple(self._messages))


class ControlThread:
    """Everything but `start`, `emit` and `close` runs on the control thread."""

    def __init__(
        self, path: Path, shared: SharedState, mailbox: Mailbox, abort: Callable[[str, str], None],
        watch_edge: Callable[[], None], hello: Callable[[], Hello], orphan_deadline_s: float,
    ) -> None:  # fmt: skip
        self._path, self._shared, self._mailbox, self._abort, self._hello = path, shared, mailbox, abort, hello
        self._orphan_deadline_s, self._watch_edge = orphan_deadline_s, watch_edge
        self.on_text: Callable[[TextAsked], None] = lambda asked: None
        """Takes what the thread for texts is asked; set before `start`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._logs: dict[str, RequestLog] = {}
        self._told: dict[str, RequestLog] = {}
        """The last finished ones that a daemon has heard of."""
        self._loading = ""
        self._writer: asyncio.StreamWriter | None = None
        self._alone_since = time.monotonic()
        self._pause_until: float | None = None
        self._exit_at: float | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Listens before it returns. Raises OSError where the socket cannot be made."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(before)
        self._thread.start()

    def emit(self, messages: Sequence[FromWorker]) -> None:
        """From the MLX thread: tells the daemon, now or when there is one again."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._tell, messages)

    def close(self) -> None:
        """From the MLX thread: sends what is left and ends the thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(EXIT_GRACE_S)
        self._path.unlink(missing_ok=True)

    def settled(self) -> None:
        """From the MLX thread: the pause that was asked for has happened."""
        self._pause_until = None

    def leaving(self, deadline_s: float) -> None:
        """From any thread: the process must be gone soon after `deadline_s`."""
        self._exit_at = time.monotonic() + deadline_s

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_unix_server(self._serve, sock=self._listener)
        beat_at = 0.0
        before = None
        watch = ProcessorWatch(time.monotonic(), time.process_time())
        while not self._stopping.is_set():
            now = time.monotonic()
            self._shared.uses_processor = watch.look(now, time.process_time(), self._shared.begun)
            self._enforce(now)
            figures = (self._shared.state, self._shared.safe, self._shared.sync_reason)
            if now >= beat_at or figures != before:
                before, beat_at = figures, now + HEARTBEAT_S
                self._write(self._shared.heartbeat())
                trim_log()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_S if self._busy() else HEARTBEAT_S / 4)
        server.close()
        if self._writer is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._writer.drain(), 1.0)
            self._writer.close()
            await asyncio.sleep(0)

    def _busy(self) -> bool:
        return self._shared.state not in ("empty", "loaded", "ready", "aborted") or self._pause_until is not None

    def _enforce(self, now: float) -> None:
        self._watch_edge()
        overdue = self._shared.overdue()
        if overdue is not None and self._shared.state == "loading":
            self._give_up_loading(overdue)
        elif overdue is not None:
            self._abort("deadline", overdue)
        if self._pause_until is not None and self._shared.state == "forming":
            self._pause_until = None  # no step is under way that could come to its end
            self._abort("told", "another group is wanted")
        if self._pause_until is not None and now >= self._pause_until:
            self._pause_until = None
            self._abort("deadline", f"the ranks did not come to a step's end within {PAUSE_S:.0f} s")
        if self._exit_at is not None and now >= self._exit_at:
            self._abort("deadline", "leaving took too long")
            if now >= self._exit_at + EXIT_GRACE_S:
                os._exit(1)  # the MLX thread hangs where nothing reaches it
        if self._writer is None:
            factor = ORPHAN_FACTOR if self._shared.state == "generating" else 1.0
            if now - self._alone_since >= self._orphan_deadline_s * factor and self._exit_at is None:
                self.leaving(0.0)
                self._abort("orphan", f"no daemon for {self._orphan_deadline_s * factor:.0f} s")
                self._mailbox.put(Leave(0.0))

    def _give_up_loading(self, text: str) -> None:
        """The MLX thread may hang in a read for ever: this process ends, and the daemon starts another."""
        self._write(LoadFailed(self._loading, "deadline", f"{self._loading}: {text}"))
        self.leaving(0.0)
        self._mailbox.put(Leave(0.0))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None:
            self._writer.close()  # one daemon at a time: the newer one
        self._writer = writer
        hello = msgspec.structs.replace(self._hello(), requests=tuple(log.active for log in self._logs.values()))
        self._write(hello)
        for log in list(self._logs.values()):
            for message in log.messages:
                self._write(message)
            self._put_away_if_told(log)
        self._write(self._shared.heartbeat())
        try:
            while (body := await read_frame(reader)) is not None:
                self._receive(decode_to_worker(body))
        except (ProtocolError, ConnectionError):
            pass  # this daemon does not speak our protocol, or is gone: another may come
        finally:
            writer.close()
            if self._writer is writer:
                self._writer, self._alone_since = None, time.monotonic()

    def _receive(self, message: ToWorker) -> None:
        match message:
            case TextAsked():
                self.on_text(message)
                return
            case KeepWaiting(for_s):
                self._shared.keep_waiting(for_s)
                return
            case Abort(reason):
                self._abort("told", reason)
            case Begin():
                self._begin(message)
            case Load(folder):
                self._logs.clear()  # another model must not go on with this one's answer, nor a daemon with them
                self._told.clear()
                self._loading = folder
            case Prepare():
                self._pause_until = time.monotonic() + PAUSE_S
            case Leave(deadline_s):
                self._pause_until = time.monotonic() + PAUSE_S
                self.leaving(deadline_s)
            case _:
                pass
        self._mailbox.put(message)

    def _begin(self, begin: Begin) -> None:
        """A finished one is reported again from where this daemon has it; the MLX thread ignores it."""
        request_id = begin.request.request_id
        log = self._told.get(request_id)
        if log is None:
            self._logs.setdefault(request_id, RequestLog(begin))
            return
        for message in log.beyond(len(begin.tokens)):
            self._write(message)

    def _tell(self, messages: Sequence[FromWorker]) -> None:
        self._write(*(message for message in messages if not self._known_before(message)))
        for message in messages:
            if isinstance(message, Finished | RequestFailed):
                done = self._logs.get(message.request_id)
                if done is not None:
                    self._put_away_if_told(done)

    def _known_before(self, message: FromWorker) -> bool:
        """Did the daemon give this token along with the request? Notes what is told of a request."""
        if not isinstance(message, TokenOut | Finished | RequestFailed):
            return False
        log = self._logs.get(message.request_id)
        if log is None:
            return False
        log.messages.append(message)
        return isinstance(message, TokenOut) and message.index < len(log.begin.tokens)

    def _put_away_if_told(self, log: RequestLog) -> None:
        """A finished request is put away once a daemon has it, and before there are too many."""
        if not log.is_finished or (self._writer is None and len(self._logs) <= MAX_LOGS):
            return
        request_id = log.begin.request.request_id
        if self._logs.pop(request_id, None) is not None:
            self._told[request_id] = log
        while len(self._told) > TOLD_KEPT:
            del self._told[next(iter(self._told))]

    def _write(self, *messages: FromWorker) -> None:
        """In one piece: each write is a system call, and wakes the daemon."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            writer.transport.abort()
            return
        writer.write(b"".join(map(encode, messages)))
