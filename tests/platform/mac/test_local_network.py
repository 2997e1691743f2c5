"""Local Network privacy as the daemon finds it, against a network that refuses as XNU does, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.status.alerts import Alerts, alert_facts
from exod.core.status.health import HealthJudge
from exod.core.status.serving import EngineFacts
from exod.daemon_api.shapes import InterfaceLine
from exod.diagnostics.mac_findings import of_denied
from exod.model import Event, Kind, LocalAddress
from exod.network.local_network import EVERY_S, LocalNetwork
from exod.platform.darwin import Darwin
from exod.platform.linux import Linux
from tests.core.status.test_health import ME, given
from tests.platform.mac.fake_network import FakeNetwork

CABLE = LocalAddress("bridge0", Kind.THUNDERBOLT, "169.254.10.1", 16)
WIFI = LocalAddress("en0", Kind.WIFI, "192.168.1.20", 24)
VPN = LocalAddress("utun4", Kind.VPN, "100.64.0.1", 32)
PROBES_EVERY_S = 1.0


class Node:
    """A daemon's check, its health and its alerts on such a network. Peers are probed on every interface."""

    def __init__(self) -> None:
        self.network = FakeNetwork((CABLE, WIFI, VPN))
        self.verdicts: list[object] = []
        self.told: list[Event] = []
        self.check = LocalNetwork(Darwin(), ME.id, self._tell, self.network.multicast, self.network.clock)
        self.check.follow(self.network.addresses)
        self._health, self._alerts = HealthJudge(), Alerts()

    def _tell(self, event: Event) -> None:
        assert (event.type, event.subject) == ("local_network.checked", ME.id)
        self.verdicts.append(event.data["allowed"])

    def live(self, seconds: float) -> Node:
        until = self.network.now + seconds
        while self.network.now < until:
            if self.network.now % EVERY_S == 0:
                self.check.check()
            for local in self.network.addresses:
                errno = self.network.send(local.interface, local.address, f"peer of {local.interface}")
                if errno:
                    self.check.refused(local.address, errno)
            health = msgspec.structs.replace(given(), engine=EngineFacts(local_network_text=self.check.text))
            seen = self._health.observe(health, self.network.now, 1e9 + self.network.now)
            self.told += self._alerts.changes(alert_facts(ME.id, seen, None))
            self.network.now += PROBES_EVERY_S
        return self

    def alerts(self) -> list[str]:
        return [event.type for event in self.told if event.data["code"] == "local_network_denied"]


@pytest.fixture
def node() -> Node:
    return Node().live(60.0)


def test_nothing_is_said_where_all_is_allowed(node: Node) -> None:
    assert node.live(600.0).alerts() == []
    assert node.verdicts == [True]


def test_every_send_refused_for_a_moment_is_no_denial(node: Node) -> None:
    """As when an interface is renumbered: more than enough refusals, over too short a time."""
    node.network.deny()
    node.live(25.0)
    node.network.allow()
    assert node.live(120.0).alerts() == []


def test_one_interface_that_is_denied_is_named(node: Node) -> None:
    node.network.deny("bridge0")
    assert node.live(60.0).alerts() == ["alert.raised"]
    assert "on bridge0 (no route to host, errno 65)" in node.check.text
    node.network.allow()
    assert node.live(60.0).alerts() == ["alert.raised", "alert.cleared"]


def test_twenty_seconds_after_a_wake_are_no_denial(node: Node) -> None:
    for _ in range(5):
        node.network.wake(20.0)
        node.live(60.0)
    assert node.alerts() == []


def test_a_denial_for_good_is_told_once_and_cleared_when_it_is_allowed(node: Node) -> None:
    node.network.deny()
    assert node.live(29.0).alerts() == []
    assert node.live(3600.0).alerts() == ["alert.raised"]
    assert "on bridge0, en0 (" in node.check.text, "the VPN is not local"
    node.network.allow()
    assert node.live(EVERY_S + 1.0).alerts() == ["alert.raised", "alert.cleared"]
    assert node.check.text == ""


def test_a_daemon_that_is_denied_from_its_start_says_so_first() -> None:
    node = Node()
    node.network.deny()
    node.live(60.0)
    assert node.verdicts == [False]


def test_a_peer_that_is_off_is_no_denial(node: Node) -> None:
    node.network.hosts_down = {"peer of bridge0", "peer of en0", "peer of utun4"}
    assert node.live(600.0).alerts() == []


def test_a_cable_that_is_pulled_is_no_denial_and_ends_one(node: Node) -> None:
    node.network.unplugged = {"bridge0"}
    assert node.live(600.0).alerts() == []
    node.network.unplugged.clear()
    node.network.deny("bridge0")
    assert node.live(60.0).alerts() == ["alert.raised"]
    node.check.follow((WIFI, VPN))
    assert node.live(2.0).alerts() == ["alert.raised", "alert.cleared"]


@pytest.mark.anyio
async def test_other_systems_are_not_asked() -> None:
    network = FakeNetwork((CABLE,))
    network.deny()
    check = LocalNetwork(Linux(), ME.id, lambda _: None, network.multicast, network.clock)
    check.follow((CABLE,))
    await check.run()
    for _ in range(100):
        network.now += 1.0
        check.refused(CABLE.address, 65)
    assert check.text == ""


def test_the_cures_stand_in_their_order_and_name_the_peers() -> None:
    wifi = InterfaceLine("en0", Kind.WIFI, "", True, ("192.168.1.20/24",), True, "")
    found = of_denied("macOS refuses", [("169.254.10.2", 52410), ("192.168.1.21", 52411)], [wifi])
    places = [
        found.cure.index(words)
        for words in (
            "System Settings, Privacy & Security, Local Network, entry “exod”",
            "exod.app",
            "sudo exoctl service install --system",
            "AllowedEthernetLocalNetworkAddresses -array 169.254.10.2/32;",
            "AllowedWiFiLocalNetworkAddresses -array 192.168.1.21/32;",
            'cluster.peers = ["169.254.10.2:52410", "192.168.1.21:52411"]',
        )
    ]
    assert places == sorted(places)
    assert "-array PEER/32" in of_denied("", [], []).cure
