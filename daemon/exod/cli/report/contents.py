"""What a bug report is made of: one text for each thing that was asked, read or run. Redacts nothing itself.

Every part is bounded in bytes and in time, and a part that cannot be had says why in its place: a report is of use
just when something does not run. Nothing on the host is changed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

MAX_PART_BYTES: Final = 2 * 1024 * 1024
"""Of each part, its end: the event log is bounded to this, and logs are of most use at their end."""

COMMAND_DEADLINE_S: Final = 20.0
"""`system_profiler` takes seconds on a busy Mac, `log show` of ten minutes as long."""

CRASH_HEAD_BYTES: Final = 16 * 1024
"""The header, the exception and the first threads of a crash report."""

MAX_CRASHES: Final = 8
"""The newest ones."""

PACKAGES: Final = ("exod", "mlx", "mlx-lm", "mlx-metal", "msgspec", "zeroconf", "psutil", "aiomqtt", "uvloop")


class ReportFile(msgspec.Struct, frozen=True):
    """One file of the report."""

    name: str
    """Its path in the archive."""
    text: str


def versions() -> ReportFile:
    lines = [f"system {platform.platform()}", f"machine {platform.machine()}", f"python {sys.version}"]
    lines.append(f"environment {sys.prefix}")
    for name in PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return ReportFile("versions.txt", "\n".join(lines) + "\n")


def outputs(commands: Sequence[Sequence[str]]) -> list[ReportFile]:
    """The commands run side by side, each to its own file, with its arguments and exit code on top."""
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(_output, commands))
    names: dict[str, int] = {}
    parts = []
    for argv, text in zip(commands, texts, strict=True):
        name = _file_name(argv)
        names[name] = names.get(name, 0) + 1
        suffix = f"-{names[name]}" if names[name] > 1 else ""
        parts.append(ReportFile(f"system/{name}{suffix}.txt", text))
    return parts


def _output(argv: Sequence[str]) -> str:
    head = f"$ {' '.join(argv)}\n"
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{head}[it did not end within {COMMAND_DEADLINE_S:g} s]\n"
    except OSError as error:
        return f"{head}[{error.strerror}]\n"
    said = bounded(done.stdout) + bounded(done.stderr)
    return f"{head}[exit code {done.returncode}]\n{said}"


def _file_name(argv: Sequence[str]) -> str:
    words = [Path(argv[0]).name, *(word.lstrip("-") for word in argv[1:3])]
    return "-".join("".join(char for char in word if char.isalnum() or char in "._") for word in words if word)


def file(path: Path, name: str) -> ReportFile:
    """The end of a file of this host."""
    return ReportFile(name, read_end(path, MAX_PART_BYTES))


def read_end(path: Path, most: int) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - most))
            return stream.read(most).decode("utf-8", "replace")
    except OSError as error:
        return f"[{path}: {error.strerror}]\n"


def crash_heads(folders: Sequence[Path]) -> Iterator[ReportFile]:
    """The beginnings of the newest reports of crashed processes of ours."""
    found: list[tuple[float, Path]] = []
    for folder in folders:
        try:
            found += [(one.stat().st_mtime, one) for one in folder.iterdir() if _is_ours(one)]
        except OSError:
            continue
    for _, path in sorted(found, reverse=True)[:MAX_CRASHES]:
        try:
            with path.open("rb") as stream:
                yield ReportFile(f"crashes/{path.name}", stream.read(CRASH_HEAD_BYTES).decode("utf-8", "replace"))
        except OSError as error:
            yield ReportFile(f"crashes/{path.name}", f"[{error.strerror}]\n")


def _is_ours(path: Path) -> bool:
    """A daemon is called exod as a service, and Python where it is started by hand, as its workers are."""
    return path.suffix in {".ips", ".crash"} and path.name.lower().startswith(("exod", "python"))


def bounded(data: bytes) -> str:
    cut = "[… the beginning is left out]\n" if len(data) > MAX_PART_BYTES else ""
    return cut + data[-MAX_PART_BYTES:].decode("utf-8", "replace")
