"""The whole cluster is on every node's broker, and a host whose power is cut shows `offline` there at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conftest import skip_or_fail
from tests.lab.node import Node, wait_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

SERVES_WITHIN_S = 60.0
BROKER_PORT = 1883
OFFLINE_TARGET_S = 2.0
OFFLINE_WITHIN_S = 10.0  # the promise is 2 s; a busy machine is no broken promise, and the figure is printed
BACK_WITHIN_S = 30.0
BASE = "exo/1/lab"


class Watcher:
    """A subscriber in a node's host: what stands on each topic, and when it came."""

    def __init__(self, node: Node) -> None:
        self.payloads: dict[str, str] = {}
        self.told: list[tuple[float, str, str]] = []
        argv = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(BROKER_PORT), "-v", "-t", "#"]
        self.process = node.host.popen(argv, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, name=f"watcher of {node.name}", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            topic, _, payload = line.rstrip("\n").partition(" ")
            self.told.append((time.monotonic(), topic, payload))
            self.payloads[topic] = payload

    def said(self, topic: str, payload: str, since: float) -> float | None:
        """When that was first said after `since`."""
        return next((at for at, *what in list(self.told) if at > since and what == [topic, payload]), None)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    for program in ("mosquitto", "mosquitto_sub"):
        if shutil.which(program) is None:
            skip_or_fail(f"this test needs {program}: install the packages mosquitto and mosquitto-clients")
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2))
        cluster.start()
        cluster.wait_ready("thunderbolt", SERVES_WITHIN_S)
        yield cluster


@pytest.fixture(scope="module")
def watchers(pair: Cluster) -> Iterator[list[Watcher]]:
    found = [Watcher(node) for node in pair.nodes]
    yield found
    for watcher in found:
        watcher.close()


def ids(pair: Cluster) -> list[str]:
    return [node.status()["node"]["id"] for node in pair.nodes]


def retained(pair: Cluster) -> list[str]:
    """Every retained topic that the contract promises while nothing is wrong."""
    nodes = ids(pair)
    return [
        *(f"{BASE}/node/{node}/availability" for node in nodes),
        *(f"{BASE}/node/{node}/state" for node in nodes),
        f"{BASE}/link/{min(nodes)}--{max(nodes)}/state",
        f"{BASE}/mesh/state",
        *(f"{BASE}/engine/{node}/state" for node in nodes),
        *(f"homeassistant/device/exod_{node}/config" for node in nodes),
    ]


def test_every_retained_topic_is_on_either_broker(pair: Cluster, watchers: list[Watcher]) -> None:
    promised = retained(pair)
    for watcher in watchers:
        seen = watcher.payloads
        wait_for(lambda seen=seen: set(promised) <= seen.keys(), SERVES_WITHIN_S, "all topics are there")
        state = {topic: watcher.payloads[topic] for topic in promised}
        assert [state[topic] for topic in promised[:2]] == ["online", "online"]
        link: dict[str, Any] = json.loads(state[promised[4]])
        assert link["kind"] == "thunderbolt"
        assert link["agreed"]
        mesh: dict[str, Any] = json.loads(state[f"{BASE}/mesh/state"])
        assert sorted(mesh["ring"]) == sorted(ids(pair))
        engine: dict[str, Any] = json.loads(state[promised[6]])
        assert engine["model"] == "embedded:count"


def test_a_host_whose_power_is_cut_is_offline_on_the_other_broker_and_online_when_it_is_back(
    pair: Cluster, watchers: list[Watcher]
) -> None:
    topic = f"{BASE}/node/{ids(pair)[1]}/availability"
    for link in pair.lab.links.values():
        link.cut()
    cut = time.monotonic()
    offline = wait_for(lambda: watchers[0].said(topic, "offline", cut), OFFLINE_WITHIN_S, "offline is said")
    print(f"offline {offline - cut:.2f} s after the cut, promised are {OFFLINE_TARGET_S:g} s")
    restored = time.monotonic()
    pair.lab.restore()
    wait_for(lambda: watchers[0].said(topic, "online", restored), BACK_WITHIN_S, "online is said")
    assert watchers[0].payloads[topic] == "online"
