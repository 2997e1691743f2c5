"""Writes a bug report: one `.tar.gz`, readable by its owner alone. Raises ReportError where that fails."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from exod.cli.report.contents import ReportFile
from exod.errors import ExodError


class ReportError(ExodError):
    """The archive could not be written."""


def write(path: Path, parts: Sequence[ReportFile], at: float) -> None:
    """`at`: Unix seconds, the time of every file in it. A file that is there is not written over."""
    folder = path.name.removesuffix(".gz").removesuffix(".tar") or "exod-report"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for part in parts:
                data = part.text.encode("utf-8", "replace")
                entry = tarfile.TarInfo(f"{folder}/{part.name}")
                entry.size, entry.mtime, entry.mode = len(data), int(at), 0o600
                archive.addfile(entry, io.BytesIO(data))
    except FileExistsError:
        raise ReportError(f"{path}: is there already; name another with --output") from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror}; name another with --output") from None
