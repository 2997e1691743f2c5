"""Writes a bug report: one `.tar.gz`, readable by its owner alone. Raises ReportError where that fails; nothing
is left then.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from exod.cli.report.contents import ReportFile
from exod.errors import ExitCode, ExodError


class ReportError(ExodError):
    """The archive could not be written. `at_name`: what was typed names no place for it."""

    def __init__(self, text: str, *, at_name: bool = False) -> None:
        super().__init__(text)
        self.exit_code = ExitCode.USAGE if at_name else ExitCode.INTERNAL


def write(path: Path, parts: Sequence[ReportFile], at: float) -> None:
    """`at`: Unix seconds, the time of every file in it. A file that is there is not written over."""
    folder = path.name.removesuffix(".gz").removesuffix(".tar") or "exod-report"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ReportError(f"{path}: is there already; name another with --output", at_name=True) from None
    except OSError as error:
        text = f"{path}: cannot be written: {error.strerror}; name another with --output"
        raise ReportError(text, at_name=True) from None
    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for part in parts:
                data = part.text.encode("utf-8", "replace")
                entry = tarfile.TarInfo(f"{folder}/{part.name}")
                entry.size, entry.mtime, entry.mode = len(data), int(at), 0o600
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        path.unlink(missing_ok=True)  # half an archive would be in the way of the next one
        raise ReportError(f"{path}: cannot be written: {error.strerror}; name another with --output") from None
