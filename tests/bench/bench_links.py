"""How fast a fault of the cable is noticed, agreed on and healed: two daemons in the lab, N faults of each sort.

One round: both daemons are killed and started (agreed after the start), the cable is cut without notice (noticed,
plan agreed), comes back (agreed on it again), and is slowed to 20 ms (noticed). The start in each round gives every
fault a selector without a history: the hold-up doubles for a path that falls again within 30 s, and three switches
in ten minutes are all that no death may cause, so faults in a row would measure those rules instead.

A fault's time is the link emulator's acknowledgement, an answer's is the event's own stamp; both are of one clock.
The plan has a ring with an edge, but the model does not exist: loading one in each round would take the processors
that the daemons are measured on.
"""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict

from tests.bench.rows import Row, percentile, summed_up
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.reading import agreed_on
from tests.lab.told import Event, events_since, of_type
from tests.lab.topology import Lab

ROUNDS = 30
CONFIG = {"engine": {"model": "/a/model/that/is/not/there"}, "mqtt": {"broker": "off"}}
WITHIN_S = 30.0
SETTLED_S = 2.0  # after the start: every path is measured, the pace is the steady one
QUIET_S = 1.5  # after a fault: nothing asks the daemons anything while they notice and agree
DWELL_S = 2.2  # no voluntary switch comes sooner after another (core/pair/path_selection.py)
POLL_EVERY_S = 0.25
SLOW_MS = 10.0  # each way: 20 ms there and back

STALL = re.compile(rb"^exod_loop_lag_seconds ([\d.e+-]+)$", re.MULTILINE)

Samples = dict[str, list[float]]


def run(rounds: int = ROUNDS) -> list[Row]:
    samples: Samples = defaultdict(list)
    with Lab(2) as lab:
        cluster = Cluster(lab, config=CONFIG)
        for number in range(rounds):
            _round(lab, cluster, samples)
            print(f"\rlinks: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [
        *summed_up("cut cable noticed, first node", samples["cut, first"], "ms", p50=200, p99=300),
        *summed_up("cut cable noticed, each node", samples["cut, each"], "ms", p50=200, p99=300),
        *summed_up("plan agreed on all nodes after the verdict", samples["agreed"], "ms", p99=300),
        *summed_up("step to 20 ms noticed", samples["step"], "ms", p99=750),
        Row("back on the cable after it returned, worst", percentile(samples["back"], 100), "s", 5),
        Row("both daemons restarted, agreed after the start, worst", percentile(samples["start"], 100), "s", 3),
        *summed_up("back on the cable after it returned", samples["back"], "s"),
        *summed_up("both daemons restarted, agreed after the start", samples["start"], "s"),
        *summed_up("worst stall of a daemon's loop in a round", samples["stall"], "ms"),
    ]


def _round(lab: Lab, cluster: Cluster, samples: Samples) -> None:
    cable = lab.link("bridge0")
    cable.restore()
    cluster.kill9()
    started = time.time()
    cluster.start()
    _wait(cluster, "thunderbolt")
    samples["start"].append(_last_agreed(cluster, started, "thunderbolt") - started)

    time.sleep(SETTLED_S)
    cable.cut()
    cut = time.time()
    time.sleep(QUIET_S)
    _wait(cluster, "ethernet")
    verdicts = _first_on_each(cluster, cut, "path.dead")
    samples["cut, first"].append((min(verdicts) - cut) * 1e3)
    samples["cut, each"] += [(at - cut) * 1e3 for at in verdicts]
    samples["agreed"].append((_last_agreed(cluster, cut, "ethernet") - min(verdicts)) * 1e3)

    cable.restore()
    restored = time.time()
    time.sleep(QUIET_S)
    _wait(cluster, "thunderbolt")
    samples["back"].append(_last_agreed(cluster, restored, "thunderbolt") - restored)

    time.sleep(DWELL_S)
    cable.set(delay_ms=SLOW_MS)
    slowed = time.time()
    time.sleep(QUIET_S)
    samples["step"] += [(at - slowed) * 1e3 for at in _first_on_each(cluster, slowed, "path.degraded")]
    samples["stall"] += [_worst_stall_ms(node) for node in cluster.nodes]


def _wait(cluster: Cluster, kind: str) -> None:
    end = time.monotonic() + WITHIN_S
    while not ((statuses := cluster.statuses()) and agreed_on(statuses, kind)):
        if time.monotonic() > end:
            raise AssertionError(f"not within {WITHIN_S:g} s: all agree on {kind}\n{cluster.report()}")
        time.sleep(POLL_EVERY_S)


def _first_on_each(cluster: Cluster, since: float, kind: str) -> list[float]:
    """When each node said that of the cable."""
    return [
        _one(of_type(events_since(node, since), kind, interface="bridge0"), node.name, kind)[0]["ts"]
        for node in cluster.nodes
    ]


def _last_agreed(cluster: Cluster, since: float, kind: str) -> float:
    """When the last node had agreed on a path of that kind and on the plan that uses it."""
    moments = []
    for node in cluster.nodes:
        events = events_since(node, since)
        selected = _one(of_type(events, "link.selected", kind=kind), node.name, f"link.selected {kind}")[0]["ts"]
        plans = [event["ts"] for event in of_type(events, "mesh.agreed") if event["ts"] >= selected]
        moments.append(min(plans) if plans else selected)
    return max(moments)


def _worst_stall_ms(node: Node) -> float:
    """How late this daemon's loop was at worst in its life: where the machine was too busy to run it."""
    found = STALL.search(node.request("GET", "/metrics").body)
    assert found is not None
    return float(found[1]) * 1e3


def _one(events: list[Event], name: str, what: str) -> list[Event]:
    assert events, f"{name} said no {what}"
    return events
