"""Is a file what was announced? Its checksum is computed beside its coming, so that its end needs no second
reading.

Two digests: SHA-256, which weights are named by, and for small files git's SHA-1 with the SHA-256 that a node adds.
Raises OSError.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exod.model_transfer.transfer_messages import OfferedFile

CHECKED_AT_ONCE: Final = 1 << 22
FOLLOWED_AT_ONCE: Final = 1 << 18
"""One buffer that stays in a processor's cache: fresh megabytes for each read cost as much as the digest."""
FOLLOWED_BYTES: Final = 1 << 26
"""Smaller files are read again at their end, which takes less than a thread does."""

WAIT_S: Final = 0.05


class FollowingDigest:
    """Reads a growing part from the page cache in a thread of its own. A context manager; leaving it ends the
    thread.
    """

    def __init__(self, part: Path, file: OfferedFile) -> None:
        self._part, self._size = part, file.size
        self._follows = len(file.etag) == 64 and file.size >= FOLLOWED_BYTES
        self._running = hashlib.sha256()
        self._read = self._valid = 0
        self._more = threading.Condition()
        self._ended = self._failed = False
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> FollowingDigest:
        if self._follows:
            self._valid = self._part.stat().st_size if self._part.exists() else 0
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._more:
            self._ended = True
            self._more.notify()

    def grew(self, count: int) -> None:
        with self._more:
            self._valid += count
            self._more.notify()

    def begin_anew(self) -> None:
        """The part is written from its first byte again: it is read at its end."""
        with self._more:
            self._failed = True
            self._more.notify()

    def sha256(self, worked: Callable[[int], None]) -> str | None:
        """Of the whole file, once it is whole; None where it was not followed."""
        if not self._follows:
            return None
        with self._more:
            while self._read < self._size and not self._failed and self._thread.is_alive():
                before = self._read
                self._more.wait(WAIT_S)
                worked(self._read - before)
            return None if self._failed or self._read != self._size else self._running.hexdigest()

    def _follow(self) -> None:
        position, piece = 0, memoryview(bytearray(FOLLOWED_AT_ONCE))
        while (upto := self._next(position)) is not None:
            try:
                with self._part.open("rb", buffering=0) as stream:
                    stream.seek(position)
                    while position < upto and (count := stream.readinto(piece[: upto - position])):
                        self._running.update(piece[:count])
                        position += count
            except OSError:
                self.begin_anew()
                return

    def _next(self, position: int) -> int | None:
        """How far may be read; None where nothing more is wanted."""
        with self._more:
            self._read = position
            self._more.notify()
            while self._valid <= position and not self._ended and not self._failed:
                self._more.wait()
            return None if self._ended or self._failed else self._valid


def is_whole(part: Path, file: OfferedFile, digest: FollowingDigest, worked: Callable[[int], None]) -> bool:
    """Does a part of the announced size hold what was announced?"""
    if (found := digest.sha256(worked)) is not None:
        return found == file.etag == (file.sha256 or file.etag)
    named = hashlib.sha256() if len(file.etag) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    plain = hashlib.sha256()
    with part.open("rb") as stream:
        while piece := stream.read(CHECKED_AT_ONCE):
            named.update(piece)
            if file.sha256:
                plain.update(piece)
            worked(len(piece))
    return named.hexdigest() == file.etag and file.sha256 in ("", plain.hexdigest())
