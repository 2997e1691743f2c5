"""Multicast DNS with strangers and with interfaces that flap: what is sent how often, and who is believed."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import Any

import pytest
from zeroconf import IPVersion, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from exod.daemon_api.discovery_state import PeerFound, PeerVanished
from exod.model import NodeId
from exod.network import mdns_discovery, mdns_sender
from exod.network.mdns_discovery import SERVICE, Announcement, Discovery, service_info, take_back
from exod.network.mdns_sender import PacedZeroconf

pytestmark = pytest.mark.anyio

ME = Announcement(NodeId("00000000000000aa"), "studio1", 1_700_000_000_000, "0.1.0", "home", 52410)
DEADLINE_S = 10.0

Sent = dict[tuple[str, str], list[tuple[float, int]]]
"""By interface and record: when it was sent, and with which time to live."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    seen: Sent = defaultdict(list)

    def send(self: Zeroconf, out: Any, *_: Any, transport: Any = None, **__: Any) -> None:
        if out.is_response():
            for record, _at in out.answers:
                what = f"{record.name} {record.type} {getattr(record, 'address', b'').hex()}"
                seen[transport.sock_name[0], what].append((asyncio.get_running_loop().time(), record.ttl))

    monkeypatch.setattr(Zeroconf, "async_send", send)
    return seen


async def test_no_record_is_multicast_more_than_once_a_second(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns_sender, "PACE_S", 0.3)
    zeroconf = PacedZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    mdns = AsyncZeroconf(zc=zeroconf)
    stable, flapping = service_info(ME, ["10.0.0.2"]), service_info(ME, ["10.0.0.2", "10.0.0.3"])
    try:
        await zeroconf.async_wait_for_start()
        for _ in range(15):  # an interface that comes and goes
            zeroconf.async_send(zeroconf.generate_service_broadcast(flapping, None))
            await asyncio.sleep(0.05)
            take_back(zeroconf, stable, flapping)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.6)
    finally:
        await mdns.async_close()
    assert len(sent) >= 5
    for times in sent.values():
        gaps = [after - before for (before, _), (after, _) in itertools.pairwise(times)]
        assert all(gap >= 0.29 for gap in gaps), times
        assert len(times) <= 8
    went = sent["127.0.0.1", f"exod-{ME.node_id}.local. 1 0a000003"]
    assert went[-1][1] == 0, "what was said last is what is true"
    stays = sent["127.0.0.1", f"exod-{ME.node_id}.local. 1 0a000002"]
    assert all(ttl > 0 for _, ttl in stays)


class Records:
    """What zeroconf has of each name, in the place of its cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_name: dict[str, ServiceInfo] = {}
        records = self

        class Cached:
            def __init__(self, kind: str, name: str) -> None:
                self.info = records.by_name[name]
                self.decoded_properties, self.port = self.info.decoded_properties, self.info.port
                self.parsed_addresses = self.info.parsed_addresses

            def load_from_cache(self, zeroconf: object) -> bool:
                return True

        monkeypatch.setattr(mdns_discovery, "AsyncServiceInfo", Cached)

    def announce(self, discovery: Discovery, number: int, *addresses: str) -> NodeId:
        node = NodeId(f"{number:016x}")
        info = service_info(Announcement(node, f"node{number}", 1, "0.1.0", "home", 52410), addresses)
        self.by_name[info.name] = info
        assert discovery._mdns is not None
        discovery._on_service(discovery._mdns.zeroconf, SERVICE, info.name, ServiceStateChange.Added)
        return node


async def all_read(discovery: Discovery) -> None:
    for _ in range(int(DEADLINE_S / 0.01)):
        if not discovery._unread:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not all is read")


async def test_a_flood_of_strangers_hides_no_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns_discovery, "MOST_PEERS", 16)
    records = Records(monkeypatch)
    reports: list[PeerFound | PeerVanished] = []
    members: set[NodeId] = set()
    discovery = Discovery(ME, reports.append, members.__contains__)
    discovery._mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        members.add(records.announce(discovery, 1, "10.0.0.9"))
        await all_read(discovery)
        for number in range(2, 102):
            records.announce(discovery, number, "10.0.0.66", "127.0.0.1", "93.184.216.34")
        late = records.announce(discovery, 200, "10.0.0.10")
        await all_read(discovery)
        known = discovery.state().peers
    finally:
        await discovery._close()
    assert {one.node_id for one in known} >= {*members, late}
    assert len(known) <= 16
    gone = {report.node_id for report in reports if isinstance(report, PeerVanished)}
    assert len(gone) == 102 - 16, "those that gave way are not dialled any more"


async def test_a_packet_full_of_strangers_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """One packet of 9,000 bytes announces some 300 names, all in one turn of the loop."""
    records = Records(monkeypatch)
    reports: list[PeerFound | PeerVanished] = []
    at_once: list[int] = []
    discovery = Discovery(ME, reports.append)
    discovery._mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        for number in range(300):
            records.announce(discovery, number + 1, "10.0.0.66")
        async with asyncio.timeout(DEADLINE_S):
            while len(reports) < 200:
                before = len(reports)
                await asyncio.sleep(0)
                at_once.append(len(reports) - before)
    finally:
        await discovery._close()
    assert 0 < max(at_once) <= 2 * mdns_discovery.READ_AT_ONCE


async def test_of_more_names_than_are_kept_unread_those_of_members_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns_discovery, "MOST_UNREAD", 8)
    records = Records(monkeypatch)
    reports: list[PeerFound | PeerVanished] = []
    discovery = Discovery(ME, reports.append)
    discovery._mdns = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        member = records.announce(discovery, 1, "10.0.0.9")
        await all_read(discovery)
        for number in range(2, 102):
            records.announce(discovery, number, "10.0.0.66")
        records.announce(discovery, 1, "10.0.0.10")
        assert len(discovery._unread) <= 9
        await all_read(discovery)
    finally:
        await discovery._close()
    assert [one.addresses for one in reports if isinstance(one, PeerFound) and one.node_id == member] == [
        ("10.0.0.9",),
        ("10.0.0.10",),
    ]
