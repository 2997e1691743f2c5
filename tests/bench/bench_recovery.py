"""How long a client waits for its next token when something breaks: a count from 1 to 900, streaming in the lab.

One round of cuts: both daemons are killed and started (their ranks live on and are adopted), a client counts, the
cable is cut without notice in mid-answer, put back, and taken again by the mesh. The restart gives every cut a path
without a history: the hold-up doubles for one that falls again within 30 s, so cuts in a row would measure that
rule instead. Then ranks and daemons are killed. Beside each figure stands what the same client waits for at most
when nothing is broken: on a busy machine times say more about the machine. Last, the same cut for mlx-lm's own
pipeline.

A fault's time is the emulator's or the kernel's acknowledgement, a token's is its arrival at the client, an event's
is its own stamp; all are of one host's clocks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench import plain_cut
from tests.bench.counting import Counting
from tests.bench.rows import Row, summed_up
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.reading import Status, agreed_on, can_serve
from tests.lab.told import Event, events_since, of_type
from tests.lab.topology import Lab

CUTS = 20
KILLS = 5
CONFIG: dict[str, dict[str, Any]] = {"mqtt": {"broker": "off"}, "engine": {"spare": "auto"}}
SERVES_WITHIN_S = 90.0
LOOKED_AT_S = 2.0
"""How long after a fault a wait counts as its: twice what a recovery from a cut may take."""
CALM_AFTER_S = 1.0
"""From serving over the cable again until a wait counts as one with nothing broken; it must begin after that."""
POLL_EVERY_S = 0.25

CUT_TARGET_S = 0.5
RETURN_TARGET_S = 0.3
KILLED_TARGET_S = 0.7
KILLED_WORST_S = 1.5
"""With a spare worker: loading and prefilling alone. Without one a process starts first."""
SPARE_WITHIN_S = 60.0
ALL_BROKEN_TARGET_S = 6.0
ALL_CUT_FOR_S = 3.0

Samples = dict[str, list[float]]


def run(rounds: int = CUTS) -> list[Row]:
    samples: Samples = defaultdict(list)
    with Lab(2) as lab:
        cluster = Cluster(lab, config=CONFIG)
        for number in range(rounds):
            _cut_round(cluster, samples)
            print(f"\rrecovery: cut {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        for _ in range(min(KILLS, rounds)):
            _killed_rank(cluster, samples)
        for _ in range(min(KILLS, rounds)):
            _everything_broken(cluster, samples)
        for node in cluster.nodes:
            node.configure({**CONFIG, "engine": {"spare": "off"}})
        cluster.kill9()
        cluster.start()
        for _ in range(min(KILLS, rounds)):
            _killed_rank(cluster, samples, spare=False)
        for _ in range(min(KILLS, rounds)):
            _killed_daemon(cluster, samples)
    print(file=sys.stderr)
    return [*_rows(samples), *plain_cut.run()]


def _rows(samples: Samples) -> list[Row]:
    def rows(name: str, p50: float | None = None, p99: float | None = None) -> list[Row]:
        return summed_up(name, samples[name], "s", p50=p50, p99=p99)

    return [
        *rows("cut cable: longest wait for a token", p99=CUT_TARGET_S),
        *rows("  until the first node noticed"),
        *rows("  from there until all agreed on another path"),
        *rows("  from there until the ranks stood in a new group"),
        *rows("  from the group until a token came"),
        *rows("back to the cable: longest wait for a token", p99=RETURN_TARGET_S),
        *rows("nothing broken: longest wait for a token in 2 s"),
        *rows("killed rank: longest wait for a token", p50=KILLED_TARGET_S, p99=KILLED_WORST_S),
        *rows("killed rank without a spare: longest wait for a token"),
        *rows("  until its process had started again"),
        *rows("  loading its layers"),
        *rows("  forming the group, prefilling them and a token"),
        *rows("both ranks killed, all links cut for 3 s: longest wait for a token", p99=ALL_BROKEN_TARGET_S),
        *rows("killed daemon of the other rank: longest wait for a token"),
        *summed_up("load average in a round", samples["load average in a round"], ""),
    ]


def _serves(kind: str) -> Any:
    return lambda found: agreed_on(found, kind) and all(can_serve(status) for status in found)


def _wait(cluster: Cluster, kind: str) -> list[Status]:
    """As `wait_ready`, at a pace that leaves the processors to what is measured."""
    end = time.monotonic() + SERVES_WITHIN_S
    while not ((statuses := cluster.statuses()) and _serves(kind)(statuses)):
        assert time.monotonic() < end, f"not within {SERVES_WITHIN_S:g} s: serving over {kind}\n{cluster.report()}"
        time.sleep(POLL_EVERY_S)
    return statuses


def _have_spares(statuses: list[Status]) -> bool:
    return all(status["engine"]["spare"] == "ready" for status in statuses)


def _start_afresh(cluster: Cluster) -> None:
    """New daemons on undisturbed links. Their ranks stay."""
    cluster.kill9()
    cluster.lab.restore()
    cluster.start()
    _wait(cluster, "thunderbolt")


@contextmanager
def _counting(cluster: Cluster, samples: Samples) -> Iterator[tuple[Node, Counting]]:
    """A client of the coordinator, whose answer is in its middle; on the way out every answer has been checked."""
    statuses = _wait(cluster, "thunderbolt")
    wanted = statuses[0]["mesh"]["coordinator"]
    (node,) = [node for node, one in zip(cluster.nodes, statuses, strict=True) if one["node"]["id"] == wanted]
    samples["load average in a round"].append(os.getloadavg()[0])
    client = Counting(node)
    client.start()
    try:
        client.wait_for_middle()
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.report()}") from None
    yield node, client
    client.stop()


def _cut_round(cluster: Cluster, samples: Samples) -> None:
    _start_afresh(cluster)
    cable = cluster.lab.link("bridge0")
    with _counting(cluster, samples) as (_, client):
        cut = time.monotonic()
        cable.cut()
        time.sleep(LOOKED_AT_S)
        cable.restore()
        restored = time.monotonic()
        _wait(cluster, "thunderbolt")
        time.sleep(CALM_AFTER_S)
        calm = time.monotonic()
        time.sleep(LOOKED_AT_S)
    _note_cut(cluster, client, cut, restored, samples)
    _note(samples, "back to the cable: longest wait for a token", client.gap_s(*_move(cluster, restored, calm)))
    _note(samples, "nothing broken: longest wait for a token in 2 s", client.gap_begun_s(calm, calm + LOOKED_AT_S))
    if (client.gap_s(cut, calm + LOOKED_AT_S) or 0.0) > CUT_TARGET_S:
        _tell(cluster, cut)


def _move(cluster: Cluster, since: float, until: float) -> tuple[float, float]:
    """From the first word of the plan that leads back until all ranks stood in its group: a wait that touches this
    is the move's, and no other.
    """
    told = [[event for event in _events(node, since) if event["ts"] - _offset() < until] for node in cluster.nodes]
    agreed = min(of_type(events, "mesh.agreed")[-1]["ts"] for events in told)
    formed = max(of_type(events, "engine.reformed")[-1]["ts"] for events in told)
    assert formed > agreed, f"no group was formed after the move was agreed: {told}"
    return agreed - _offset(), formed - _offset()


def _tell(cluster: Cluster, since: float) -> None:
    """What the daemons said in a round with a wait that is too long."""
    for node in cluster.nodes:
        for event in _events(node, since):
            at_s = event["ts"] - _offset() - since
            print(f"\n{node.name} {at_s:8.3f} s {json.dumps(event)}", end="", file=sys.stderr)
    print(file=sys.stderr)


def _note_cut(cluster: Cluster, client: Counting, cut: float, restored: float, samples: Samples) -> None:
    """The wait, and what it was spent on."""
    _note(samples, "cut cable: longest wait for a token", client.gap_s(cut, restored))
    told = [_events(node, cut) for node in cluster.nodes]
    noticed = min(event["ts"] for events in told for event in of_type(events, "path.dead"))
    agreed = max(of_type(events, "mesh.agreed")[0]["ts"] for events in told)
    formed = max(of_type(events, "engine.reformed")[0]["ts"] for events in told)
    samples["  until the first node noticed"].append(noticed - _offset() - cut)
    samples["  from there until all agreed on another path"].append(agreed - noticed)
    samples["  from there until the ranks stood in a new group"].append(formed - agreed)
    samples["  from the group until a token came"].append(
        client.resumed_at(formed - _offset()) - formed + _offset()
    )


def _killed_rank(cluster: Cluster, samples: Samples, spare: bool = True) -> None:
    """The rank that is not the client's: its process ends, another one loads and prefills its layers."""
    if spare:
        cluster.wait_until(_have_spares, SPARE_WITHIN_S, "each node has a spare worker")
    with _counting(cluster, samples) as (node, client):
        (victim,) = [one for one in cluster.nodes if one is not node]
        pids = victim.worker_pids()
        client.wait_for_middle()
        killed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
        _wait(cluster, "thunderbolt")
        time.sleep(LOOKED_AT_S / 2)
    loaded = of_type(_events(victim, killed), "engine.loaded")[0]
    ready = loaded["ts"] - _offset()
    gap = client.gap_s(killed, ready)
    if gap is not None and not spare:
        samples["killed rank without a spare: longest wait for a token"].append(gap)
    elif gap is not None:
        samples["killed rank: longest wait for a token"].append(gap)
        samples["  until its process had started again"].append(ready - loaded["load_s"] - killed)
        samples["  loading its layers"].append(loaded["load_s"])
        samples["  forming the group, prefilling them and a token"].append(gap - (ready - killed))


def _everything_broken(cluster: Cluster, samples: Samples) -> None:
    """Both ranks are killed and every link is cut, for as long as it takes that each node believes to be alone."""
    cluster.wait_until(_have_spares, SPARE_WITHIN_S, "each node has a spare worker")
    with _counting(cluster, samples) as (_, client):
        broken = time.monotonic()
        for node in cluster.nodes:
            node.kill_workers()
        for link in cluster.lab.links.values():
            link.cut()
        time.sleep(ALL_CUT_FOR_S)
        cluster.lab.restore()
        _wait(cluster, "thunderbolt")
        served = time.monotonic()
        time.sleep(LOOKED_AT_S)
    name = "both ranks killed, all links cut for 3 s: longest wait for a token"
    _note(samples, name, client.gap_s(broken, served))


def _killed_daemon(cluster: Cluster, samples: Samples) -> None:
    """The daemon that is not the client's, started again at once: its rank lives on."""
    with _counting(cluster, samples) as (node, client):
        (victim,) = [one for one in cluster.nodes if one is not node]
        killed = time.monotonic()
        victim.kill9()
        victim.start()
        time.sleep(1.0)
        _wait(cluster, "thunderbolt")
        served = time.monotonic()
        time.sleep(LOOKED_AT_S / 2)
    _note(samples, "killed daemon of the other rank: longest wait for a token", client.gap_s(killed, served))


def _note(samples: Samples, name: str, value: float | None) -> None:
    """A stretch in which no answer was under way says nothing."""
    if value is not None:
        samples[name].append(value)


def _events(node: Node, since: float) -> list[Event]:
    """What this node said since `since` on the monotonic clock."""
    return events_since(node, since + _offset())


def _offset() -> float:
    return time.time() - time.monotonic()
