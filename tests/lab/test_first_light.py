"""Two nodes find each other, the cable wins, and one model runs across both.

One pair of daemons lives through this file, healed after each test; a third host without a cable is there
for strangers. The order matters for time, not for truth: a path that relapses is held up longer and longer,
so the restart of both daemons stands between the faults.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, MESH_PORT, RING_PORTS, Node, new_cluster_key, wait_for
from tests.lab.reading import Status, layers_cover, link_to, members, path_over
from tests.lab.topology import Counters, Host, Lab

pytestmark = pytest.mark.lab

AGREED_WITHIN_S = 10.0
LOADED_WITHIN_S = 90.0
NOTICED_WITHIN_S = 20.0
# How long a quiet cluster is watched to learn what it says when it says nothing.
QUIET_S = 3.0
# Strangers are watched this long; a line a minute may then be written once, twice across a minute's edge.
STRANGER_WATCHED_S = 15.0
INTERFACES = ("bridge0", "en0", "utun4")
# A count whose bytes stand out: 96 half floats one way for each token are 58 kB without headers. Probes are about
# 8 kB a second; what a quiet cluster says is subtracted, but a busy one may say less.
COUNTED = (100, 400)
RING_BYTES = 30_000
NETWORKS = {"bridge0": "192.168.4.", "en0": "10.77.0.", "utun4": "100.64.0."}


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(3, cables=[(1, 2)]) as lab:
        cluster = Cluster(lab, (1, 2))
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _healed(pair: Cluster) -> Iterator[None]:
    yield
    pair.heal()


def other(pair: Cluster, node: Node) -> Node:
    return next(one for one in pair.nodes if one is not node)


def slow_link(status: Status) -> str:
    """What the node says of a link that is over the limit; empty where it says nothing."""
    return next((reason["text"] for reason in status["reasons"] if reason["code"] == "link_slow"), "")


def ring_interfaces(pair: Cluster) -> set[str]:
    """The interfaces whose networks the ring's connections between the hosts belong to, seen from both."""
    found = set()
    for node in pair.nodes:
        for one in node.host.connections(RING_PORTS):
            assert one.local.rpartition(".")[0] == one.remote.rpartition(".")[0], f"a crossed edge: {one}"
            found |= {name for name, network in NETWORKS.items() if one.remote.startswith(network)}
    return found


def moved(host: Host, before: dict[str, Counters]) -> dict[str, int]:
    """Bytes that each interface of `host` moved since `before`."""
    now = host.all_counters()
    return {name: (now[name] - before[name]).bytes for name in INTERFACES}


def assert_chat_runs_over(pair: Cluster, node: Node, interface: str) -> None:
    """A long chat moves the ring's bytes over `interface`, and no more than probes over the others."""
    host = node.host
    before, began = host.all_counters(), time.monotonic()
    time.sleep(QUIET_S)  # the stretch of time that is measured
    quiet_rate = {name: count / (time.monotonic() - began) for name, count in moved(host, before).items()}

    before, began = host.all_counters(), time.monotonic()
    first, last = COUNTED
    stream = node.stream_chat(count_prompt(first, last))
    stream.wait_for_numbers(3, LOADED_WITHIN_S)
    assert ring_interfaces(pair) == {interface}
    assert numbers(stream.result(LOADED_WITHIN_S)) == list(range(first, last + 1))
    elapsed_s, total = time.monotonic() - began, moved(host, before)
    extra = {name: total[name] - quiet_rate[name] * elapsed_s for name in INTERFACES}

    assert extra[interface] > RING_BYTES, f"bytes beyond the usual: {extra}"
    for idle in set(INTERFACES) - {interface}:
        # Probes may speed up on a busy path; the ring's bytes cannot hide in this.
        assert extra[idle] < 0.1 * extra[interface] + 20_000, f"bytes beyond the usual: {extra}"


def test_two_nodes_agree_on_the_cable_within_10_s(pair: Cluster) -> None:
    pair.wait_agreed("thunderbolt", LOADED_WITHIN_S)
    took_s = time.monotonic() - pair.started_at
    assert took_s <= AGREED_WITHIN_S, pair.report()


def test_the_kind_decided_because_ethernet_is_faster(pair: Cluster) -> None:
    def all_paths_measured(statuses: list[Status]) -> bool:
        """Ethernet below the cable, both below 5 ms, and the VPN answers too."""
        for status in statuses:
            peer = (members(status) - {status["node"]["name"]}).pop()
            cable, ethernet, vpn = (path_over(status, peer, name) for name in INTERFACES)
            if not (cable and ethernet and vpn):
                return False
            if not (cable["state"] == ethernet["state"] == "up" and vpn["state"] in ("up", "degraded")):
                return False
            if not (ethernet["rtt_ms"] < cable["rtt_ms"] < 5.0 and 40.0 < vpn["rtt_ms"] < 60.0):
                return False
        return True

    statuses = pair.wait_until(all_paths_measured, NOTICED_WITHIN_S, "all three paths are measured")
    for status in statuses:
        peer = (members(status) - {status["node"]["name"]}).pop()
        cable = path_over(status, peer, "bridge0")
        link = link_to(status, peer)
        assert cable is not None
        assert link is not None
        assert (cable["selected"], link["selected"], link["agreed"]) == (True, cable["id"], True)
        assert {path["kind"] for path in link["paths"]} == {"thunderbolt", "ethernet", "vpn"}
        assert all(path["why"] for path in link["paths"]), "each path says why it is chosen or not"


def test_the_layers_are_on_both_nodes(pair: Cluster) -> None:
    statuses = pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    for status in statuses:
        assert status["engine"]["model"] == "embedded:count"
        assert layers_cover(status)
        assert len(status["engine"]["ranks"]) == 2
    for node, status in zip(pair.nodes, statuses, strict=True):
        mine = [rank["pid"] for rank in status["engine"]["ranks"] if rank["node"] == status["node"]["id"]]
        assert set(mine) <= set(node.host.processes()), "the rank runs in its own node's host"


def test_exoctl_and_http_give_the_same_status(pair: Cluster) -> None:
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    for node in pair.nodes:
        done = node.exoctl("status", "--json")
        by_http = node.poll_status()
        assert by_http is not None
        assert done.returncode == 0, done.stdout + done.stderr
        by_command = node.status()
        assert by_command.keys() == by_http.keys()
        assert by_command["schema"] == 1
        for part in ("node", "cluster", "mesh"):
            assert by_command[part].keys() == by_http[part].keys()
        assert by_command["mesh"]["plan"] == by_http["mesh"]["plan"]
        assert node.exoctl("wait", "--for", "healthy", "--timeout", "20").returncode == 0


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_chat_on_either_node_counts_right(pair: Cluster, number: int, stream: bool) -> None:
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    answer = pair.node(number).chat(count_prompt(3, 60), stream=stream)
    assert numbers(answer) == list(range(3, 61))


def test_the_ring_runs_over_the_cable_and_nothing_else(pair: Cluster) -> None:
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    assert_chat_runs_over(pair, pair.node(1), "bridge0")


def test_a_slow_cable_is_left_for_ethernet_and_taken_again(pair: Cluster) -> None:
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    pair.lab.link("bridge0").set(delay_ms=20)
    pair.wait_agreed("ethernet", NOTICED_WITHIN_S)
    pair.wait_ready("ethernet", LOADED_WITHIN_S)
    assert_chat_runs_over(pair, pair.node(2), "en0")
    pair.lab.link("bridge0").restore()
    pair.wait_ready("thunderbolt")
    assert numbers(pair.node(1).chat(count_prompt(7, 21))) == list(range(7, 22))
    assert ring_interfaces(pair) <= {"bridge0"}


def test_both_daemons_killed_and_started_agree_on_the_cable_again(pair: Cluster) -> None:
    before = pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    pair.kill9()
    pair.start()

    def started_anew(statuses: list[Status]) -> bool:
        return all(
            now["node"]["incarnation"] > then["node"]["incarnation"]
            for now, then in zip(statuses, before, strict=True)
        )

    after = pair.wait_until(started_anew, AGREED_WITHIN_S, "a higher incarnation")
    pair.wait_agreed("thunderbolt", LOADED_WITHIN_S)
    took_s = time.monotonic() - pair.started_at
    assert [now["node"]["id"] for now in after] == [then["node"]["id"] for then in before]
    assert took_s <= AGREED_WITHIN_S, pair.report()
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    assert numbers(pair.node(2).chat(count_prompt(3, 60))) == list(range(3, 61))


def test_a_cut_cable_is_left_for_ethernet_then_the_vpn_with_the_reason_in_words(pair: Cluster) -> None:
    pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    pair.lab.link("bridge0").cut()
    pair.wait_agreed("ethernet", NOTICED_WITHIN_S)
    pair.wait_ready("ethernet", LOADED_WITHIN_S)
    assert numbers(pair.node(1).chat(count_prompt(3, 40))) == list(range(3, 41))
    assert ring_interfaces(pair) <= {"en0"}

    pair.lab.link("en0").cut()
    pair.wait_agreed("vpn", NOTICED_WITHIN_S)
    statuses = pair.wait_until(
        lambda found: all(status["health"] == "degraded" and slow_link(status) for status in found),
        NOTICED_WITHIN_S,
        "both nodes call themselves degraded because of the link",
    )
    for node, status in zip(pair.nodes, statuses, strict=True):
        assert "VPN" in slow_link(status)
        assert "utun4" in slow_link(status)
        assert all(reason["code"] and reason["subject"] for reason in status["reasons"])
        assert node.exoctl("status").returncode == 4
    pair.wait_ready("vpn", LOADED_WITHIN_S)
    assert numbers(pair.node(2).chat(count_prompt(5, 15))) == list(range(5, 16))

    pair.lab.restore()
    pair.wait_ready("thunderbolt")
    pair.wait_until(
        lambda found: all(status["health"] == "healthy" for status in found),
        NOTICED_WITHIN_S,
        "both nodes are healthy again",
    )


def warnings_that_name(node: Node, since: int, names: set[str]) -> list[str]:
    """This node's log lines from entry `since` on that warn of one of `names`."""
    return [
        str(entry)
        for entry in node.log_entries()[since:]
        if str(entry.get("level", "")).lower() in ("warning", "error") and any(name in str(entry) for name in names)
    ]


def test_a_node_with_another_key_never_joins_and_is_named_in_the_log(pair: Cluster) -> None:
    before = pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    logged = [len(node.log_entries()) for node in pair.nodes]
    host = pair.lab.host(3)
    peers = [f"{node.host.address('en0')}:{MESH_PORT}" for node in pair.nodes]
    stranger = Node(host, pair.lab.folder, new_cluster_key(), {"cluster": {"name": "lab", "peers": peers}})
    names = {host.name, host.address("en0"), host.address("utun4")}
    stranger.start()
    try:
        wait_for(stranger.poll_status, LOADED_WITHIN_S, f"the stranger runs\n{stranger.log_tail()}")
        wait_for(
            lambda: any(
                warnings_that_name(node, since, names) for node, since in zip(pair.nodes, logged, strict=True)
            ),
            NOTICED_WITHIN_S,
            "a member names the stranger in its log",
        )
        end = time.monotonic() + STRANGER_WATCHED_S
        while time.monotonic() < end:
            statuses = [node.poll_status() for node in pair.nodes]
            assert all(status and members(status) == {"studio1", "studio2"} for status in statuses)
            time.sleep(0.5)
        alone = stranger.poll_status()
        assert alone is not None
        assert members(alone) == {host.name}
        assert alone["cluster"]["size"] == 1
    finally:
        stranger.kill9()
    for node, since in zip(pair.nodes, logged, strict=True):
        lines = warnings_that_name(node, since, names)
        assert len(lines) <= 2, "a stranger is named once a minute at most:\n" + "\n".join(lines)
    assert_undisturbed(pair, before)


def test_noise_and_half_open_connections_change_nothing(pair: Cluster) -> None:
    before = pair.wait_ready("thunderbolt", LOADED_WITHIN_S)
    outsider, member = pair.lab.host(3), pair.lab.host(1)
    target = (member.address("en0"), MESH_PORT)
    with ExitStack() as open_sockets:
        for source in (outsider, pair.lab.host(2)):
            noise = open_sockets.enter_context(source.socket(socket.SOCK_DGRAM))
            for count in range(1500):
                noise.sendto(os.urandom(1 + count % 1400), target)
        for count in range(40):
            silent = open_sockets.enter_context(outsider.socket())
            silent.settimeout(5.0)
            silent.connect(target)
            if count % 2:  # half of them begin a TLS hello and stop in the middle
                silent.sendall(b"\x16\x03\x01\x02\x00\x01\x00" + os.urandom(40))
        for _ in range(10):
            with member.entered():
                idle = open_sockets.enter_context(socket.create_connection(("127.0.0.1", API_PORT), 5.0))
            idle.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le")
        assert numbers(pair.node(1).chat(count_prompt(3, 60))) == list(range(3, 61))
        assert_undisturbed(pair, before)
    assert_undisturbed(pair, before)


def assert_undisturbed(pair: Cluster, before: list[Status]) -> None:
    """The same plan in the same epoch, the same processes, and no traceback in a log."""
    now = pair.statuses()
    assert now is not None, pair.report()
    for then, status in zip(before, now, strict=True):
        assert (status["mesh"]["epoch"], status["mesh"]["plan"]) == (
            then["mesh"]["epoch"],
            then["mesh"]["plan"],
        )
        assert status["node"]["incarnation"] == then["node"]["incarnation"]
        assert [rank["pid"] for rank in status["engine"]["ranks"]] == [
            rank["pid"] for rank in then["engine"]["ranks"]
        ]
    for node in pair.nodes:
        assert "Traceback" not in node.log_text(), node.log_tail()
