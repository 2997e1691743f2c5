"""Runs the real `exoctl` as people do: a process of its own, in pipes or a terminal, against a fake daemon."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Final

from exod.daemon_api.shapes import StatusReport
from exod.local_api.server import LocalApi
from tests.fake_daemon import FakeDaemon

DEADLINE_S: Final = 30.0

EXOCTL: Final = (sys.executable, "-m", "exod.cli.main")


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Exoctl:
    """`exoctl` of one test: its socket, its own home, and nothing of the machine's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "exod.sock"
        wanted = ("PATH", "LANG", "VIRTUAL_ENV", "PYTHONPATH")
        kept = {name: os.environ[name] for name in wanted if name in os.environ}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
            "PYTHONIOENCODING": "utf-8",
            "TERM": "xterm-256color",
            "TZ": "UTC",
        }

    async def run(self, *arguments: str, stdin: str | None = None, bare: bool = False) -> Ended:
        """To its end, in pipes. `bare`: without --socket."""
        process = await self.start(*arguments, stdin=stdin is not None, bare=bare)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(stdin.encode() if stdin is not None else None)
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())

    async def start(self, *arguments: str, stdin: bool = False, bare: bool = False) -> asyncio.subprocess.Process:
        where = () if bare else ("--socket", str(self.socket))
        return await asyncio.create_subprocess_exec(
            *EXOCTL,
            *where,
            *arguments,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
        )

    @asynccontextmanager
    async def terminal(self, *arguments: str, columns: int = 100, rows: int = 40) -> AsyncIterator[Terminal]:
        """`exoctl` with a terminal for its input and output."""
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *EXOCTL,
            "--socket",
            str(self.socket),
            *arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self.environment,
            preexec_fn=lambda: _take_terminal(theirs),
        )
        os.close(theirs)
        terminal = Terminal(ours, process)
        try:
            yield terminal
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            terminal.close()


def _take_terminal(descriptor: int) -> None:
    """Makes it the terminal that Ctrl-C and Ctrl-D act through, as a login does."""
    os.setsid()
    ioctl(descriptor, termios.TIOCSCTTY, 0)


class Terminal:
    """Our end of a pseudo terminal: what was shown so far, and a keyboard."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self._descriptor = descriptor
        self.process = process
        self.shown = ""
        self._news = asyncio.Event()
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the other end is closed: EIO on Linux
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.shown += data.decode("utf-8", "replace")
        self._news.set()

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def until(self, text: str, times: int = 1) -> None:
        """Until `text` was shown, `times` times in all."""
        async with asyncio.timeout(DEADLINE_S):
            while self.shown.count(text) < times:
                self._news.clear()
                await self._news.wait()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
        self._read_rest()
        return code

    def _read_rest(self) -> None:
        try:
            while data := os.read(self._descriptor, 65536):
                self.shown += data.decode("utf-8", "replace")
        except OSError:
            pass

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


@asynccontextmanager
async def served(
    exoctl: Exoctl, status: StatusReport | None = None, *, debug: bool = True
) -> AsyncIterator[FakeDaemon]:
    """A fake daemon on this exoctl's socket."""
    daemon = FakeDaemon(status)
    shell = LocalApi(daemon, exoctl.socket, debug_enabled=debug)
    shell.start()
    running = asyncio.create_task(shell.run(), name="control socket")
    await asyncio.sleep(0)
    try:
        yield daemon
    finally:
        running.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({running})
