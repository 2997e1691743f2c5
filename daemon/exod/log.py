"""Logging: structlog events, for people on a terminal and as JSON lines otherwise. Called once at start.

Everything goes through here: what libraries log by the standard module becomes an event, too. An event that is
logged again and again is written a few times a minute, then once a minute with the count of what was left out, so
that no stranger can fill a disk.

Under launchd the log is a file of our own that is rotated here: launchd holds the descriptor of its own files, so
renaming those would go on in the renamed one. Standard error is then left to crashes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from exod.plain_text import printable

FILE_VARIABLE: Final = "EXOD_SERVICE_LOG"
"""Set by the LaunchAgent: where the log goes if the configuration names no `log.file`."""

MAX_STANDARD_ERROR_BYTES: Final = 1024 * 1024
"""Some hundred tracebacks. What is there at a start is of crashes before; more than this is cut to nothing."""

BURST: Final = 20
FLOOD_S: Final = 60.0
"""So many lines of one event pass; then it is one line in this time. What happens to a cluster makes fewer lines,
and the event log keeps each of them."""

MAX_COUNTED: Final = 1024
"""Events that are told apart: more than there are. The oldest is forgotten first."""

MAX_LIBRARY_TEXT: Final = 1000

DECIMALS: Final = 3

_COUNTED_BY: Final = "_counted_by"
"""What a line is counted by where its event's name says too little: removed before it is written."""


class StandardError:
    """Standard error as a log's stream. Never raises: a line that a full disk or a reader that is gone does not
    take is lost, and the daemon goes on.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


class RotatingFile:
    """A log file that is moved aside (`exod.log.1`, `.2`, …) before it passes `max_bytes`; the newest `keep` stay.

    Never raises: where the disk is full or the folder gone, lines go to standard error.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._stream: TextIO | None = None
        self._size = 0

    def write(self, text: str) -> int:
        size = len(text.encode("utf-8", "replace"))
        try:
            stream = self._current() or self._open()
            if self._size and self._size + size > self._max_bytes:
                self._rotate(stream)
                stream = self._open()
            stream.write(text)
            self._size += size
        except OSError:
            StandardError().write(text)
        return len(text)

    def _current(self) -> TextIO | None:
        """None where somebody removed or moved the file: what is written into such a one nobody finds."""
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(stream.fileno())):
                    return stream
            self._stream = None
            stream.close()
        return None

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.flush()

    def _open(self) -> TextIO:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # No link is followed: in a folder that others can write, it would let root append to any file.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        self._stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")
        self._size = os.fstat(descriptor).st_size
        return self._stream

    def _rotate(self, stream: TextIO) -> None:
        stream.close()
        self._stream = None
        for number in range(self._keep, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)


def configure(level: str, output: str, file: Path | None = None, max_bytes: int = 0, keep: int = 0) -> None:
    """`level` and `output` are the configuration's `log.level` and `log.format`; with `file` the log goes there."""
    console = output == "console" or (output == "auto" and file is None and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    # Both have what a log writes with, and no more of a stream.
    stream: Any = StandardError() if file is None else RotatingFile(file, max_bytes, keep)
    if file is not None:
        trim_standard_error()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            EventLimit(),
            rounded,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
            _without_escapes if console else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [FromLibraries()]
    root.setLevel(logging.WARNING)  # libraries stay quiet unless something is wrong


def rounded(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A structlog processor: figures are read by people. Of milliseconds a microsecond is left."""
    return {
        name: round(value, DECIMALS) if isinstance(value, float) and math.isfinite(value) else value
        for name, value in event.items()
    }


class EventLimit:
    """A structlog processor that lets no event fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[object, tuple[float, int]] = {}
        """By event: when its minute began, and how many lines were asked for since."""

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        key = event.pop(_COUNTED_BY, event.get("event"))
        now = self._clock()
        begun, count = self._counts.pop(key, (now, 0))
        over = now - begun >= FLOOD_S
        if not over:
            self._counts[key] = (begun, count + 1)
            if count >= BURST:
                raise structlog.DropEvent
            return event
        left_out = count - BURST
        if left_out > 0:
            event["left_out"] = left_out
        # Within a flood each minute has one line; after a minute below the bound all may pass again.
        self._counts[key] = (now, BURST if left_out > 0 else 1)
        while len(self._counts) > MAX_COUNTED:
            self._counts.pop(next(iter(self._counts)))
        return event


class FromLibraries(logging.Handler):
    """Turns what a library logs into an event `library_says`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        tell = structlog.get_logger().error if record.levelno >= logging.ERROR else structlog.get_logger().warning
        by = (record.name, str(record.msg)[:MAX_LIBRARY_TEXT])
        tell(
            "library_says",
            library=record.name,
            text=printable(text, MAX_LIBRARY_TEXT),
            exc_info=record.exc_info,
            **{_COUNTED_BY: by},
        )


def trim_standard_error(descriptor: int = 2, max_bytes: int = MAX_STANDARD_ERROR_BYTES) -> None:
    """Empties it where it is a file that has grown too large: launchd only ever appends to it."""
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size > max_bytes:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)


def _without_escapes(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """For a terminal, which would obey them; JSON escapes them by itself."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value)
    return event
