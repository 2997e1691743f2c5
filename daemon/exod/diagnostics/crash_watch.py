"""Crashes of the daemon and its workers, noticed: by how a worker ended, and by the reports that macOS writes.

A worker's crash is reported at once, with the last lines that it wrote. Minutes later macOS has a report of it, and
of a daemon that crashed before this one was started: files of the system's folders are looked at a few times a
minute, when they have a fitting name, size and age. A file that cannot be read is looked at again while it may
still be written, then told in one line in the log; nothing is ever changed or removed. Decides which reports are
ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod.diagnostics.event_log import EventLog
from exod.model import Event, NodeId
from exod.platform.crash_parser import CrashReport, CrashTextError, last_words, parse_crash, parse_ips

log = structlog.get_logger()

LOOK_INTERVAL_S: Final = 15.0
"""macOS takes some seconds to a minute to write a report."""

MAX_AGE_S: Final = 86_400.0
"""What crashed longer ago than a day is no news."""

MAX_BYTES: Final = 8 * 1024 * 1024
"""A report of a Python process with hundreds of libraries has about half a megabyte."""

MAX_FILES: Final = 64
"""The newest of each look: a process that crashes in a loop must not keep a core busy."""

SETTLES_IN_S: Final = 60.0
"""A file younger than this may still be written."""

CRASH_SIGNALS: Final = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)
"""What a process does to itself; others were sent by someone."""

JOBS: Final = ("com.exod.",)
"""How the labels of exod's jobs begin (see `launchd/`)."""

WATCHDOG_CURE: Final = (
    'the GPU waited too long: set engine.sync = "safe", or lower engine.safe_context; exoctl events shows what was '
    "slow"
)


class Crash(msgspec.Struct, frozen=True):
    """One crash, as the event `crash.seen` tells it."""

    text: str
    gpu_watchdog: bool
    cure: str
    process: str
    pid: int | None
    exception: str
    at: float
    frames: tuple[str, ...] = ()
    incident: str = ""
    file: str = ""


def from_exit(pid: int, code: int, written: str, now: float) -> Crash | None:
    """Of a worker that ended with `code` after it had written this; None where that is no crash."""
    if code >= 0 or -code not in CRASH_SIGNALS:
        return None
    name, words = signal.Signals(-code).name, last_words(written)
    crash = CrashReport("", "worker", pid, None, "", (), now, name, words, ())
    return _crash(crash, "")


def from_report(report: CrashReport, file: Path) -> Crash:
    return _crash(report, str(file))


def _crash(report: CrashReport, file: str) -> Crash:
    pid = f" (pid {report.pid})" if report.pid is not None else ""
    words = f"{report.process or 'a process'}{pid} crashed with {report.exception or 'an unknown exception'}"
    return Crash(
        text=f"{words}: {report.text}" if report.text else words,
        gpu_watchdog=report.gpu_watchdog,
        cure=WATCHDOG_CURE if report.gpu_watchdog else _cure(file),
        process=report.process,
        pid=report.pid,
        exception=report.exception,
        at=report.at,
        frames=report.frames,
        incident=report.incident,
        file=file,
    )


def _cure(file: str) -> str:
    files = f"{file}, worker.log" if file else "worker.log of the data folder"
    return f"if it comes again, report it with {files} and the output of: exoctl events --since 1h --json"


class CrashReports:
    """The system's folders. `pids` are those of this daemon and its workers; `told` the incidents that an earlier
    life told.
    """

    def __init__(
        self, folders: Iterable[Path], pids: set[int], told: Iterable[str], prefix: Path | None = None
    ) -> None:
        self._folders = tuple(folders)
        self._pids = pids
        self._told = set(told)
        self._prefix = f"{prefix or Path(sys.prefix)}/" if prefix or sys.prefix != sys.base_prefix else ""
        self._done: set[Path] = set()

    async def run(self, on_crash: Callable[[Crash], None], now: Callable[[], float]) -> None:
        """Looks until cancelled; returns at once where the system writes no reports."""
        while self._folders:
            for crash in await asyncio.to_thread(self.look, now()):
                on_crash(crash)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def look(self, now: float) -> list[Crash]:
        """Crashes of ours that were not told yet, oldest first."""
        files = self._files(now)
        self._done.intersection_update(file for _, file in files)
        found = []
        for modified_at, file in files[-MAX_FILES:]:
            if file in self._done:
                continue
            try:
                report = _read(file)
            except (CrashTextError, OSError) as error:
                if now - modified_at > SETTLES_IN_S:
                    self._done.add(file)
                    log.warning("crash_report_unreadable", file=str(file), error=str(error))
                continue
            self._done.add(file)
            if report is not None and self._is_ours(report) and (report.incident or str(file)) not in self._told:
                self._told.add(report.incident or str(file))
                found.append(from_report(report, file))
        return found

    def _files(self, now: float) -> list[tuple[float, Path]]:
        files = []
        for folder in self._folders:
            try:
                entries = [file for file in folder.iterdir() if file.suffix in (".ips", ".crash")]
            except OSError:
                continue  # it is made with the first report; the system's own may be closed to this user
            for file in entries:
                try:
                    status = file.stat()
                except OSError:
                    continue  # it was just moved to Retired
                if now - status.st_mtime <= MAX_AGE_S and status.st_size <= MAX_BYTES:
                    files.append((status.st_mtime, file))
        return sorted(files)

    def _is_ours(self, report: CrashReport) -> bool:
        """By the job it ran in, by its pid or parent's, or by a library of this Python environment."""
        return (
            report.coalition.startswith(JOBS)
            or bool({report.pid, report.parent_pid} & self._pids)
            or (bool(self._prefix) and any(image.startswith(self._prefix) for image in report.images))
        )


class CrashWatch:
    """The crashes of this daemon and of the workers that it started, written as events `crash.seen`.

    `on_news` is told after each.
    """

    def __init__(self, me: NodeId, folders: Iterable[Path], events: EventLog, on_news: Callable[[], None]) -> None:
        self._me, self._events, self._on_news = me, events, on_news
        self._pids = {os.getpid()}
        seen = events.recent("crash.seen", since=0.0)
        told = (str(event.data.get("incident") or event.data.get("file")) for event in seen)
        self._reports = CrashReports(folders, self._pids, told)

    async def run(self) -> None:
        """Follows the system's reports until cancelled."""
        await self._reports.run(self._tell, time.time)

    def worker_exited(self, pid: int, code: int, written: str) -> None:
        self._pids.add(pid)  # its report comes later
        if (crash := from_exit(pid, code, written, time.time())) is not None:
            self._tell(crash)

    def _tell(self, crash: Crash) -> None:
        self._events.write(Event(0.0, "crash.seen", self._me, msgspec.to_builtins(crash)))
        self._on_news()


def _read(file: Path) -> CrashReport | None:
    text = file.read_text(encoding="utf-8", errors="replace")
    return parse_ips(text) if file.suffix == ".ips" else parse_crash(text)
