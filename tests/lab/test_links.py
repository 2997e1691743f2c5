"""Links under faults: found from both sides, healed, never flapping, and nothing declared dead without proof.

Two nodes without an engine. After a test that changed a path's state both daemons start anew, in a second and a
half: a path that falls again soon after its return is held up longer each time, so faults in a row would wait for
one another. The tests in which nothing may change share a life.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.pairs import new_pair, path_of, peer_of, said, start_afresh, wait_joined
from tests.lab.reading import Status
from tests.lab.told import events_since, of_type
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

NOTICED_WITHIN_S = 10.0
SWITCHES = ("link.selected", "mesh.agreed")
DEATHS = ("path.dead", "node.down")
STOPPED_S = 2.0
ASLEEP_S = 6.0  # twice what a silent peer is given before it is down
AFTERMATH_S = 2.0  # how long one watches for what a stop leaves behind
SETTLED_S = 4.5  # after a start, of which the join takes 1.5: every path is measured, the pace is the steady one
# The long run of `EXOD_LOSS_S=600` is the proof, this its share of every run: 300 datagrams each way.
LOSS_S = float(os.environ.get("EXOD_LOSS_S", "15"))
HOLD_UP_S = 1.0
NO_FLAPPING_S = 3.0  # more than two hold-ups
SLOW_CABLE = re.compile(r"runs over Thunderbolt bridge0 at 1\d\.\d ms: en0 and utun4 are degraded")


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        yield new_pair(lab, hold_up_s=HOLD_UP_S)


@pytest.fixture(autouse=True)
def _undisturbed(pair: Cluster) -> Iterator[None]:
    if not all(node.running for node in pair.nodes):
        start_afresh(pair)
    began = time.time()
    yield
    if said(pair, began, *DEATHS, *SWITCHES, "path.degraded"):
        pair.kill9()
    pair.lab.restore()


def settle(pair: Cluster) -> None:
    time.sleep(max(0.0, pair.started_at + SETTLED_S - time.monotonic()))


@pytest.mark.parametrize("source", [1, 2])
def test_one_way_loss_is_found_from_both_sides_and_healed_to_ethernet(pair: Cluster, source: int) -> None:
    began = time.time()
    pair.lab.link("bridge0").cut(source=source)
    statuses = wait_joined(pair, "ethernet", NOTICED_WITHIN_S)
    assert [path_of(status, "bridge0")["state"] for status in statuses] == ["dead", "dead"]

    deaf, mute = pair.node(3 - source), pair.node(source)
    (found,) = of_type(events_since(deaf, began), "path.dead", interface="bridge0")
    assert "silent" in found["reason"], found
    (told,) = of_type(events_since(mute, began), "path.dead", interface="bridge0")
    assert deaf.name in told["reason"], f"{mute.name} hears all, and has it from its peer: {told}"

    pair.lab.restore()
    wait_joined(pair, "thunderbolt")


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_daemon_that_was_stopped_declares_nothing_dead(pair: Cluster, stopped: int) -> None:
    settle(pair)
    began, node = time.time(), pair.node(stopped)
    node.freeze()
    time.sleep(STOPPED_S)
    node.thaw()
    time.sleep(AFTERMATH_S)
    wait_joined(pair, "thunderbolt", NOTICED_WITHIN_S)
    assert said(pair, began, *DEATHS, *SWITCHES) == [], "silence of all paths, or a stop, proves nothing"
    # At most: a suspect that is heard again.
    told = [
        event["type"] for event in events_since(peer_of(pair, node), began) if event["type"].startswith("node.")
    ]
    assert told in ([], ["node.suspect", "node.up"])
    assert events_since(node, began) == []


def test_two_hosts_that_slept_wake_up_as_they_were(pair: Cluster) -> None:
    settle(pair)
    began = time.time()
    for node in pair.nodes:
        node.freeze()
    time.sleep(ASLEEP_S)
    for node in pair.nodes:
        node.thaw()
    time.sleep(AFTERMATH_S)
    wait_joined(pair, "thunderbolt", NOTICED_WITHIN_S)
    assert said(pair, began, *DEATHS, *SWITCHES) == []


def test_where_every_path_is_slow_the_best_is_kept_and_it_is_said(pair: Cluster) -> None:
    settle(pair)
    began = time.time()
    pair.lab.link("en0").set(delay_ms=12)
    pair.wait_until(lambda found: all_degraded(found, "en0"), NOTICED_WITHIN_S, "en0 is called degraded")
    pair.lab.link("bridge0").set(delay_ms=8)
    pair.wait_until(lambda found: all_degraded(found, "bridge0"), NOTICED_WITHIN_S, "bridge0 is called degraded")
    time.sleep(NO_FLAPPING_S)
    assert said(pair, began, *SWITCHES, *DEATHS) == []
    for node, status in zip(pair.nodes, wait_joined(pair, "thunderbolt", NOTICED_WITHIN_S), strict=True):
        assert status["health"] == "degraded"
        (reason,) = status["reasons"]
        assert SLOW_CABLE.search(reason["text"]), reason
        done = node.exoctl("status")
        assert done.returncode == 4
        assert SLOW_CABLE.search(" ".join(done.stdout.split())), done.stdout

    pair.lab.restore()
    pair.wait_until(
        lambda found: all(status["health"] == "healthy" for status in found),
        NOTICED_WITHIN_S,
        "both nodes are healthy again",
    )
    assert said(pair, began, *SWITCHES, *DEATHS) == []


@pytest.mark.timeout(LOSS_S + 300)
def test_loss_and_jitter_switch_nothing(pair: Cluster) -> None:
    settle(pair)
    pair.lab.link("bridge0").set(loss=0.05, jitter_ms=4)
    began = time.time()
    time.sleep(LOSS_S)
    assert said(pair, began, *DEATHS, *SWITCHES, "path.degraded") == []
    for status in wait_joined(pair, "thunderbolt", NOTICED_WITHIN_S):
        cable = path_of(status, "bridge0")
        assert cable["selected"]
        assert cable["loss"] > 0.0, "the loss was there, and is told"
        assert cable["rtt_p90_ms"] > 3.0, "the jitter was there, and is told"


def all_degraded(statuses: list[Status], interface: str) -> bool:
    return all(path_of(status, interface)["state"] == "degraded" for status in statuses)
