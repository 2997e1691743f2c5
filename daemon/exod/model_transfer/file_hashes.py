"""The SHA-256 of files on this disk, read once: known again by size, time of change and inode.

Reading 100 GB takes minutes, so what was read is kept over restarts. Runs in threads, never on the event loop.
Raises OSError where a file cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from exod import data_files

FILE: Final = "file-hashes.json"
MAX_KEPT: Final = 4096
"""Some models of some hundred files; the oldest are dropped, and read again if they are asked for."""
PIECE_BYTES: Final = 1 << 22


class FileHashes:
    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None

    def sha256(self, path: Path, reading: Callable[[], None]) -> str:
        """`reading` is called again and again while the file is read."""
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            key = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
            with self._lock:
                digest = self._all().get(key)
            if digest is not None:
                return digest
            running = hashlib.sha256()
            while piece := stream.read(PIECE_BYTES):
                running.update(piece)
                reading()
        self._keep(key, running.hexdigest())
        return running.hexdigest()

    def _all(self) -> dict[str, str]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError):
                found = data_files.read(self._file, dict[str, str])
                self._known = found if isinstance(found, dict) else {}
        return self._known

    def _keep(self, key: str, digest: str) -> None:
        with self._lock:
            known = self._all()
            known[key] = digest
            for old in list(known)[: max(0, len(known) - MAX_KEPT)]:
                del known[old]
            fresh = self._file.with_suffix(".new")
            with contextlib.suppress(OSError):  # a full disk costs a second reading
                fresh.write_bytes(msgspec.json.encode(known))
                os.replace(fresh, self._file)
