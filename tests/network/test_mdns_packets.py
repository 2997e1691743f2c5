"""Discovery against a real mDNS: two hosts in network namespaces, avahi as the second opinion."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import missing
from tests.lab import netns
from tests.lab.avahi import Avahi, missing_tools
from tests.lab.topology import Host

DEADLINE_S = 30.0
"""For anything that mDNS should do within a second or two, on a machine with other work."""

A = "00000000000000aa"
B = "00000000000000bb"
SERVICE = "_exod._tcp"

T = TypeVar("T")


def until(look: Callable[[], T], good: Callable[[T], bool], what: str) -> T:
    deadline = time.monotonic() + DEADLINE_S
    while not good(seen := look()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: still {seen} after {DEADLINE_S:g} s")
        time.sleep(0.1)
    return seen


class Node:
    """`tests.network.discovery_node` on a host, and what it has said so far."""

    def __init__(self, host: Host, node_id: str, incarnation: int = 1, port: int = 52410) -> None:
        self.node_id = node_id
        argv = [sys.executable, "-m", "tests.network.discovery_node", node_id, str(incarnation), str(port)]
        self.process = host.popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, name=f"node {node_id}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # a log line
                self.said.append(json.loads(line))

    def hears(self, event: str, **fields: object) -> dict[str, Any]:
        """Waits for a report with these fields."""
        wanted = {"event": event, **fields}

        def matching() -> list[dict[str, Any]]:
            assert self.process.poll() is None, f"node {self.node_id} ended: {self.process.stderr.read()}"
            return [said for said in self.said if wanted.items() <= said.items()]

        return until(matching, bool, f"{self.node_id} should hear {wanted} and heard {self.said}")[0]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)


class Pair:
    """Two hosts joined by en0, 10.77.0.1 and .2, and whatever runs on them."""

    def __init__(self) -> None:
        self.lab = netns.new_lab_name()
        self.folder = netns.folder_of(self.lab)
        self.one, self.two = (Host(n, f"studio{n}", f"{self.lab}-studio{n}") for n in (1, 2))
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Pair:
        netns.sweep_dead_labs()
        self._closing.callback(netns.remove_lab, self.lab)
        self.folder.mkdir(mode=0o700)
        for host in (self.one, self.two):
            netns.ip("netns", "add", host.namespace)
            host.ip("link set lo up")
        self.join()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def join(self, first: str = "10.77.0.1/24", second: str = "10.77.0.2/24") -> None:
        peer = f"en0 netns {self.two.namespace}"
        self.one.ip(f"link add en0 type veth peer name {peer}")
        for host, address in ((self.one, first), (self.two, second)):
            host.ip(f"addr add {address} dev en0", "link set en0 up multicast on")

    def part(self) -> None:
        self.one.ip("link del en0")

    def node(self, host: Host, node_id: str, **more: int) -> Node:
        node = Node(host, node_id, **more)
        self._closing.callback(node.end, signal.SIGKILL)
        node.hears("running")
        return node

    def avahi(self, host: Host) -> Avahi:
        return self._closing.enter_context(Avahi(host, self.folder))


@pytest.fixture
def pair() -> Iterator[Pair]:
    if reason := netns.missing_capability():
        missing(reason)
    if tools := missing_tools():
        missing(f"avahi is needed as the second opinion: {', '.join(tools)} not installed")
    with Pair() as joined:
        yield joined


def addresses_seen(avahi: Avahi, node_id: str) -> set[str]:
    return {seen["address"] for seen in avahi.browse(SERVICE) if seen["name"] == node_id}


def test_avahi_sees_the_node_with_its_address_port_and_text(pair: Pair) -> None:
    avahi = pair.avahi(pair.two)
    node = pair.node(pair.one, A, incarnation=7, port=52499)
    (seen,) = until(lambda: avahi.browse(SERVICE), bool, "the node should be announced")
    assert (seen["interface"], seen["name"], seen["address"], seen["port"]) == ("en0", A, "10.77.0.1", "52499")
    assert seen["host"] == f"exod-{A}.local"
    for text in (f'"id={A}"', '"incarnation=7"', '"cluster=home"', '"version=0.1.0"', '"name=node 0000"'):
        assert text in seen["text"]
    node.end()
    until(lambda: avahi.browse(SERVICE), lambda seen: not seen, "the goodbye should be heard")


def test_an_interface_removed_and_added_with_another_address_is_followed_without_a_restart(pair: Pair) -> None:
    node, peer = pair.node(pair.one, A), pair.node(pair.two, B)
    peer.hears("found", node_id=A, addresses=["10.77.0.1"])
    pair.part()
    peer.hears("lost", node_id=A)  # its only interface went with the link
    pair.join("10.77.0.77/24", "10.77.0.2/24")
    peer.hears("found", node_id=A, addresses=["10.77.0.77"])
    avahi = pair.avahi(pair.two)
    seen = until(lambda: addresses_seen(avahi, A), bool, "avahi should see the node again")
    assert seen == {"10.77.0.77"}

    # The same link, another address: the old one is taken back, not only joined by the new one.
    pair.one.ip("addr del 10.77.0.77/24 dev en0", "addr add 10.77.0.78/24 dev en0")
    until(lambda: addresses_seen(avahi, A), lambda seen: seen == {"10.77.0.78"}, "the new address alone")
    peer.hears("found", node_id=A, addresses=["10.77.0.78"])
    assert node.process.poll() is None


def test_an_address_that_goes_is_taken_back_while_the_others_stay(pair: Pair) -> None:
    pair.one.ip("link add en5 type veth peer name en5x", "addr add 10.9.0.1/24 dev en5")
    pair.one.ip("link set en5x up", "link set en5 up")
    pair.node(pair.one, A)
    peer = pair.node(pair.two, B)
    peer.hears("found", node_id=A, addresses=["10.77.0.1", "10.9.0.1"])
    pair.one.ip("link set en5 down")
    peer.hears("found", node_id=A, addresses=["10.77.0.1"])
    pair.one.ip("link set en5 up")
    until(
        lambda: [said["addresses"] for said in peer.said if said["event"] == "found"],
        lambda found: found[-1] == ["10.77.0.1", "10.9.0.1"],
        "the address should come back",
    )


def test_an_interface_replaced_at_once_by_one_of_the_same_address_is_joined_again(pair: Pair) -> None:
    node, peer = pair.node(pair.one, A), pair.node(pair.two, B)
    node.hears("found", node_id=B)
    peer.hears("found", node_id=A)
    pair.part()
    pair.join()
    newcomer = pair.node(pair.two, "00000000000000cc", port=52411)
    node.hears("found", node_id="00000000000000cc")
    newcomer.hears("found", node_id=A, addresses=["10.77.0.1"])


def test_without_an_interface_at_the_start_the_node_is_announced_when_one_comes(pair: Pair) -> None:
    pair.part()
    node = pair.node(pair.one, A)
    pair.join()
    avahi = pair.avahi(pair.two)
    assert until(lambda: addresses_seen(avahi, A), bool, "the node should be announced") == {"10.77.0.1"}
    assert node.process.poll() is None


def test_two_nodes_and_avahi_share_one_host(pair: Pair) -> None:
    avahi = pair.avahi(pair.one)
    first, second = pair.node(pair.one, A), pair.node(pair.one, B, port=52411)
    first.hears("found", node_id=B, port=52411)
    second.hears("found", node_id=A, port=52410)
    peer = pair.node(pair.two, "00000000000000cc")
    peer.hears("found", node_id=A)
    peer.hears("found", node_id=B)
    names = until(lambda: {seen["name"] for seen in avahi.browse(SERVICE)}, lambda seen: len(seen) == 3, "all")
    assert names == {A, B, "00000000000000cc"}
    second.end()
    peer.hears("lost", node_id=B)
    assert not any(said["event"] == "lost" and said["node_id"] == A for said in peer.said)


def test_a_node_that_was_killed_and_started_again_is_known_by_its_new_incarnation(pair: Pair) -> None:
    peer = pair.node(pair.two, B)
    first = pair.node(pair.one, A, incarnation=1)
    peer.hears("found", node_id=A, incarnation=1)
    first.end(signal.SIGKILL)
    pair.node(pair.one, A, incarnation=2)
    peer.hears("found", node_id=A, incarnation=2)


def test_a_stranger_under_the_same_service_is_nobody(pair: Pair) -> None:
    avahi = pair.avahi(pair.two)
    node = pair.node(pair.one, A)
    stranger = avahi.publish("printer", SERVICE, 631)
    try:
        until(lambda: {seen["name"] for seen in avahi.browse(SERVICE)}, lambda seen: "printer" in seen, "printer")
        peer = pair.node(pair.two, B)
        node.hears("found", node_id=B)
        peer.hears("found", node_id=A)
        assert {said["node_id"] for said in node.said if said["event"] == "found"} == {B}
    finally:
        stranger.terminate()
        stranger.wait(DEADLINE_S)


def test_a_vpn_is_neither_spoken_on_nor_announced(pair: Pair) -> None:
    pair.one.ip("link add utun4 type veth peer name far", "addr add 100.64.0.1/10 dev utun4")
    pair.one.ip("link set far up", "link set utun4 up")
    pair.node(pair.one, A)
    peer = pair.node(pair.two, B)
    assert peer.hears("found", node_id=A)["addresses"] == ["10.77.0.1"]
    assert "100.64.0.1" not in pair.one.run(["ss", "-Hulnp"]).stdout
