"""What a daemon costs that has nothing to do: processor and memory in a mesh of two, as configured by default.

All three paths are probed, the engine is ready and generates nothing, MQTT publishes to a broker of its own. The
workers and brokers are other processes and are not counted. Nothing asks the daemons anything meanwhile. Called by
`python -m tests.bench idle`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.bench.rows import Row
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.topology import Lab

MINUTES = 5.0
READY_WITHIN_S = 120.0
SETTLED_S = 15.0  # after the model is loaded: first figures are published, standbys are at their slow pace


def run(minutes: float = MINUTES) -> list[Row]:
    with Lab(2) as lab:
        cluster = Cluster(lab)
        cluster.start()
        cluster.wait_ready("thunderbolt", READY_WITHIN_S)
        time.sleep(SETTLED_S)
        began = time.monotonic()
        before = {node.name: (processor_s(node), wakeups(node)) for node in cluster.nodes}
        time.sleep(minutes * 60)
        elapsed_s = time.monotonic() - began
        rows = []
        for node in cluster.nodes:
            spent_s, woken = before[node.name]
            share = (processor_s(node) - spent_s) / elapsed_s * 100
            rows.append(Row(f"{node.name}: processor, % of a core over {elapsed_s:.0f} s", share, "%", 1.0))
            rows.append(Row(f"{node.name}: memory (RSS)", resident_mib(node), "MiB", 80.0))
            rows.append(Row(f"{node.name}: wakeups a second", (wakeups(node) - woken) / elapsed_s, "/s"))
        return rows


def processor_s(node: Node) -> float:
    """User and system time of the daemon, all threads (fields 14 and 15 of proc(5) stat)."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(node: Node) -> float:
    return _status(node, "VmRSS") / 1024


def wakeups(node: Node) -> int:
    """How often the daemon's main thread went to sleep of its own will, each time to be woken again."""
    return _status(node, "voluntary_ctxt_switches")


def _status(node: Node, field: str) -> int:
    lines = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
