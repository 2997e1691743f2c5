"""Asks the daemon over its control socket: blocking, because a command does one thing and must start fast.

Decides how long to wait for a silent daemon, and the text where none runs. The caller decides what an answer means.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import msgspec

from exod.errors import ExitCode, ExodError, RequestError
from exod.local_api.protocol import LOCAL_API_VERSION, MAX_LINE_BYTES, LocalRequest, RawReply

ANSWER_DEADLINE_S: Final = 5.0
"""A daemon that lives answers a snapshot in milliseconds, also on a busy machine."""

STREAM_DEADLINE_S: Final = 35.0
"""A stream says something every 10 s, if only that it lives: three of these missed."""

COMMAND_DEADLINE_S: Final = 900.0
"""Draining waits for the generations under way; a preflight moves data over each edge."""

RECEIVE_BYTES: Final = 64 * 1024

Shape = TypeVar("Shape")


class NoDaemonError(ExodError):
    exit_code = ExitCode.NO_DAEMON


class SilentDaemonError(ExodError):
    exit_code = ExitCode.TIMED_OUT


class DaemonClient:
    """One connection. Use as a context manager."""

    def __init__(self, path: Path, start_hint: str = "exod run") -> None:
        self._path = path
        self._socket = _connect(path, start_hint)
        self._buffer = bytearray()
        self._last_id = 0

    def __enter__(self) -> DaemonClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def raw(self, verb: str, *, deadline_s: float = ANSWER_DEADLINE_S, **args: Any) -> bytes:
        """The result of `verb` as the daemon's own JSON. Raises RequestError, NoDaemonError, SilentDaemonError."""
        self._send(verb, args)
        reply = self._reply(deadline_s)
        while not reply.end:
            reply = self._reply(deadline_s)
        return bytes(reply.result)

    def ask(self, verb: str, shape: type[Shape], *, deadline_s: float = ANSWER_DEADLINE_S, **args: Any) -> Shape:
        return understood(self.raw(verb, deadline_s=deadline_s, **args), shape)

    def stream(self, verb: str, decoder: msgspec.json.Decoder[Shape], **args: Any) -> Iterator[Shape | None]:
        """The items of a stream as they come; None for each sign of life that carries nothing."""
        self._send(verb, args)
        while not (reply := self._reply(STREAM_DEADLINE_S)).end:
            item = bytes(reply.item)
            yield _decoded(item, decoder) if item else None

    def _send(self, verb: str, args: dict[str, Any]) -> None:
        self._last_id += 1
        given = {name: value for name, value in args.items() if value is not None}
        request = LocalRequest(verb, LOCAL_API_VERSION, self._last_id, msgspec.Raw(msgspec.json.encode(given)))
        self._socket.settimeout(ANSWER_DEADLINE_S)
        try:
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
        except TimeoutError:
            raise self._silent(ANSWER_DEADLINE_S) from None
        except OSError:
            raise self._gone() from None

    def _reply(self, deadline_s: float) -> RawReply:
        line = self._line(deadline_s)
        reply = understood(line, RawReply)
        if reply.error is not None:
            codes = {int(code) for code in ExitCode}
            code = ExitCode(reply.error.exit_code) if reply.error.exit_code in codes else ExitCode.INTERNAL
            raise RequestError(reply.error.code, reply.error.text, code)
        return reply

    def _line(self, deadline_s: float) -> bytes:
        self._socket.settimeout(deadline_s)
        searched = 0
        while (cut := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                raise ExodError(f"{self._path}: what answers there is not exod: a line without end")
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                raise self._silent(deadline_s) from None
            except ConnectionError:
                data = b""
            if not data:
                raise self._gone()
            self._buffer += data
        line = bytes(self._buffer[:cut])
        del self._buffer[: cut + 1]
        return line

    def _silent(self, deadline_s: float) -> SilentDaemonError:
        return SilentDaemonError(
            f"{self._path}: exod has said nothing for {deadline_s:g} s: it is stopped, or too busy to answer"
        )

    def _gone(self) -> NoDaemonError:
        return NoDaemonError(f"{self._path}: exod has closed the connection: it was stopped, or it crashed")


def understood(data: bytes, shape: type[Shape]) -> Shape:
    """`data` as `shape`. Raises ExodError where the daemon is of another release."""
    return _decoded(data, msgspec.json.Decoder(shape))


def _decoded(data: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    from exoengine.decoding import DecodingError, decode  # only where a daemon answered: a status must start fast

    try:
        return decode(decoder, data)
    except DecodingError as error:
        raise ExodError(f"exod answers what this exoctl does not understand ({error}): restart exod") from None


def _connect(path: Path, start_hint: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_DEADLINE_S)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NoDaemonError(f"{path}: this exod belongs to another user") from None
        if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
            raise SilentDaemonError(f"{path}: exod does not take the connection: it is stopped or busy") from None
        raise NoDaemonError(
            f"no exod is running here (nothing answers at {path}); start it with: {start_hint}"
        ) from None
    return connection
