"""Network namespaces: named, entered and swept.

Decides what a lab's namespaces are called, so that labs that run at once never meet, and which namespaces belong to
a lab whose process has died. Never touches a namespace that does not carry the lab's prefix, nor a process outside
such a namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "exodlab"
NAME = re.compile(rf"^({PREFIX}-(\d+)-(\d+)-\d+)-\w+$")
NAMED = Path("/run/netns")
CLONE_NEWNET = 0x40000000
# A process that holds its namespace after SIGKILL is in the kernel's hands; this is patience with those hands.
GONE_WITHIN_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)
_labs_of_this_process = itertools.count()


def ip(*arguments: str, namespace: str | None = None, commands: list[str] | None = None) -> str:
    """Runs ip(8), in `namespace` if given, with `commands` as a batch if given; returns what it printed."""
    argv = ["ip", *(["-n", namespace] if namespace else []), *(["-batch", "-"] if commands else arguments)]
    text = "\n".join(commands) + "\n" if commands else None
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} {commands or ''}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Puts the calling thread into `namespace`. Sockets and devices opened meanwhile stay in it for life."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = -1
    try:
        there = os.open(NAMED / namespace, os.O_RDONLY)
        _setns(there, namespace)
        yield
    finally:
        _setns(home, "the former namespace")
        os.close(home)
        if there >= 0:
            os.close(there)


def _setns(descriptor: int, what: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot enter {what}: {os.strerror(error)}")


def new_lab_name() -> str:
    """A name no other lab has: this process by pid and start time, and a count within it."""
    pid = os.getpid()
    return f"{PREFIX}-{pid}-{_started(pid)}-{next(_labs_of_this_process)}"


def _started(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot (field 22 of proc(5) stat); None if it is not running."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def folder_of(lab: str) -> Path:
    """Where a lab keeps its control socket, its nodes' data folders and their logs. Short: sockets go there."""
    return Path(tempfile.gettempdir()) / lab


def namespaces_of(lab: str) -> list[str]:
    """The namespaces of one lab that exist now."""
    return sorted(name for name in _listed() if name.startswith(lab + "-"))


def processes_in(namespace: str) -> list[int]:
    """Pids of all processes in `namespace`."""
    try:
        return [int(pid) for pid in ip("netns", "pids", namespace).split()]
    except RuntimeError:
        return []  # it vanished between listing and asking


def remove_lab(lab: str) -> None:
    """Kills what runs in the lab's namespaces, and removes them and its folder. Safe to repeat."""
    for namespace in namespaces_of(lab):
        deadline = time.monotonic() + GONE_WITHIN_S
        while (pids := processes_in(namespace)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        with contextlib.suppress(RuntimeError):
            ip("netns", "delete", namespace)
    shutil.rmtree(folder_of(lab), ignore_errors=True)


def sweep_dead_labs() -> list[str]:
    """Removes the namespaces of labs whose process is dead, and returns those labs' names."""
    found = {match[1]: match for name in _listed() if (match := NAME.match(name))}
    dead = [lab for lab, match in found.items() if _started(int(match[2])) != int(match[3])]
    for lab in dead:
        remove_lab(lab)
    return dead


def _listed() -> list[str]:
    return os.listdir(NAMED) if NAMED.is_dir() else []


@functools.cache
def missing_capability() -> str | None:
    """Why this machine cannot hold a lab, in words; None where it can. Tries it once, for real."""
    if sys.platform != "linux":
        return f"the lab needs Linux network namespaces; this is {sys.platform}"
    if os.geteuid() != 0:
        return "the lab needs root: run it as root, or with sudo"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the lab needs /dev/net/tun: `modprobe tun`, or give the container that device"
    trial = f"{new_lab_name()}-trial"
    try:
        ip("netns", "add", trial)
        ip(commands=["link add t0 type veth peer name t1", "tuntap add t2 mode tap"], namespace=trial)
    except FileNotFoundError:
        return "the lab needs ip(8): install the package iproute2"
    except RuntimeError as error:
        return f"the lab needs network namespaces, veth and tap: {error}"
    finally:
        with contextlib.suppress(RuntimeError, FileNotFoundError):
            ip("netns", "delete", trial)
    return None
