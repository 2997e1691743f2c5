"""The worker process of this node's rank: starts it, speaks with it, ends it, adopts one that outlived a daemon.

A worker runs in a session of its own, so that it outlives a daemon that crashes. Its socket's path, which is this
data folder's alone, stands in its command line: by that the next daemon knows it, connects and adopts it, or ends
it where it cannot. No process is ever signalled that is not known so. Decides nothing: `rank.py` says when to
start and kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
import psutil
import structlog

from exod.engine_service.oom_counters import give_up_first, read_counters
from exod.engine_service.spare_worker import SpareWorker, launched
from exod.platform.crash_parser import last_words, uncaught
from exoengine.decoding import DecodingError, from_json
from exoengine.native.build import cache_in
from exoengine.protocol import (
    FromWorker,
    Hello,
    Leave,
    Loaded,
    ProtocolError,
    ToWorker,
    decode_from_worker,
    encode,
    read_frame,
)

log = structlog.get_logger()

RECORD_FILE: Final = "worker.json"
LOG_FILE: Final = "worker.log"
MAX_LOG_BYTES: Final = 4 * 1024 * 1024
"""The log is moved aside once when a worker starts and it is larger; while it runs, the worker bounds it itself."""

MAX_WORDS_BYTES: Final = 16 * 1024
"""Of a crash: Python prints the stacks of all threads after the line that says why."""

MAX_SOCKET_PATH_BYTES: Final = 100
"""sockaddr_un holds 104 bytes on macOS and 108 on Linux."""

CONNECT_INTERVAL_S: Final = 0.01
"""A spare listens a few milliseconds after its word; an attempt costs some microseconds."""

ADOPT_DEADLINE_S: Final = 8.0
"""A worker's control thread greets at once, whatever its main thread does; one that was stopped does not."""

LEAVE_DEADLINE_S: Final = 10.0
"""A step under way, and the end of the group on all ranks; launchd gives the daemon 30 s in all."""

GRACE_S: Final = 3.0
"""Between SIGTERM and SIGKILL."""

FREE_WITHIN_S: Final = 3.0
"""On a Mac also where a worker is killed: one that ends by itself frees the GPU's wired memory, one that is killed
in the midst of its work may leave it behind until a restart. It lengthens a recovery by as much at most."""


OWN_SIGNALS: Final = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)
"""What a process does to itself, after it has said why. Others come from outside."""

NOT_IMPORTED: Final = re.compile(r"(ModuleNotFoundError|ImportError): ")
INSTALL_CURE: Final = (
    "a package is missing or broken: exoctl doctor names what is missing; installing exod again mends both"
)

WATCH_INTERVAL_S: Final = 0.05
"""How often the end of a process is looked for that is not our child."""

COMMAND: Final = (sys.executable, "-P", "-m", "exoengine.worker")
"""`-P`: without it Python imports from the current folder first, and the author of that folder's files would run
code in the worker."""


class Record(msgspec.Struct):
    """Where to look first. A pid alone may belong to another process by now: its command line decides."""

    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class WorkerProcess:
    """At most one worker. `on_message` and `on_gone` are called from the loop."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        on_message: Callable[[FromWorker], None],
        on_gone: Callable[[str], None],
        command: tuple[str, ...] = COMMAND,
        keeps_spare: bool = False,
    ) -> None:
        self._command = command
        self.spare = SpareWorker(self._launch_spare, keeps_spare)
        self._swept = False
        """Was the whole host looked through for a worker without a record, once in this daemon's life?"""
        self._folder = folder
        self._environment = environment
        self._on_message, self._on_gone = on_message, on_gone
        self.free_within_s = FREE_WITHIN_S if sys.platform == "darwin" else 0.0
        """How long a worker that is to be killed has to free what it wired."""
        self.on_exit: Callable[[int, int, str], None] = lambda pid, code, written: None
        """Takes how a worker that this daemon started has ended: its pid, exit code, and what it wrote last."""
        self.killed_for_memory = False
        """The last one: did the kernel's counters show a kill in its life?"""
        self._oom_before = read_counters()
        self._log_start = 0
        self._life: asyncio.Task[None] | None = None
        self._process: psutil.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Adopts the worker that an earlier daemon left, or starts one; `on_gone` says when it ended."""
        self._life = tasks.create_task(self._live(), name="worker")

    def tell(self, message: ToWorker) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def kill(self, text: str, at_once: bool = False) -> None:
        """From outside: for a worker that no message reaches. It may be stopped or hang in the kernel. `at_once`:
        one that SIGTERM does not reach either is given no time to free what it wired.
        """
        process = self._process
        if process is None:
            return
        log.warning("worker_killed", pid=process.pid, text=text)
        if self.free_within_s > 0 and not at_once:
            _signal(process, signal.SIGTERM)
            _signal(process, signal.SIGCONT)  # one that is stopped must run to end
            asyncio.get_running_loop().call_later(self.free_within_s, _signal, process, signal.SIGKILL)
        else:
            _signal(process, signal.SIGKILL)

    def wake(self) -> None:
        """Continues a process that was stopped from outside; to any other this does nothing."""
        if self._process is not None:
            with contextlib.suppress(psutil.Error):
                if self._process.status() == psutil.STATUS_STOPPED:
                    log.warning("worker_continued", pid=self._process.pid, text="it had been stopped from outside")
                    _signal(self._process, signal.SIGCONT)

    async def leave(self, deadline_s: float = LEAVE_DEADLINE_S) -> None:
        """Asks the worker to leave its group and end, and ends the spare; escalates past the deadline. Returns when
        it is gone.
        """
        await self.spare.leave()
        process, life = self._process, self._life
        if process is None:
            if life is not None:  # it is just being started
                life.cancel()
                await _ended(life, GRACE_S)
            # What a killed daemon left: this one may be told to leave before it has come to adopt it.
            await asyncio.to_thread(self.sweep)
            return
        assert life is not None
        self.tell(Leave(deadline_s))
        if await _ended(life, deadline_s + 1.0):
            return
        log.warning("worker_did_not_leave", pid=process.pid, waited_s=deadline_s)
        _signal(process, signal.SIGTERM)
        if await _ended(life, GRACE_S):
            return
        # Killing a rank inside a Thunderbolt transfer can leave wired memory behind until a reboot.
        log.error("worker_killed", pid=process.pid, text="it did not end when asked; memory may stay wired")
        _signal(process, signal.SIGKILL)
        await _ended(life, GRACE_S)

    # --- one life -------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        text = "it could not be started"
        self.killed_for_memory, self._oom_before = False, read_counters()
        try:
            child = None
            reader = await self._adopt()
            if reader is None:
                child = await self._spawn()
                reader = await self._connect(self._socket_path(), child)
            if reader is not None:
                await self._listen(reader, adopted=child is None)
            text = await self._bury(child)
        except OSError as error:
            text = f"it could not be started: {error.strerror}"
            self.kill(text)
        except Exception as error:
            text = f"an internal error of exod ({type(error).__name__}); the daemon's log has the details"
            log.error("internal_error", task="worker", exc_info=error)
            self.kill(text)
        finally:
            if self._writer is not None:
                self._writer.close()
            self._process = self._writer = None
        self._on_gone(text)

    async def _spawn(self) -> asyncio.subprocess.Process:
        path = self._socket_path()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        child = self.spare.take()
        if child is None:
            child = await launched(self._launch(asyncio.subprocess.DEVNULL))
        else:
            self._log_start = self._log_size()
            log.info("spare_worker_used", pid=child.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(child.pid)
            self._record(child.pid)
        give_up_first(child.pid)
        log.info("worker_started", pid=child.pid)
        return child

    async def _launch_spare(self, standard_input: int) -> asyncio.subprocess.Process:
        return await self._launch(standard_input, "--spare")

    async def _launch(self, standard_input: int, *options: str) -> asyncio.subprocess.Process:
        with self._log() as output:
            if not options:
                self._log_start = self._log_size()
            return await asyncio.create_subprocess_exec(
                *self._command,
                *options,
                "--native",
                str(cache_in(self._folder)),
                "--socket",
                self._socket_path(),
                stdin=standard_input,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    def _log_size(self) -> int:
        try:
            return (self._folder / LOG_FILE).stat().st_size
        except OSError:
            return 0

    def _log(self) -> BinaryIO:
        """Where the worker writes. A full disk must not cost the rank: what it says is then lost."""
        log_file = self._folder / LOG_FILE
        try:
            if log_file.exists() and log_file.stat().st_size > MAX_LOG_BYTES:
                log_file.replace(log_file.with_suffix(".log.1"))
            return log_file.open("ab")
        except OSError as error:
            log.warning("worker_without_log", file=str(log_file), error=error.strerror)
            return Path(os.devnull).open("ab")

    def _record(self, pid: int) -> None:
        """For the next daemon. A full disk must not cost the rank: that daemon then starts another."""
        try:
            (self._folder / RECORD_FILE).write_bytes(msgspec.json.encode(Record(pid)))
        except OSError as error:
            log.warning("worker_not_recorded", pid=pid, error=error.strerror)

    async def _connect(self, path: str, child: asyncio.subprocess.Process) -> asyncio.StreamReader | None:
        """Connects as soon as the worker listens; None when it ended before. The rank's deadline bounds this."""
        while child.returncode is None:
            try:
                reader, self._writer = await asyncio.open_unix_connection(path)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(CONNECT_INTERVAL_S)
            else:
                return reader
        return None

    async def _listen(self, reader: asyncio.StreamReader, adopted: bool) -> None:
        try:
            async with asyncio.timeout(ADOPT_DEADLINE_S if adopted else None):
                body = await read_frame(reader)
            while body is not None:
                self._take(decode_from_worker(body))
                body = await read_frame(reader)
        except ProtocolError as error:
            log.error("worker_protocol_broken", error=str(error))
        except TimeoutError:
            log.warning("worker_mute", text="an earlier daemon left it, and it does not answer")
            self.kill("it did not answer the daemon that adopted it")

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Hello):
            self._know(message.pid)
        # One that was adopted with its layers says hello with them, and is told to load nothing.
        if isinstance(message, Loaded) or (isinstance(message, Hello) and message.load is not None):
            self.spare.prepare()
        self._on_message(message)

    def _know(self, pid: int) -> None:
        """A spare of an earlier daemon that was still ending may have been found, not the one that listens."""
        if self._process is not None and pid != self._process.pid:
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(pid)
                self._process = found if self._is_ours(found.cmdline()) else self._process

    async def _bury(self, child: asyncio.subprocess.Process | None) -> str:
        """The connection is gone: the process ends too, now or by force. Returns what became of it, as text."""
        process = self._process
        if child is not None:
            code = await self._end_of_child(child)
            written = self._last_written()
            text = self._oom_text(code) or ending(code, written)
            self.on_exit(child.pid, code, written)
        else:
            text = "its connection was lost"
            if process is not None and not await _is_gone(process, GRACE_S):
                await asyncio.to_thread(self._end, process)
                await _is_gone(process, GRACE_S)
        with contextlib.suppress(FileNotFoundError):
            (self._folder / RECORD_FILE).unlink()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket_path())
        log.info("worker_ended", text=text)
        return text

    def _oom_text(self, code: int) -> str:
        text = read_counters().kill_since(self._oom_before) if code == -signal.SIGKILL else ""
        self.killed_for_memory = bool(text)
        return text

    async def _end_of_child(self, child: asyncio.subprocess.Process) -> int:
        """Its exit code. One that lingers is killed, after it had the time to free its memory where that counts."""
        ends = [(GRACE_S, child.kill)]
        if self.free_within_s > 0:
            ends = [(GRACE_S, child.terminate), (self.free_within_s, child.kill)]
        for patience_s, end in ends:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    return await child.wait()
            with contextlib.suppress(ProcessLookupError):
                end()
        return await child.wait()

    def _last_written(self) -> str:
        """The end of what this worker has written to its log."""
        try:
            with (self._folder / LOG_FILE).open("rb") as stream:
                end = stream.seek(0, os.SEEK_END)
                start = self._log_start if self._log_start <= end else 0  # the worker cut it
                stream.seek(max(start, end - MAX_WORDS_BYTES))
                return stream.read(MAX_WORDS_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    # --- what an earlier life left --------------------------------------------------------------------------

    async def _adopt(self) -> asyncio.StreamReader | None:
        """Connects to the worker that an earlier daemon left; ends one that does not listen."""
        process = self._recorded()
        if process is None and not self._swept:
            process = await asyncio.to_thread(self._found)
        self._swept = True
        if process is None:
            return None
        try:
            async with asyncio.timeout(ADOPT_DEADLINE_S):
                reader, self._writer = await asyncio.open_unix_connection(self._socket_path())
        except (OSError, TimeoutError):
            log.warning("worker_swept", pid=process.pid, text="an earlier daemon left it, and it does not listen")
            await asyncio.to_thread(self._end, process)
            await _is_gone(process, GRACE_S)
            return None
        self._process = process
        log.info("worker_adopted", pid=process.pid)
        return reader

    def sweep(self) -> None:
        """Ends a worker that an earlier daemon left where this one will host no rank."""
        process = self._recorded() or self._found()
        if process is not None:
            log.warning("worker_swept", pid=process.pid, text="an earlier daemon left it")
            self._end(process)

    def _end(self, process: psutil.Process) -> None:
        """Ends what an earlier daemon left. Waits as long as it may take to free its memory: not for the loop."""
        if self.free_within_s > 0:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(psutil.Error):
                process.wait(self.free_within_s)
        _signal(process, signal.SIGKILL)

    def _recorded(self) -> psutil.Process | None:
        """The recorded worker, if it lives and is beyond doubt ours."""
        try:
            record = from_json((self._folder / RECORD_FILE).read_bytes(), Record)
            process = psutil.Process(record.pid)
            return process if self._is_ours(process.cmdline()) else None
        except (OSError, DecodingError, psutil.Error):
            return None

    def _found(self) -> psutil.Process | None:
        """A worker of this folder without a record: its daemon died in the moment between."""
        for process in psutil.process_iter(["cmdline"]):
            if self._is_ours(process.info["cmdline"] or []):
                return process
        return None

    def _is_ours(self, command_line: list[str]) -> bool:
        """A spare of an earlier daemon, too: it ends by itself, and one that went to work is a worker."""
        return self._command[-1] in command_line and command_line[-2:] == ["--socket", self._socket_path()]

    def _socket_path(self) -> str:
        path = str((self._folder / "worker.sock").absolute())
        if len(path.encode()) <= MAX_SOCKET_PATH_BYTES:
            return path
        return str(_private_folder() / f"{zlib.crc32(path.encode()):08x}.sock")


def _private_folder() -> Path:
    """For sockets whose own folder's path is too long. Raises OSError where somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"exod-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, f"{folder} is not this user's alone; remove it")
    return folder


async def _ended(life: asyncio.Task[None], timeout_s: float) -> bool:
    done, _ = await asyncio.wait([life], timeout=timeout_s)
    return bool(done)


async def _is_gone(process: psutil.Process, timeout_s: float) -> bool:
    """Waits for the end of a process that need not be our child."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(WATCH_INTERVAL_S)
    return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    """psutil checks that the pid still belongs to the same process before it signals."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def ending(code: int, written: str) -> str:
    """What became of a worker that ended with `code` after it had written this, as text."""
    if code == 0:
        return "it ended"
    if code < 0:
        known = {int(number): number.name for number in signal.Signals}
        words = uncaught(written) if -code in OWN_SIGNALS else ""
        return f"it was killed by {known.get(-code, f'signal {-code}')}" + f": {words}" * bool(words)
    words = last_words(written)
    if not words:
        return f"it ended with exit code {code} and wrote nothing"
    cure = INSTALL_CURE if NOT_IMPORTED.match(words) else f"{LOG_FILE} in the data folder has more"
    return f"it ended with exit code {code}: {words}; {cure}"
