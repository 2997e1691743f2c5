"""Logging: structlog events, for people on a terminal and as JSON lines otherwise. Called once at start.

Under launchd the log is a file of our own that is rotated here: launchd holds the descriptor of its own files, so
renaming those would go on in the renamed one. Standard error is then left to crashes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Final, TextIO

import structlog

FILE_VARIABLE: Final = "EXOD_SERVICE_LOG"
"""Set by the LaunchAgent: where the log goes if the configuration names no `log.file`."""

MAX_STANDARD_ERROR_BYTES: Final = 1024 * 1024
"""Some hundred tracebacks. What is there at a start is of crashes before; more than this is cut to nothing."""


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
            stream = self._stream or self._open()
            if self._size and self._size + size > self._max_bytes:
                self._rotate(stream)
                stream = self._open()
            stream.write(text)
            self._size += size
        except OSError:
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.flush()

    def _open(self) -> TextIO:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stream = self._path.open("a", encoding="utf-8", errors="replace")
        self._size = self._path.stat().st_size
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
    stream: TextIO = sys.stderr if file is None else RotatingFile(file, max_bytes, keep)  # type: ignore[assignment]
    if file is not None:
        trim_standard_error()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if console else "iso", utc=not console),
            structlog.processors.format_exc_info if not console else _keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    # Libraries that log through the standard module stay quiet unless something is wrong.
    logging.basicConfig(level=logging.WARNING, stream=stream, format="%(levelname)s %(name)s: %(message)s")


def trim_standard_error(descriptor: int = 2, max_bytes: int = MAX_STANDARD_ERROR_BYTES) -> None:
    """Empties it where it is a file that has grown too large: launchd only ever appends to it."""
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size > max_bytes:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)


def _keep(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
