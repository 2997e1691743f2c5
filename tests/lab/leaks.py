"""What one node holds: processes, descriptors, memory, sockets and files, each by name.

Decides what counts as a leak, and what is the coming and going of a living daemon. Never ends anything.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.node import API_PORT, MESH_PORT, RING_PORTS, Node

MORE_DESCRIPTORS = 6
"""So many more may be held than before: a control connection for each path and direction comes and goes."""
MORE_RESIDENT_MIB = 64
"""Caches fill, and the allocator keeps what it had at its peak of eight sequences: 43 MiB after 60 faults, 52 after
200. But no fault may cost memory each time."""
MORE_AT_PEAK_MIB = 120
"""A rank that brings eight sequences into a batch holds each twice for a moment, beside the finished ones."""
LOOK_EVERY_S = 2.0
MIB = 1024 * 1024
PAGE_MIB = 4096 / MIB
MQTT_PORT = 1883
SERVICES = {MESH_PORT: "mesh", API_PORT: "api", MQTT_PORT: "mqtt"} | dict.fromkeys(RING_PORTS, "ring")
TCP_STATES = {
    "01": "established", "02": "connecting", "04": "closing", "05": "closing", "08": "closed by the peer",
    "09": "closing", "0A": "listen", "0B": "closing",
}  # fmt: skip
"""proc(5). Left out: TIME_WAIT and half-open ones, which are the kernel's and hold no descriptor."""
NOBODY = "0"
"""The inode of a socket that no process holds: over a cut link the kernel tries its last bytes for minutes."""
COMES_LATER = frozenset({"data/throughput.json"})
"""A node writes what it has learned of its throughput every few minutes."""
ROLES = {"exoengine.worker": "rank", "mosquitto": "broker", "/exod run": "exod"}
"""By what only such a command has in it: a lab's own command names its namespace, exodlab-…."""


@dataclass(frozen=True)
class Weight:
    """Figures by the name of what they are of; of several processes of one name the largest."""

    processes: Mapping[str, int]
    descriptors: Mapping[str, int]
    resident_mib: Mapping[str, float]
    sockets: Mapping[str, int]
    files: frozenset[str]
    log_kib: float = 0.0


def weigh(node: Node) -> Weight:
    processes: Counter[str] = Counter()
    descriptors: dict[str, int] = {}
    resident: dict[str, float] = {}
    for pid in node.host.processes():
        try:
            name, held, mib = _process(pid)
        except OSError:
            continue  # it ended meanwhile
        processes[name] += 1
        descriptors[name] = max(held, descriptors.get(name, 0))
        resident[name] = max(mib, resident.get(name, 0.0))
    files = {path.relative_to(node.folder): path for path in node.folder.rglob("*") if not path.is_dir()}
    logs = [path for path in files.values() if path.suffix in (".log", ".ndjson", ".1")]
    return Weight(
        processes,
        descriptors,
        resident,
        Counter(_sockets(node)),
        frozenset(map(str, files)),
        sum(path.stat().st_size for path in logs if path.exists()) / 1024,
    )


def processes_of(node: Node) -> list[tuple[int, str]]:
    """(pid, name) of each process in the node's host."""
    found = []
    for pid in node.host.processes():
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append((pid, _process(pid)[0]))
    return found


def is_command_of_lab(name: str) -> bool:
    """Of another lane, which may be in the host at any time: `ip`, `nft`, `exoctl`, or none yet."""
    return not name or name.startswith(("ip ", "nft ")) or "/exoctl " in name


def _process(pid: int) -> tuple[str, int, float]:
    """(name, descriptors, resident MiB). OSError where it ended."""
    folder = Path(f"/proc/{pid}")
    command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    name = next((role for mark, role in ROLES.items() if mark in command.split(" --config")[0]), command)
    held = len(list((folder / "fd").iterdir()))
    return name, held, int((folder / "statm").read_text().split()[1]) * PAGE_MIB


def _sockets(node: Node) -> Iterator[str]:
    """Each socket of the host by protocol, service and state."""
    with node.host.entered():
        tables = {
            kind: Path(f"/proc/thread-self/net/{kind}").read_text().splitlines()[1:]
            for kind in ("tcp", "tcp6", "udp", "udp6")
        }
    for kind, rows in tables.items():
        for row in rows:
            _, local, remote, state, _, _, _, _, _, inode, *_ = row.split()
            ports = [int(end.rpartition(":")[2], 16) for end in (local, remote)]
            service = next((SERVICES[port] for port in ports if port in SERVICES), "other")
            if kind.startswith("udp"):
                yield f"{kind} {service}"
            elif state in TCP_STATES and inode != NOBODY:
                yield f"{kind} {service} {TCP_STATES[state]}"


def grown(before: Weight, after: Weight) -> list[str]:
    """What a node holds that it did not hold before, in words."""
    found = [
        f"{count} processes of {name}, {before.processes.get(name, 0)} before"
        for name, count in after.processes.items()
        if count > before.processes.get(name, 0)
    ]
    found += [
        f"{count} descriptors of {name}, {before.descriptors[name]} before"
        for name, count in after.descriptors.items()
        if count > before.descriptors.get(name, count) + MORE_DESCRIPTORS
    ]
    found += [
        f"{mib:.0f} MiB in {name}, {before.resident_mib[name]:.0f} before"
        for name, mib in after.resident_mib.items()
        if mib > before.resident_mib.get(name, mib) + MORE_RESIDENT_MIB
    ]
    found += [
        f"{count} of {name}, {before.sockets.get(name, 0)} before"
        for name, count in after.sockets.items()
        if count > before.sockets.get(name, 0)
    ]
    return found + [f"file {name} was left behind" for name in sorted(after.files - before.files - COMES_LATER)]


@dataclass
class Life:
    """One process over its time in the run, at its largest."""

    role: str
    node: str
    began: float
    lived_s: float = 0.0
    resident_mib: float = 0.0
    descriptors: int = 0


class Watch(threading.Thread):
    """Notes every process of the nodes all the time: one that is killed takes what it held along."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(name="watch", daemon=True)
        self._nodes = nodes
        self._lives: dict[int, Life] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            for node in self._nodes:
                for pid in node.host.processes():
                    with contextlib.suppress(OSError):  # it ended meanwhile
                        self._look(node, pid, time.monotonic())

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _look(self, node: Node, pid: int, now: float) -> None:
        role, held, mib = _process(pid)
        life = self._lives.setdefault(pid, Life(role, node.name, now))
        life.lived_s = now - life.began
        life.resident_mib = max(life.resident_mib, mib)
        life.descriptors = max(life.descriptors, held)

    def largest(self) -> list[Life]:
        """Of each node and role the life that held the most memory."""
        most: dict[tuple[str, str], Life] = {}
        for life in self._lives.values():
            known = most.setdefault((life.node, life.role), life)
            if life.resident_mib > known.resident_mib:
                most[life.node, life.role] = life
        return [most[key] for key in sorted(most)]


def outgrown(lives: list[Life], before: Mapping[str, Weight]) -> list[str]:
    """Which of them held more than a warm process of their role had held before the first fault."""
    return [
        f"{life.node}: {life.role} came to {life.resident_mib:.0f} MiB in {life.lived_s:.0f} s, {warm:.0f} before"
        for life in lives
        if (warm := before[life.node].resident_mib.get(life.role)) is not None
        and life.resident_mib > warm + MORE_AT_PEAK_MIB
    ]
