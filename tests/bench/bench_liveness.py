"""What faults cost that no probe sees: how long a client waits for its next token, and how long a start takes.

Each fault of the ring, of addresses and of hosts (tests/lab/fault_kinds.py) once in mid-answer, and each of the
ring once before the nodes start. Then members that are deaf to each other, nodes in a line, a full disk with a
killed rank, a twin, and identities that were renewed. Every answer must be exactly 1 to 900. What the screens of
the nodes say meanwhile (`/ready`, status, doctor) goes to standard error, for a person to read.

A fault's time is the moment it was made, a token's its arrival at the client; all are of one host's clock.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.rows import Row
from tests.lab import fault_kinds, filters
from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.fault_kinds import ALL_KINDS, RING_KINDS, Breaks
from tests.lab.node import Node, wait_for
from tests.lab.reading import Status
from tests.lab.told import of_type
from tests.lab.topology import Lab

LAST = 900
STARTED_AT = 60
SERVES_WITHIN_S = 90.0
ENDS_WITHIN_S = 240.0
FAULT_LASTS_S = 6.0
"""Twice the target, so that one which is met shows."""
DEAF_FOR_S = 4.0
MOVED_TARGET_S = 3.0
"""The ring's second failure on a path, and the move to the next."""
HOST_TARGET_S = 6.0
SERVED_TARGET_S = 5.0
ALONE_TARGET_S = 10.0
TWIN_TARGET_S = 10.0
EPOCHS_TARGET = 5.0
"""Until members that are deaf to each other are served."""
RENEWALS = 4
EARLIER = 400
"""Numbers of an earlier answer: with them a prompt is some hundred frames."""
SEED = 1
CONFIG = {"mqtt": {"broker": "off"}}


def run() -> list[Row]:
    rows = [row for kind, breaks in ALL_KINDS.items() for row in in_mid_answer(kind, breaks)]
    rows += long_prompt_over_swallowed_frames()
    rows += [row for kind, breaks in RING_KINDS.items() for row in before_start(kind, breaks)]
    for nodes in (4, 5):
        rows += deaf_before_start(nodes, (1, 2)) + deaf_in_mid_answer(nodes)
    rows += deaf_before_start(3, (1, 3))
    return [*rows, *full_disk_and_killed_rank(), *twin(), *renewed_identities()]


# --- a cluster in its answer --------------------------------------------------------------------------------------


@contextmanager
def _serving(nodes: int = 2, small_disk: bool = False) -> Iterator[Cluster]:
    with Lab(nodes) as lab, ExitStack() as after:
        cluster = Cluster(lab, config=CONFIG)
        for node in cluster.nodes:
            fault_kinds.moved_clock(node)
        if small_disk:
            after.enter_context(fault_kinds.small_disk(cluster.nodes[1]))
        after.callback(_end, cluster)
        cluster.start()
        cluster.wait_ready("thunderbolt", SERVES_WITHIN_S)
        yield cluster


def _end(cluster: Cluster) -> None:
    """Nothing holds a small disk any more."""
    cluster.kill9()
    for node in cluster.nodes:
        fault_kinds.kill_ranks(node)


def _counting(cluster: Cluster) -> ChatStream:
    stream = cluster.nodes[0].stream_chat(count_prompt(1, LAST))
    stream.wait_for_numbers(STARTED_AT, SERVES_WITHIN_S)
    return stream


def _longest_wait_s(stream: ChatStream) -> float:
    """Of an answer that must be whole."""
    assert numbers(stream.result(ENDS_WITHIN_S)) == list(range(1, LAST + 1)), stream.story()
    return max(stream.gaps_s())


def in_mid_answer(kind: str, breaks: Breaks) -> list[Row]:
    with _serving(small_disk=kind == "full disk") as cluster:
        stream = _counting(cluster)
        with breaks(cluster, random.Random(SEED)) as whom:
            time.sleep(DEAF_FOR_S if kind == "two members deaf" else FAULT_LASTS_S)
            _tell_screens(cluster)
        target_s = MOVED_TARGET_S if kind in RING_KINDS else HOST_TARGET_S
        return _told(Row(f"{kind} in mid-answer ({whom}): longest wait", _longest_wait_s(stream), "s", target_s))


def long_prompt_over_swallowed_frames() -> list[Row]:
    """The frames of an answer that runs are small: it is a long prompt that meets the fault."""
    history = [
        {"role": "user", "content": count_prompt(1, EARLIER)},
        {"role": "assistant", "content": " ".join(str(number) for number in range(1, EARLIER + 1))},
        {"role": "user", "content": count_prompt(3, 12)},
    ]
    with _serving() as cluster:
        running = _counting(cluster)
        with RING_KINDS["large frames swallowed"](cluster, random.Random(SEED)):
            asked = time.monotonic()
            stream = cluster.nodes[0].stream_chat(count_prompt(3, 12), messages=history)
            assert numbers(stream.result(ENDS_WITHIN_S)) == list(range(3, 13)), stream.story()
            wait_s = max(stream.arrivals[0].at - asked, _longest_wait_s(running))
            _tell_screens(cluster)
    name = "large frames swallowed, then a long prompt: longest wait of it and of the answer that runs"
    return _told(Row(name, wait_s, "s", MOVED_TARGET_S))


# --- before the nodes start ---------------------------------------------------------------------------------------


def before_start(kind: str, breaks: Breaks) -> list[Row]:
    """From the moment at which all ranks hold their layers: then the first connections of the ring are tried."""
    with Lab(2) as lab:
        cluster = Cluster(lab, config=CONFIG)
        with breaks(cluster, random.Random(SEED)) as whom:
            served_s = _served_s(cluster)
            ready = cluster.started_at + served_s + time.time() - time.monotonic()
            _tell_screens(cluster)
        loaded = max(of_type(node.events(), "engine.loaded")[0]["ts"] for node in cluster.nodes)
    return _told(Row(f"{kind} before start ({whom}): from loaded to ready", ready - loaded, "s", MOVED_TARGET_S))


def _served_s(cluster: Cluster) -> float:
    """From the start of all daemons until each of them answers."""
    cluster.start()
    cluster.wait_until(_all_stand, SERVES_WITHIN_S, "all are ready")
    served_s = time.monotonic() - cluster.started_at
    for node in cluster.nodes:
        assert numbers(node.chat(count_prompt(3, 12))) == list(range(3, 13))
    return served_s


def _all_stand(found: list[Status]) -> bool:
    """A node knows nothing of the layers of one that it does not hear, so only states are asked for."""
    one_plan = len({status["mesh"]["plan"] for status in found}) == 1
    ready = all(status["engine"]["state"] in ("ready", "generating") for status in found)
    alone = any(len(status["mesh"]["ring"]) < 2 for status in found)
    return one_plan and ready and not alone and all(status["mesh"]["state"] == "agreed" for status in found)


# --- members that are deaf to each other --------------------------------------------------------------------------


def _deafen(lab: Lab, pair: tuple[int, int]) -> None:
    for one, other in (pair, pair[::-1]):
        addresses = [address.partition("/")[0] for address in lab.host(other).addresses.values()]
        filters.deafen(lab.host(one), *addresses)


def _epochs(cluster: Cluster) -> float:
    return max(float(status["mesh"]["epoch"]) for status in cluster.statuses() or [])


def deaf_before_start(nodes: int, pair: tuple[int, int]) -> list[Row]:
    """Against the same start with nothing broken. Of three in a line one at an end is left out, named by all."""
    with Lab(nodes) as lab:
        usual_s = _served_s(Cluster(lab, config=CONFIG))
    with Lab(nodes) as lab, filters.lifted(*lab.hosts):
        cluster = Cluster(lab, config=CONFIG)
        _deafen(lab, pair)
        served_s = _served_s(cluster)
        _tell_screens(cluster)
        epochs = _epochs(cluster)
        if nodes == 3:
            for status in cluster.statuses() or []:
                assert "node_left_out" in [one["code"] for one in status["reasons"]], status["reasons"]
    name = "3 nodes in a line" if nodes == 3 else f"{nodes} nodes, two of them deaf to each other"
    return [
        *_told(
            Row(f"{name} before start: longer until all answer", max(0.0, served_s - usual_s), "s", SERVED_TARGET_S)
        ),
        *_told(Row(f"{name} before start: epochs", epochs, "", EPOCHS_TARGET)),
    ]


def _neighbours(cluster: Cluster) -> tuple[int, int]:
    """The hosts of the first two ranks."""
    (status, *_) = cluster.statuses() or []
    names = {node["id"]: node["name"] for node in status["nodes"]}
    first, second = (names[one] for one in status["mesh"]["ring"][:2])
    numbered = {node.name: node.host.number for node in cluster.nodes}
    return numbered[first], numbered[second]


def deaf_in_mid_answer(nodes: int) -> list[Row]:
    with _serving(nodes) as cluster, filters.lifted(*cluster.lab.hosts):
        before = _epochs(cluster)
        stream = _counting(cluster)
        _deafen(cluster.lab, _neighbours(cluster))
        wait_s = _longest_wait_s(stream)
        _tell_screens(cluster)
        for node in cluster.nodes:
            assert numbers(node.chat(count_prompt(3, 12))) == list(range(3, 13))
        epochs = _epochs(cluster) - before
    name = f"{nodes} nodes, two of them deaf to each other in mid-answer"
    return [
        *_told(Row(f"{name}: longest wait", wait_s, "s", SERVED_TARGET_S)),
        *_told(Row(f"{name}: epochs", epochs, "", EPOCHS_TARGET)),
    ]


# --- a host that is ill, and identities ---------------------------------------------------------------------------


def full_disk_and_killed_rank() -> list[Row]:
    with _serving(small_disk=True) as cluster:
        stream = _counting(cluster)
        file = fault_kinds.fill(cluster.nodes[1].data_dir)
        fault_kinds.kill_ranks(cluster.nodes[1])
        wait_s = _longest_wait_s(stream)
        _tell_screens(cluster)
        file.unlink()
    return _told(Row("full disk and a killed rank: longest wait", wait_s, "s", ALONE_TARGET_S))


def _codes(node: Node) -> list[str]:
    return [one["code"] for one in (node.poll_status() or {}).get("reasons", ())]


def twin() -> list[Row]:
    """From the moment at which the copy of a node's data folder answers until it and the node name each other."""
    with Lab(3) as lab:
        cluster = Cluster(lab, (1, 2), config=CONFIG)
        cluster.start()
        cluster.wait_ready("thunderbolt", SERVES_WITHIN_S)
        original, copy = cluster.nodes[0], Node(lab.host(3), lab.folder, cluster.key, CONFIG)
        for file in original.data_dir.glob("*.json"):
            shutil.copy(file, copy.data_dir)
        copy.start()
        wait_for(copy.poll_status, SERVES_WITHIN_S, "the copy runs")
        began = time.monotonic()
        both = (original, copy)
        wait_for(lambda: all("identity_twin" in _codes(one) for one in both), SERVES_WITHIN_S, "named on both")
        named_s = time.monotonic() - began
        _tell_screens(cluster, copy)
        copy.kill9()
    return _told(Row("a twin: until both name it", named_s, "s", TWIN_TARGET_S))


def renewed_identities() -> list[Row]:
    """One node gets another identity again and again. Nobody is left in the nodes' lists who is not there."""
    with _serving() as cluster:
        first, second = cluster.nodes
        for _ in range(RENEWALS):
            done = second.exoctl("--config", str(second.config_file), "cluster", "renew-identity")
            assert done.returncode == 0, done.stderr
            second.terminate()
            second.start()
            cluster.wait_ready("thunderbolt", SERVES_WITHIN_S)
        _tell_screens(cluster)
        assert numbers(first.chat(count_prompt(3, 12))) == list(range(3, 13))
        ghosts = max(len(status["nodes"]) for status in cluster.statuses() or []) - len(cluster.nodes)
    return _told(Row(f"{RENEWALS} renewed identities: nodes in a list that are not there", ghosts, "", 0.0))


# --- what people would see ----------------------------------------------------------------------------------------


def _tell_screens(cluster: Cluster, *more: Node) -> None:
    for node in (*cluster.nodes, *more):
        try:
            said = _screens(node)
        except (OSError, ValueError) as error:  # it has no descriptor for us
            said = f"no answer: {error}"
        print(f"  {node.name}: {said}", file=sys.stderr)


def _screens(node: Node) -> str:
    status = node.poll_status()
    if status is None:
        return "no status"
    ready = node.request("GET", "/ready")
    doctor = json.loads(node.exoctl("doctor", "--json").stdout)
    reasons = [f"{one['code']}: {one['text']}" for one in status["reasons"]]
    found = [one["text"] for one in doctor["findings"]]
    state = status["engine"]["state"]
    return f"ready {ready.status}, {status['health']}, {state}, {reasons}; doctor: {found}"


def _told(row: Row) -> list[Row]:
    load = os.getloadavg()[0]
    print(
        f"liveness: {row.name}: {row.value:.2f} {row.unit} {row.verdict}, load {load:.1f}",
        file=sys.stderr,
        flush=True,
    )
    return [row]
