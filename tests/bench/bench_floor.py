"""How far the RTT floor that `exod` shows lies from what `ping` measures on the same path at the same time.

Both take the smallest of ten round trips, ping at the pace of the selected path; medians of those floors over the
stretch are compared, once with idle daemons and once while clients ask one of them for its status without a pause:
what keeps the daemon busy must not show in the floor, because the kernel stamps what it could not read in time.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.rows import Row
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.pairs import new_pair, path_of, start_afresh
from tests.lab.topology import Lab

INTERFACES = ("bridge0", "en0", "utun4")
STRETCH_S = 20.0
PING_EVERY_S = 0.05
LOOK_EVERY_S = 0.5
WINDOW = 10  # round trips that a floor is the smallest of (core/probe/rtt.py)
CLIENTS = 4
WITHIN_MS = 0.1
TIME = re.compile(r"time=([\d.]+) ms")


def run() -> list[Row]:
    rows = []
    with Lab(2) as lab:
        pair = new_pair(lab)
        start_afresh(pair)
        time.sleep(5.0)  # every path is measured at its own pace
        rows += _compare(pair, "idle")
        with _busy(pair.node(1)) as asked:
            rows += _compare(pair, "busy")
        rows.append(Row("busy: status requests answered a second", len(asked) / STRETCH_S, "/s"))
    return rows


def _compare(pair: Cluster, load: str) -> list[Row]:
    node, peer = pair.node(1), pair.node(2)
    pings = {name: _start_ping(node, peer.host.address(name)) for name in INTERFACES}
    floors: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + STRETCH_S
    while time.monotonic() < end:
        if (status := node.poll_status()) is not None:
            for name in INTERFACES:
                floors[name].append(path_of(status, name)["rtt_ms"])
        time.sleep(LOOK_EVERY_S)
    rows = []
    for name, ping in pings.items():
        times = [float(text) for text in TIME.findall(ping.communicate(timeout=STRETCH_S)[0])]
        windows = [times[first : first + WINDOW] for first in range(0, len(times) - WINDOW + 1, WINDOW)]
        pinged = statistics.median(map(min, windows))
        probed = statistics.median(floors[name])
        rows.append(Row(f"{load}: floor over {name} by exod", probed, "ms"))
        rows.append(Row(f"{load}: floor over {name} by ping", pinged, "ms"))
        rows.append(Row(f"{load}: difference over {name}", abs(probed - pinged), "ms", WITHIN_MS))
    return rows


def _start_ping(node: Node, address: str) -> subprocess.Popen[str]:
    count = str(int(STRETCH_S / PING_EVERY_S))
    return node.host.popen(
        ["ping", "-n", "-i", str(PING_EVERY_S), "-c", count, address], stdout=subprocess.PIPE, text=True
    )


@contextmanager
def _busy(node: Node) -> Iterator[list[float]]:
    """Clients that ask for the status without a pause; gives when each answer came."""
    answered: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            if node.poll_status() is not None:
                answered.append(time.monotonic())

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield answered
    finally:
        stop.set()
        for client in clients:
            client.join()
