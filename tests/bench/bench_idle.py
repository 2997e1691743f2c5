"""What a daemon costs that has nothing to do: processor and memory in a mesh of two, as configured by default.

All three paths are probed, the engine is ready and generates nothing, MQTT publishes to a broker of its own. The
workers and brokers are other processes and are not counted. Nothing asks the daemons anything meanwhile.

Waking up is most of the cost, and what it costs depends on the machine and on what else it does: beside the daemons
runs an event loop that is woken as often and does nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.rows import Row
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.topology import Lab

MINUTES = 5.0
READY_WITHIN_S = 120.0
MODEL = "embedded:count"
SETTLED_S = 45.0  # after the model is loaded: first figures are published, links are probed as where nobody asks
EMPTY_LOOP = """
import asyncio, socket, uvloop

async def main():
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    loop.add_reader(sock.fileno(), sock.recv, 2048)
    while True:
        sock.sendto(bytes(300), sock.getsockname())
        await asyncio.sleep(1 / 30)

uvloop.run(main())
"""
"""Woken 60 times a second: by 30 timers, and by the datagrams that they send."""


def run(minutes: float = MINUTES, model: str = MODEL) -> list[Row]:
    with Lab(2) as lab:
        cluster = Cluster(lab, config={"engine": {"model": model}})
        cluster.start()
        cluster.wait_ready("thunderbolt", READY_WITHIN_S)
        empty = subprocess.Popen([sys.executable, "-c", EMPTY_LOOP])
        try:
            time.sleep(SETTLED_S)
            return _watch(cluster.nodes, empty.pid, minutes * 60)
        finally:
            empty.kill()
            empty.wait()


def _watch(nodes: list[Node], empty: int, stretch_s: float) -> list[Row]:
    pids = {node.name: node.pid for node in nodes} | {"an empty loop, for comparison": empty}
    began = time.monotonic()
    before = {name: (processor_s(pid), wakeups(pid)) for name, pid in pids.items()}
    time.sleep(stretch_s)
    elapsed_s = time.monotonic() - began
    rows = []
    for name, pid in pids.items():
        spent_s, woken = before[name]
        share, rate = (processor_s(pid) - spent_s) / elapsed_s * 100, (wakeups(pid) - woken) / elapsed_s
        is_daemon = pid != empty
        rows.append(Row(f"{name}: processor, of a core", share, "%", 1.0 if is_daemon else None))
        rows.append(Row(f"{name}: wakeups", rate, "/s"))
        if is_daemon:
            rows.append(Row(f"{name}: memory (RSS)", resident_mib(pid), "MiB", 80.0))
    return rows


def processor_s(pid: int) -> float:
    """User and system time of all threads (fields 14 and 15 of proc(5) stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return _status(pid, "VmRSS") / 1024


def wakeups(pid: int) -> int:
    """How often the main thread went to sleep of its own will, each time to be woken again."""
    return _status(pid, "voluntary_ctxt_switches")


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
