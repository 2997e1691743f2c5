"""Faults beyond a cut cable and a killed process, each one broken and mended as a `with`.

Of the ring alone (probes pass, its packets do not), of addresses, and of a host: its disk, descriptors, memory,
pace and clock. A fault is made on nodes that run or before they start. What a fault gives is a word on whom it met.
Decides nothing about when, nor what is right then. `faults.py` draws them, tests name them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tests.lab import filters
from tests.lab.cluster import Cluster
from tests.lab.leaks import processes_of
from tests.lab.node import RING_PORTS, Node
from tests.lab.topology import CABLE_MTU, Host

CABLE: Final = "bridge0"
FULL_FRAME_BYTES: Final = 1400
SMALL_MTU: Final = 1280
"""The least that IPv6 allows, and less than an Ethernet's."""
DISK_MIB: Final = 48
"""Of a node whose disk can be filled: its data folder has some MiB."""
STEP_S: Final = 0.2
"""A slow node stands still for most of each."""
STANDS_S: Final = 0.15
STARTED_HOLDS: Final = 25
"""Descriptors of a daemon that runs, at the least. One that is starting could not even load its program."""
MEMORY_GROUPS: Final = Path("/sys/fs/cgroup/memory")
KILLED_BELOW_BYTES: Final = 1 << 20
"""Less than any page that a rank may ask for next."""

Breaks = Callable[[Cluster, random.Random], AbstractContextManager[str]]


def _one(cluster: Cluster, chosen: random.Random) -> Node:
    return chosen.choice(cluster.nodes)


# --- the ring alone -----------------------------------------------------------------------------------------------


def _filtered(set_filter: Callable[[Host, random.Random], object]) -> Breaks:
    @contextlib.contextmanager
    def broken(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
        node = _one(cluster, chosen)
        with filters.lifted(node.host):
            set_filter(node.host, chosen)
            yield node.name

    return broken


def _after_bytes(answer: filters.Answer) -> Breaks:
    return _filtered(lambda host, chosen: filters.end_ring_after(host, CABLE, chosen.choice((8, 64, 512)), answer))


@contextlib.contextmanager
def _swallowed(cluster: Cluster, _: random.Random) -> Iterator[str]:
    hosts = [node.host for node in cluster.nodes]
    with filters.lifted(*hosts):
        for host in hosts:
            filters.swallow_large(host, CABLE, FULL_FRAME_BYTES)
        yield "both ways"


@contextlib.contextmanager
def _reset_one_by_one(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    node = _one(cluster, chosen)
    connections = node.host.connections(RING_PORTS)
    with filters.lifted(node.host):
        for connection in connections:
            filters.reset_connection(node.host, connection)
        yield f"{node.name}, {len(connections)} connections"


@contextlib.contextmanager
def _deaf(cluster: Cluster, _: random.Random) -> Iterator[str]:
    """The first two hear nothing of each other, on any path; whoever else there is hears both."""
    first, second = (node.host for node in cluster.nodes[:2])
    with filters.lifted(first, second):
        for host, other in ((first, second), (second, first)):
            filters.deafen(host, *(address.partition("/")[0] for address in other.addresses.values()))
        yield f"{first.name} and {second.name}"


# --- links and addresses ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _small_mtu(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """At one end alone."""
    host = _one(cluster, chosen).host
    host.ip(f"link set {CABLE} mtu {SMALL_MTU}")
    try:
        yield host.name
    finally:
        host.ip(f"link set {CABLE} mtu {CABLE_MTU}")


@contextlib.contextmanager
def _other_address(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """The cable's address changes under the daemon, and comes back."""
    host = _one(cluster, chosen).host
    usual = host.addresses[CABLE]
    network, _, rest = usual.rpartition(".")
    other = f"{network}.1{rest}"
    host.remove_address(CABLE, usual)  # a second one of its network would go with it
    host.add_address(CABLE, other)
    try:
        yield f"{host.name}: {usual} became {other}"
    finally:
        host.remove_address(CABLE, other)
        host.add_address(CABLE, usual)


@contextlib.contextmanager
def _same_address(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """Two hosts have one address on the Ethernet."""
    host = _one(cluster, chosen).host
    other = next(node.host for node in cluster.nodes if node.host is not host)
    address = other.addresses["en0"]
    host.add_address("en0", address)
    try:
        yield f"{host.name} has {address}, too"
    finally:
        host.remove_address("en0", address)
        for one in (host, other):
            one.ip("neigh flush dev en0")


@contextlib.contextmanager
def _flaps(cluster: Cluster, _: random.Random) -> Iterator[str]:
    """The cable comes and goes five times a second."""
    cable, ended = cluster.lab.link(CABLE), threading.Event()

    def flap() -> None:
        while not ended.wait(0.1):
            cable.cut()
            ended.wait(0.1)
            cable.restore()

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    try:
        yield "at 5 Hz"
    finally:
        ended.set()
        thread.join()
        cable.restore()


# --- hosts --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(node: Node) -> Iterator[None]:
    """The data folder of a node that does not run yet lies on a small disk of its own, until it has ended."""
    kept = {one.name: one.read_bytes() for one in node.data_dir.iterdir() if one.is_file()}
    options = f"size={DISK_MIB}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", node.data_dir], check=True)
    try:
        for name, content in kept.items():
            (node.data_dir / name).touch(mode=0o600)
            (node.data_dir / name).write_bytes(content)
        yield
    finally:
        subprocess.run(["umount", "-l", node.data_dir], check=True)


def fill(folder: Path) -> Path:
    """Until nothing more can be written there. Returns the file that takes the room."""
    file = folder / "full"
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(65_536)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return file


@contextlib.contextmanager
def _full_disk(cluster: Cluster, _: random.Random) -> Iterator[str]:
    """Of a node with a small disk."""
    node = next((one for one in cluster.nodes if os.path.ismount(one.data_dir)), None)
    if node is None:
        yield "no node has a disk of its own"
        return
    file = fill(node.data_dir)
    try:
        yield node.name
    finally:
        file.unlink()


@contextlib.contextmanager
def _no_descriptors(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """The daemon can open nothing more."""
    node = _one(cluster, chosen)
    if not node.running:
        yield f"{node.name} does not run"
        return
    pid = node.pid
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{pid}/fd"))
    if held < STARTED_HOLDS:
        yield f"{node.name} starts"
        return
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, usual[1]))
    try:
        yield f"{node.name} may hold {held}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


def ranks_of(node: Node) -> list[int]:
    return [pid for pid, name in processes_of(node) if name == "rank"]


def kill_ranks(node: Node) -> None:
    """Whether its daemon runs or not."""
    _signal(ranks_of(node), signal.SIGKILL)


@contextlib.contextmanager
def _slow_rank(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """It is given a quarter of the time."""
    node, ended = _one(cluster, chosen), threading.Event()

    def hold() -> None:
        while not ended.wait(STEP_S - STANDS_S):
            pids = ranks_of(node)
            _signal(pids, signal.SIGSTOP)
            ended.wait(STANDS_S)
            _signal(pids, signal.SIGCONT)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        yield node.name
    finally:
        ended.set()
        thread.join()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def little_memory(name: str, pids: list[int]) -> Iterator[None]:
    """These may have next to nothing more, and are made to ask: the kernel kills them. `name` is the group's."""
    group = MEMORY_GROUPS / name
    group.mkdir(exist_ok=True)
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid))
        (group / "memory.limit_in_bytes").write_text(str(KILLED_BELOW_BYTES))
        for pid in pids:
            with contextlib.suppress(OSError):  # it is killed meanwhile
                _own_its_code(pid)
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError, OSError):
                (MEMORY_GROUPS / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


def _own_its_code(pid: int) -> None:
    """Each page of code that is written becomes the process's own, whatever is written: here what it held.

    A rank that decodes may need no new page for seconds, and then no limit kills it.
    """
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    spans = [one[0].split("-") for one in maps if one[1] == "r-xp" and one[-1].startswith("/")]
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for first, end in spans:
            for at in range(int(first, 16), int(end, 16), resource.getpagesize()):
                os.pwrite(memory.fileno(), os.pread(memory.fileno(), 1, at), at)


@contextlib.contextmanager
def _memory_kill(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """The kernel kills the rank, because its group of processes may not have what it asks for next."""
    node = _one(cluster, chosen)
    pids = ranks_of(node)
    with little_memory(f"{cluster.lab.name}-{node.name}", pids):
        yield f"{node.name} {pids}"


@contextlib.contextmanager
def _clock_jump(cluster: Cluster, chosen: random.Random) -> Iterator[str]:
    """The host's wall clock is set, and set back. For nodes that were started with `moved_clock`."""
    node = _one(cluster, chosen)
    by_s = chosen.choice((-86_400.0, -30.0, 30.0, 86_400.0))
    (node.folder / CLOCK_FILE).write_text(str(by_s))
    try:
        yield f"{node.name} by {by_s:g} s"
    finally:
        (node.folder / CLOCK_FILE).write_text("0")


CLOCK_FILE: Final = "clock"
CLOCK_CODE: Final = """
import time
_time, _time_ns = time.time, time.time_ns
def _moved_s():
    try:
        with open({file!r}) as stream:
            return float(stream.read() or 0)
    except (OSError, ValueError):
        return 0.0
time.time = lambda: _time() + _moved_s()
time.time_ns = lambda: _time_ns() + int(_moved_s() * 1e9)
"""


def moved_clock(node: Node) -> None:
    """From its next start on the node's processes see a wall clock of their own, which a fault can set."""
    folder = node.folder / "python"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CLOCK_CODE.format(file=str(node.folder / CLOCK_FILE)))
    (node.folder / CLOCK_FILE).write_text("0")
    node.environment["PYTHONPATH"] = str(folder)


def forget_state(node: Node) -> None:
    """Of a node that does not run: all but the key of its cluster."""
    for one in node.data_dir.iterdir():
        if one.name != "cluster.key":
            shutil.rmtree(one) if one.is_dir() else one.unlink()


RING_KINDS: Final[dict[str, Breaks]] = {
    "ring port silent": _filtered(lambda host, chosen: filters.filter_ring_port(host, CABLE, "silence")),
    "ring port reset": _filtered(lambda host, chosen: filters.filter_ring_port(host, CABLE, "reset")),
    "ring callers unanswered": _filtered(lambda host, chosen: filters.ignore_ring_callers(host, CABLE)),
    "ring silent after some bytes": _after_bytes("silence"),
    "ring reset after some bytes": _after_bytes("reset"),
    "ring slow": _filtered(lambda host, chosen: filters.slow_ring(host, CABLE, chosen.choice((64, 256)))),
    "large frames swallowed": _swallowed,
    "ring connections reset one by one": _reset_one_by_one,
}
LINK_KINDS: Final[dict[str, Breaks]] = {
    "small MTU": _small_mtu,
    "address changes": _other_address,
    "duplicate address": _same_address,
    "flaps at 5 Hz": _flaps,
    "two members deaf": _deaf,
}
HOST_KINDS: Final[dict[str, Breaks]] = {
    "full disk": _full_disk,
    "no descriptors": _no_descriptors,
    "slow rank": _slow_rank,
    "clock jump": _clock_jump,
    **({"memory kill": _memory_kill} if os.access(MEMORY_GROUPS, os.W_OK) else {}),
}
ALL_KINDS: Final = {**RING_KINDS, **LINK_KINDS, **HOST_KINDS}
