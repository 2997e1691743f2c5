"""The control socket: how `exoctl` reaches the daemon. Moves lines between a Unix socket and `DaemonCommands`.

Decides who may connect (the socket's mode 0600: this user), how much one may send, and what a name that a
person typed stands for; the daemon decides everything else. The protocol is in `protocol.py`, the verbs are in
`verbs.py`. `start` may raise StartError; `run` serves until it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from exod.daemon_api.field_errors import field_problem
from exod.daemon_api.interface import DaemonCommands
from exod.daemon_api.loop_turns import LoopTurns
from exod.errors import ExitCode, RequestError, StartError
from exod.local_api.line_reader import LineReader, OverlongLineError
from exod.local_api.protocol import LOCAL_API_VERSION, MAX_LINE_BYTES, LocalError, LocalReply, LocalRequest
from exod.local_api.verbs import Verbs
from exoengine.decoding import DecodingError, WrongShapeError, from_json

MAX_CONNECTIONS: Final = 64
"""People and scripts of one user on one host; more is a loop gone wild."""

MAX_SOCKET_PATH_BYTES: Final = 103
"""`sun_path` holds 104 bytes on macOS (108 on Linux), the closing zero included."""

WRITE_DEADLINE_S: Final = 30.0
"""A client that takes nothing for so long is gone or stopped; its connection must not hold an answer."""

LIVENESS_CHECK_S: Final = 1.0
"""How long a connect to a socket that is already there may take before its owner counts as alive but busy."""

PLACE_CHECK_S: Final = 2.0
"""How often it is looked whether the socket's file is still there: who finds it gone asks again within seconds."""

_log = structlog.get_logger("control_socket")


class _Sender:
    """The one sender of a connection: encodes a reply and waits until it is on its way."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, reply: LocalReply) -> None:
        """Raises ConnectionError or TimeoutError where the client is gone."""
        self._writer.write(msgspec.json.encode(reply) + b"\n")
        async with asyncio.timeout(WRITE_DEADLINE_S):
            await self._writer.drain()


class LocalApi:
    """Listens on `path` (mode 0600) and answers requests. Debug verbs are refused unless `debug_enabled`."""

    def __init__(self, commands: DaemonCommands, path: Path, *, debug_enabled: bool) -> None:
        self._verbs = Verbs(commands, debug_enabled=debug_enabled)
        self._path = path
        self._turns = LoopTurns()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._connections = 0

    def start(self) -> None:
        """Takes the socket's place in the file system, replacing one whose daemon died. Raises StartError."""
        self._listener = _listen(self._path)
        self._inode = self._path.stat().st_ino

    async def run(self) -> None:
        """Serves until cancelled; then closes every connection and removes the socket's file."""
        if self._listener is None:
            raise RuntimeError("LocalApi.run before start")
        try:
            async with asyncio.TaskGroup() as connections:

                def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    connections.create_task(self._serve(reader, writer), name="control connection")

                server = await asyncio.start_unix_server(connected, sock=self._listener)
                try:
                    while True:
                        await asyncio.sleep(PLACE_CHECK_S)
                        if self._take_place_again():
                            server.close()
                            server = await asyncio.start_unix_server(connected, sock=self._listener)
                finally:
                    server.close()
        finally:
            self.close()

    def _take_place_again(self) -> bool:
        """Where somebody removed the socket's file, or its folder, the daemon would be out of reach: is there a
        new one? What else lies in its place is left alone.
        """
        if os.path.lexists(self._path):
            return False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.start()
        except (OSError, StartError) as error:
            _log.warning("control_socket_gone", path=str(self._path), error=str(error))
            return False
        _log.warning("control_socket_made_again", path=str(self._path))
        return True

    def close(self) -> None:
        """Removes the socket's file where it is still this daemon's: for a start that no run followed. Safe to
        call twice.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first line to its end. Whatever a client does ends here."""
        self._connections += 1
        sender = _Sender(writer)
        lines = LineReader(reader, MAX_LINE_BYTES)
        try:
            if self._connections > MAX_CONNECTIONS:
                text = f"{MAX_CONNECTIONS} connections are open already: close some"
                await sender.send(_failure(0, RequestError("too_many_connections", text, ExitCode.INTERNAL)))
                return
            while await self._answer_next(lines, sender):
                pass
        except (ConnectionError, TimeoutError):
            pass
        except Exception:  # a fault of this daemon costs this connection, not the daemon
            _log.exception("control_connection_failed")
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await writer.wait_closed()

    async def _answer_next(self, lines: LineReader, sender: _Sender) -> bool:
        """Reads one request and answers it; False at the end of the connection."""
        try:
            line = await lines.next()
        except OverlongLineError:
            text = f"a request is longer than {MAX_LINE_BYTES} bytes"
            await sender.send(_failure(0, RequestError("too_long", text)))
            return True
        if line is None:
            return False
        if not line.strip():
            return True
        await self._turns.wait()
        try:
            request = _parse(line)
        except RequestError as error:
            await sender.send(_failure(_id_of(line), error))
            return True
        return await self._answer(request, lines, sender)

    async def _answer(self, request: LocalRequest, lines: LineReader, sender: _Sender) -> bool:
        """False where the client ended a stream by closing its side."""
        try:
            stream = self._verbs.stream(request)
            if stream is None:
                result = await self._verbs.result(request)
                await sender.send(LocalReply(v=LOCAL_API_VERSION, id=request.id, result=result, end=True))
                return True
            return await self._pass_on(request, stream, lines, sender)
        except RequestError as error:
            await sender.send(_failure(request.id, error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # a fault of this daemon: the client gets one line, the log the story
            _log.exception("control_request_failed", verb=request.verb)
            text = f"{request.verb}: an internal error of exod ({type(error).__name__}); its log has the details"
            await sender.send(_failure(request.id, RequestError("internal_error", text, ExitCode.INTERNAL)))
        return True

    async def _pass_on(
        self, request: LocalRequest, stream: AsyncGenerator[Any, None], lines: LineReader, sender: _Sender
    ) -> bool:
        """Sends a stream's items until it ends, or until the client closes its side."""

        async def send_all() -> None:
            async with contextlib.aclosing(stream) as items:
                async for item in items:
                    await sender.send(LocalReply(v=LOCAL_API_VERSION, id=request.id, item=item))
            await sender.send(LocalReply(v=LOCAL_API_VERSION, id=request.id, end=True))

        sending = asyncio.create_task(send_all(), name=f"control stream {request.verb}")
        ended = asyncio.create_task(lines.ended(), name="control stream's client")
        try:
            await asyncio.wait({sending, ended}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                return True
            return False
        finally:
            for task in (sending, ended):
                task.cancel()
            await asyncio.wait({sending, ended})


def _parse(line: bytes) -> LocalRequest:
    try:
        request = from_json(line, LocalRequest)
    except WrongShapeError as error:
        field, problem = field_problem(error.cause)
        raise RequestError("invalid_request", f"{field or 'the request'}: {problem}") from None
    except DecodingError as error:
        raise RequestError("invalid_json", f"a request is one line of JSON, this is not: {error}") from None
    if request.v != LOCAL_API_VERSION:
        text = f"v: this exod speaks version {LOCAL_API_VERSION}, the request is of version {request.v}"
        raise RequestError("unsupported_version", f"{text}: exoctl and exod must be of one release")
    return request


class _OnlyId(msgspec.Struct):
    id: int | str = 0


def _id_of(line: bytes) -> int | str:
    """The id of a request that is wrong elsewhere, so that its sender can tell which one failed."""
    try:
        return from_json(line, _OnlyId).id
    except DecodingError:
        return 0


def _failure(request_id: int | str, error: RequestError) -> LocalReply:
    body = LocalError(code=error.code, text=error.text, exit_code=int(error.exit_code))
    return LocalReply(v=LOCAL_API_VERSION, id=request_id, error=body, end=True)


# --- taking the socket's place ------------------------------------------------------------------------------


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600 from its first moment. Raises StartError."""
    name = os.fsencode(path)
    if len(name) > MAX_SOCKET_PATH_BYTES:
        raise StartError(
            f"{path}: a control socket's path may have {MAX_SOCKET_PATH_BYTES} bytes, this has {len(name)}; "
            "choose a shorter node.data_dir"
        )
    _clear_the_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise StartError(f"{path}: the control socket cannot be made: {error.strerror}") from None
    finally:
        os.umask(previous)
    listener.setblocking(False)
    return listener


def _clear_the_way(path: Path) -> None:
    """Removes what a dead daemon left at `path`. Raises StartError where something else is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"{path}: the control socket's place cannot be looked at: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path}: is in the way of the control socket and is no socket; move it away")
    if _is_answered(path):
        raise StartError(f"{path.parent}: another exod runs on this data folder; stop it first")
    with contextlib.suppress(FileNotFoundError):
        try:
            path.unlink()
        except PermissionError as error:
            raise StartError(f"{path}: a dead socket cannot be removed: {error.strerror}") from None


def _is_answered(path: Path) -> bool:
    """Does anyone listen at `path`?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(LIVENESS_CHECK_S)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES, errno.EPERM)
    return True
