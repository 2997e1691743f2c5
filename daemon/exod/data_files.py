"""Reads the files of the data folder that exod wrote itself: a damaged one is set aside and never ends a start.

Decides where a damaged file goes: beside itself, with the ending `.damaged`, in the place of an older such file.
Never decides what a missing file means.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec
import structlog

from exoengine.decoding import DecodingError, from_json

log = structlog.get_logger()

MAX_BYTES: Final = 4 * 1024 * 1024
"""The largest such file (64 peers with their names and addresses) is far below 100 KB."""

Value = TypeVar("Value")


class Damaged(msgspec.Struct, frozen=True):
    """A file that could not be understood, and where it is now (empty where it could not be moved)."""

    file: str
    moved_to: str
    problem: str


def open_regular(file: Path) -> BinaryIO:
    """Raises OSError, too, for a pipe or a device, on which a start would wait for ever."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    raise OSError(errno.EINVAL, "it is no regular file", str(file))


def read(file: Path, shape: type[Value]) -> Value | Damaged:
    """What the file holds, or Damaged once it was moved away. Raises OSError (FileNotFoundError where there is
    none).
    """
    with open_regular(file) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return set_aside(file, f"it is larger than {MAX_BYTES} bytes")
    try:
        return from_json(data, shape)
    except DecodingError as error:
        return set_aside(file, str(error))


def set_aside(file: Path, problem: str) -> Damaged:
    """Moves a file away that cannot be used, so that a new one can take its place."""
    aside = file.with_name(f"{file.name}.damaged")
    try:
        os.replace(file, aside)
    except OSError as error:
        log.warning("file_damaged", file=str(file), problem=problem, not_moved=error.strerror)
        return Damaged(str(file), "", problem)
    log.warning("file_damaged", file=str(file), problem=problem, moved_to=str(aside))
    return Damaged(str(file), str(aside), problem)
