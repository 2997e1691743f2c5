"""What is announced and what is believed: the pure part of discovery, and static peers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from zeroconf import DNSAddress, DNSIncoming, ServiceStateChange
from zeroconf.asyncio import AsyncZeroconf

from exod.daemon_api.discovery_state import PeerFound, PeerVanished
from exod.model import Kind, LocalAddress, NodeId
from exod.network import mdns_discovery
from exod.network.mdns_discovery import (
    SERVICE,
    Announcement,
    Discovery,
    announced_addresses,
    read_announcement,
    service_info,
    take_back,
)
from exod.peers import static_peers
from exod.peers.static_peers import StaticPeer, StaticPeers

ME = Announcement(NodeId("00000000000000aa"), "studio1", 1_700_000_000_000, "0.1.0", "home", 52410)
NAME = f"00000000000000aa.{SERVICE}"
DEADLINE_S = 10.0


def local(interface: str, kind: Kind, address: str) -> LocalAddress:
    return LocalAddress(interface, kind, address, 24)


def test_vpns_are_left_out_and_loopback_is_for_when_there_is_nothing_else() -> None:
    cable = local("bridge0", Kind.THUNDERBOLT, "192.168.4.21")
    ethernet = local("en0", Kind.ETHERNET, "10.0.0.2")
    vpn = local("utun4", Kind.VPN, "100.87.1.2")
    loopback = local("lo0", Kind.LOOPBACK, "127.0.0.1")
    assert announced_addresses([cable, ethernet, vpn, loopback]) == ("10.0.0.2", "192.168.4.21")
    assert announced_addresses([vpn, loopback]) == ("127.0.0.1",)
    assert announced_addresses([vpn]) == ()
    assert announced_addresses([]) == ()


def test_what_a_node_announces_is_what_another_reads() -> None:
    info = service_info(ME, ["10.0.0.2", "192.168.4.21"])
    found = read_announcement(info.name, info.decoded_properties, info.parsed_addresses(), info.port, "home")
    assert found == PeerFound(ME.node_id, "studio1", ("10.0.0.2", "192.168.4.21"), 52410, ME.incarnation)


GOOD: dict[str, str | None] = {"id": ME.node_id, "name": "studio1", "incarnation": "7", "cluster": "home"}


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": "garden"},
        {"cluster": None},
        {"id": "00000000000000bb"},  # not the instance's name
        {"id": None},
        {"incarnation": "-7"},
        {"incarnation": "7.5"},
        {"incarnation": "9" * 19},
        {"incarnation": ""},
        {"incarnation": None},
    ],
)
def test_another_clusters_node_and_malformed_records_are_nobody(changes: dict[str, str | None]) -> None:
    assert read_announcement(NAME, GOOD, ["10.0.0.2"], 52410, "home") is not None
    assert read_announcement(NAME, {**GOOD, **changes}, ["10.0.0.2"], 52410, "home") is None


def test_an_id_that_is_no_id_is_nobody_even_under_its_own_name() -> None:
    assert read_announcement(f"printer.{SERVICE}", {**GOOD, "id": "printer"}, ["10.0.0.2"], 1, "home") is None


def test_without_an_address_or_a_port_there_is_nothing_to_reach() -> None:
    assert read_announcement(NAME, GOOD, [], 52410, "home") is None
    assert read_announcement(NAME, GOOD, ["10.0.0.2"], 0, "home") is None
    assert read_announcement(NAME, GOOD, ["10.0.0.2"], None, "home") is None


@pytest.mark.parametrize(("name", "shown"), [("\x1b[31mred", ME.node_id), ("", ME.node_id), (None, ME.node_id)])
def test_a_name_that_a_terminal_should_not_see_is_replaced_by_the_id(name: str | None, shown: str) -> None:
    found = read_announcement(NAME, {**GOOD, "name": name}, ["10.0.0.2"], 52410, "home")
    assert found is not None
    assert found.name == shown


def test_a_long_name_is_cut() -> None:
    found = read_announcement(NAME, {**GOOD, "name": "x" * 200}, ["10.0.0.2"], 52410, "home")
    assert found is not None
    assert len(found.name) == 64


@pytest.mark.anyio
async def test_without_any_interface_discovery_waits_and_ends_when_told() -> None:
    reports: list[PeerFound | PeerVanished] = []
    discovery = Discovery(ME, reports.append)
    discovery.follow(())
    running = asyncio.create_task(discovery.run(), name="discovery")
    await asyncio.sleep(0.05)
    assert not running.done()
    assert discovery.state().announced_on == ()
    running.cancel()
    await asyncio.wait([running], timeout=DEADLINE_S)
    assert running.cancelled()
    assert reports == []


@pytest.mark.anyio
async def test_an_address_that_went_is_said_goodbye_to_beside_those_that_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        sent: list[bytes] = []
        monkeypatch.setattr(mdns.zeroconf, "async_send", lambda out: sent.extend(out.packets()))
        before, now = service_info(ME, ["10.0.0.2", "10.0.0.3"]), service_info(ME, ["10.0.0.3", "10.0.0.4"])
        take_back(mdns.zeroconf, now, before)
        (packet,) = sent
        answers = DNSIncoming(packet).answers()
    finally:
        await mdns.async_close()
    seconds = {socket.inet_ntoa(one.address): one.ttl for one in answers if isinstance(one, DNSAddress)}
    assert seconds.pop("10.0.0.2") == 0
    assert sorted(seconds) == ["10.0.0.3", "10.0.0.4"]
    assert all(ttl > 0 for ttl in seconds.values())
    assert all(one.ttl > 0 for one in answers if not isinstance(one, DNSAddress))


@pytest.mark.anyio
async def test_a_record_that_runs_out_after_the_last_word_of_it_is_still_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each repetition of an announcement lets what it replaced live for another second, and nobody is told."""
    cached = [("10.0.0.2", "10.0.0.3"), ("10.0.0.2", "10.0.0.3"), ("10.0.0.3",)]

    class Cached:
        def __init__(self, kind: str, name: str) -> None:
            self.info = service_info(ME, cached.pop(0) if len(cached) > 1 else cached[0])
            self.decoded_properties, self.port = self.info.decoded_properties, self.info.port
            self.parsed_addresses = self.info.parsed_addresses

        def load_from_cache(self, zeroconf: object) -> bool:
            return True

    monkeypatch.setattr(mdns_discovery, "AsyncServiceInfo", Cached)
    heard: asyncio.Queue[PeerFound | PeerVanished] = asyncio.Queue()
    other = Announcement(NodeId("00000000000000bb"), "studio2", 1, "0.1.0", "home", 52410)
    discovery = Discovery(other, heard.put_nowait)
    discovery._mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        discovery._on_service(discovery._mdns.zeroconf, SERVICE, NAME, ServiceStateChange.Updated)
        async with asyncio.timeout(DEADLINE_S):
            found = [await heard.get() for _ in range(2)]
    finally:
        await discovery._close()
    assert [one.addresses for one in found if isinstance(one, PeerFound)] == [
        ("10.0.0.2", "10.0.0.3"),
        ("10.0.0.3",),
    ]


class Resolver:
    """Answers in this order, the last one for ever; an empty answer is a name that does not resolve."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if not answer:
            raise OSError(f"no such host: {host}")
        return answer


async def reports_of(entries: Sequence[str], resolver: Resolver, count: int) -> list[StaticPeer]:
    """The first `count` reports."""
    queue: asyncio.Queue[StaticPeer] = asyncio.Queue()
    task = asyncio.create_task(StaticPeers(entries, queue.put_nowait, resolver).run(), name="static peers")
    try:
        async with asyncio.timeout(DEADLINE_S):
            return [await queue.get() for _ in range(count)]
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.anyio
async def test_an_address_is_reported_without_a_lookup_and_twice_the_same_entry_once() -> None:
    resolver = Resolver([])
    entries = ["10.0.0.2:52410", "10.0.0.3:1", "10.0.0.2:52410"]
    assert await reports_of(entries, resolver, 2) == [
        StaticPeer("10.0.0.2:52410", ("10.0.0.2",), 52410),
        StaticPeer("10.0.0.3:1", ("10.0.0.3",), 1),
    ]
    assert resolver.asked == 0


@pytest.mark.anyio
async def test_a_host_name_is_looked_up_and_its_addresses_are_ordered() -> None:
    resolver = Resolver(["10.0.0.9", "10.0.0.2", "10.0.0.9"])
    assert await reports_of(["studio2:52410"], resolver, 1) == [
        StaticPeer("studio2:52410", ("10.0.0.2", "10.0.0.9"), 52410)
    ]


@pytest.mark.anyio
async def test_a_name_that_does_not_resolve_is_tried_again_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(static_peers, "FIRST_RETRY_S", 0.01)
    resolver = Resolver([], [], ["10.0.0.2"])
    assert await reports_of(["studio2:52410"], resolver, 2) == [
        StaticPeer("studio2:52410", (), 52410),
        StaticPeer("studio2:52410", ("10.0.0.2",), 52410),
    ]


@pytest.mark.anyio
async def test_an_address_that_moved_is_reported_anew_and_a_failed_lookup_takes_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(static_peers, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(static_peers, "AGAIN_S", 0.01)
    resolver = Resolver(["10.0.0.2"], [], [], ["10.0.0.7"])
    reported = await reports_of(["studio2:52410"], resolver, 2)
    assert [peer.addresses for peer in reported] == [("10.0.0.2",), ("10.0.0.7",)]


@pytest.mark.anyio
async def test_the_systems_resolver_knows_localhost() -> None:
    assert "127.0.0.1" in await static_peers.lookup_ipv4("localhost")
