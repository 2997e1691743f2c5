"""A generation that is under way lives through every fault: the text is the one that would have come without it.

One pair of daemons lives through this file. Each test starts a count from 1 to 900, breaks something in the middle
of it, and reads the answer to its end: exactly 1 … 900, nothing lost, doubled or changed.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, MESH_PORT, RING_PORTS, Node, wait_for
from tests.lab.reading import can_serve
from tests.lab.told import events_since, of_type
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

LAST = 900
STARTED_AT = 100
"""The fault comes when so many numbers are here: in the middle, whatever the machine's speed."""
STARTS_WITHIN_S = 60.0
ENDS_WITHIN_S = 180.0
LEAVES_WITHIN_S = 30.0
SAYS_WHY_WITHIN_S = 1.0
FLAPPING_FOR_S = float(os.environ.get("EXOD_FLAPPING_S", "12"))
"""A minute and more by hand."""
FLAP_EVERY_S = 4.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2))
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _serving(pair: Cluster) -> Iterator[None]:
    """Each test starts with a cluster that serves; over which path is not its business."""
    pair.wait_until(lambda found: all(can_serve(status) for status in found), STARTS_WITHIN_S, "all can serve")
    yield
    pair.heal()


def coordinator(pair: Cluster) -> Node:
    """The node that coordinates: the one with the lowest id."""
    statuses = pair.wait_until(
        lambda found: all(one["mesh"]["coordinator"] for one in found), 10.0, "a coordinator"
    )
    wanted = statuses[0]["mesh"]["coordinator"]
    return next(node for node, status in zip(pair.nodes, statuses, strict=True) if status["node"]["id"] == wanted)


def other(pair: Cluster, node: Node) -> Node:
    return next(one for one in pair.nodes if one is not node)


def counting(node: Node) -> ChatStream:
    """A count from 1 to 900 on this node's API, under way."""
    stream = node.stream_chat(count_prompt(1, LAST))
    stream.wait_for_numbers(STARTED_AT, STARTS_WITHIN_S)
    assert len(stream.numbers) < LAST, "the count was over before the fault came"
    return stream


def assert_whole(stream: ChatStream) -> None:
    assert numbers(stream.result(ENDS_WITHIN_S)) == list(range(1, LAST + 1)), stream.story()


def test_a_cut_cable_costs_no_token(pair: Cluster) -> None:
    stream = counting(coordinator(pair))
    pair.lab.link("bridge0").cut()
    assert_whole(stream)


def test_a_cable_that_becomes_slow_costs_no_token(pair: Cluster) -> None:
    stream = counting(coordinator(pair))
    pair.lab.link("bridge0").set(delay_ms=20)
    assert_whole(stream)


def test_a_cable_that_comes_and_goes_costs_no_token(pair: Cluster) -> None:
    node, cable = coordinator(pair), pair.lab.link("bridge0")
    end, cut = time.monotonic() + FLAPPING_FOR_S, False
    turn = time.monotonic() + FLAP_EVERY_S / 2
    while time.monotonic() < end:
        stream = counting(node)
        while not stream.finished:
            if time.monotonic() >= turn:
                turn += FLAP_EVERY_S / 2
                cut = not cut
                cable.set(cut=cut)
            time.sleep(0.05)
        assert_whole(stream)


def test_a_killed_rank_costs_no_token(pair: Cluster) -> None:
    client = coordinator(pair)
    stream = counting(client)
    assert other(pair, client).kill_workers(signal.SIGKILL), "there was a rank to kill"
    assert_whole(stream)


def test_a_killed_rank_beside_the_client_costs_no_token(pair: Cluster) -> None:
    client = coordinator(pair)
    stream = counting(client)
    assert client.kill_workers(signal.SIGKILL), "there was a rank to kill"
    assert_whole(stream)


def test_a_stopped_rank_is_continued_and_costs_no_token(pair: Cluster) -> None:
    client = coordinator(pair)
    stream = counting(client)
    stopped = other(pair, client)
    pids = stopped.kill_workers(signal.SIGSTOP)
    assert_whole(stream)
    assert stopped.worker_pids() == pids, "its daemon continued it: its weights and caches are kept"


def test_the_other_daemon_killed_and_restarted_costs_no_token(pair: Cluster) -> None:
    client = coordinator(pair)
    stream = counting(client)
    killed = other(pair, client)
    workers = killed.worker_pids()
    killed.kill9()
    killed.start()
    assert_whole(stream)
    pair.wait_until(
        lambda found: all(can_serve(status) for status in found), STARTS_WITHIN_S, "all can serve again"
    )
    assert killed.worker_pids() == workers, "the running rank was adopted, not replaced"


def test_the_coordinators_daemon_killed_costs_a_client_elsewhere_no_token(pair: Cluster) -> None:
    killed = coordinator(pair)
    stream = counting(other(pair, killed))
    killed.kill9()
    killed.start()
    assert_whole(stream)


def test_a_client_whose_own_daemon_dies_gets_a_closed_stream_and_never_a_wrong_one(pair: Cluster) -> None:
    node = coordinator(pair)
    stream = counting(node)
    node.kill9()
    wait_for(lambda: stream.finished, 30.0, "the stream is closed")
    assert not stream.ended
    assert stream.error is not None or stream.finish_reason is None
    assert stream.numbers[:-1] == list(range(1, len(stream.numbers))), stream.story()


@pytest.mark.parametrize("client_stays", [True, False])
def test_a_node_that_is_stopped_in_mid_generation_leaves_nothing_and_its_peer_says_why(
    pair: Cluster, client_stays: bool
) -> None:
    staying = coordinator(pair)
    leaving = other(pair, staying)
    stream = counting(staying if client_stays else leaving)
    told, began = time.time(), time.monotonic()
    assert leaving.terminate() == 0
    assert time.monotonic() - began < LEAVES_WITHIN_S
    ports = [range(MESH_PORT, MESH_PORT + 1), RING_PORTS, range(API_PORT, API_PORT + 1)]
    wait_for(lambda: not leaving.host.processes(), 5.0, "no process is left behind")
    for one in ports:  # the last acknowledgement of a close may be on its way
        wait_for(lambda one=one: leaving.host.leftovers(one) == [], 5.0, "no socket is left behind")
    assert list(leaving.data_dir.rglob("*.sock")) == []
    theirs = hex_addresses(leaving)
    left = [line for one in ports for line in staying.host.leftovers(one) if line.split()[1][:8] in theirs]
    assert left == [], "a connection to the node that left stands on the other"

    def why() -> dict[str, object] | None:
        found = of_type(events_since(staying, told), "mesh.agreed")
        return found[0] if found else None

    change = wait_for(why, 5.0, "the peer has another plan")
    assert leaving.name in change["reason"]
    assert "left" in change["reason"]
    assert change["ts"] - told < SAYS_WHY_WITHIN_S
    if client_stays:
        leaving.start()
        assert_whole(stream)
    else:
        wait_for(lambda: stream.finished, 5.0, "the stream is closed")
        assert stream.error is not None
        assert stream.numbers[:-1] == list(range(1, len(stream.numbers))), stream.story()


def hex_addresses(node: Node) -> set[str]:
    """Of all its interfaces, as /proc/net/tcp writes them."""
    addresses = [
        line.split()[3].partition("/")[0]
        for line in node.host.run(["ip", "-4", "-o", "address"], check=True).stdout.splitlines()
    ]
    return {socket.inet_aton(address)[::-1].hex().upper() for address in addresses if address != "127.0.0.1"}
