"""Was a process killed because memory ran out? By the kernel's own counters: the control group's and the host's.

Linux counts kills in `memory.events` (cgroup v2), `memory.oom_control` (v1) and `/proc/vmstat`. Elsewhere nothing
is known, and nothing is said. Never raises. Sizes in bytes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec
import psutil

from exoengine.model_files.memory_fit import gib

WORKER_GOES_FIRST: Final = 500
"""Of 1000: as if it held half of all memory more than it does. Anybody may raise it, only root may lower it."""

UNLIMITED: Final = 1 << 60
"""cgroup v1 says 2^63 less a page where there is no limit."""


class OomCounters(msgspec.Struct, frozen=True):
    group: int
    """Kills in this process's control group; 0 where there is none."""
    host: int
    limit: int | None
    """Of the control group."""

    def kill_since(self, before: OomCounters) -> str:
        """What happened, with figures, as the end of a sentence; empty where nobody was killed."""
        if self.group > before.group and self.limit is not None:
            return f"the kernel killed it for memory: its control group has a limit of {gib(self.limit)}"
        if self.group > before.group or self.host > before.host:
            memory = psutil.virtual_memory()
            return f"the kernel killed it for memory: {gib(memory.available)} of {gib(memory.total)} are free now"
        return ""


def give_up_first(pid: int, root: Path = Path("/")) -> None:
    """Where memory runs out, this process goes before the daemon that can tell of it."""
    with contextlib.suppress(OSError):
        (root / f"proc/{pid}/oom_score_adj").write_text(f"{WORKER_GOES_FIRST}\n")


def read_counters(root: Path = Path("/")) -> OomCounters:
    group, limit = 0, None
    for folder in _groups(root):
        counted = _count(folder / "memory.events")
        if counted is None:
            counted = _count(folder / "memory.oom_control")
        if counted is not None:
            group, limit = counted, _limit(folder)
            break
    return OomCounters(group, _count(root / "proc/vmstat") or 0, limit)


def _groups(root: Path) -> list[Path]:
    """Where this process's control group may be: a container sees its own as the top."""
    mounted = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found += [mounted / "memory" / path.lstrip("/"), mounted / "memory"]
        elif not controllers:
            found += [mounted / path.lstrip("/"), mounted / "unified" / path.lstrip("/")]
    return found


def _count(file: Path) -> int | None:
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def _limit(folder: Path) -> int | None:
    text = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() and int(text) < UNLIMITED else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
