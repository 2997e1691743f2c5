"""What netcheck tells a person, and what to do about it."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from exod.daemon_api.discovery_state import DiscoveryState, PeerFound
from exod.daemon_api.shapes import InterfaceLine
from exod.diagnostics.netcheck import (
    PeerPort,
    check_cable_address,
    check_mdns,
    check_peer,
    check_primary,
    netcheck,
)
from exod.diagnostics.thunderbolt_advice import check_thunderbolt
from exod.model import Kind, NodeId, ThunderboltPort
from exod.platform.linux import Linux

STUDIO2 = PeerFound(NodeId("00000000000000bb"), "studio2", ("10.0.0.2",), 52410, 1)


def line(name: str, kind: Kind, eligible: bool = True) -> InterfaceLine:
    return InterfaceLine(name, kind, "", True, ("10.0.0.1/24",), eligible, "")


def cable(receptacle: str, peer: str = "studio2", connected: bool = True) -> ThunderboltPort:
    return ThunderboltPort(
        receptacle, connected, "80 Gb/s", f"en{receptacle}", "AAAA", peer, "BBBB" if peer else ""
    )


def test_mdns_says_where_it_speaks_and_whom_it_hears() -> None:
    check = check_mdns(DiscoveryState(("10.0.0.1",), (STUDIO2,), ""))
    assert check.ok
    assert "10.0.0.1" in check.text
    assert "studio2" in check.text
    assert check_mdns(None).ok


@pytest.mark.parametrize(
    "state", [DiscoveryState((), (), ""), DiscoveryState((), (), "multicast DNS does not work: address in use")]
)
def test_mdns_that_does_not_work_has_a_cure(state: DiscoveryState) -> None:
    check = check_mdns(state)
    assert not check.ok
    assert check.cure


def test_a_default_route_through_a_vpn_is_pointed_out() -> None:
    lines = [line("utun4", Kind.VPN), line("en0", Kind.ETHERNET)]
    assert "a VPN" in check_primary("utun4", lines).text
    assert "a VPN" not in check_primary("en0", lines).text
    assert "none" in check_primary(None, lines).text


def test_a_cable_without_a_bridge_is_named_with_the_command_that_brings_it_back() -> None:
    (check,) = check_thunderbolt([cable("4"), cable("1", "", False)], [line("bridge0", Kind.THUNDERBOLT, False)])
    assert not check.ok
    assert check.subject == "receptacle 4"
    assert "studio2" in check.text
    assert "setnetworkserviceenabled" in check.cure


def test_a_cable_that_is_used_is_said_to_be() -> None:
    (check,) = check_thunderbolt([cable("4")], [line("bridge0", Kind.THUNDERBOLT)])
    assert check.ok
    assert "80 Gb/s" in check.text
    assert "bridge0" in check.text


def test_a_cable_without_ipv4_is_named_with_the_command_that_gives_it_an_address() -> None:
    bare = InterfaceLine("thunderbolt0", Kind.THUNDERBOLT, "", True, (), False, "it has IPv6 addresses only")
    (check,) = check_cable_address([bare, line("eth0", Kind.ETHERNET)], "linux")
    assert not check.ok
    assert check.text == "it has IPv6 addresses only"
    assert check.cure.startswith("sudo ip address add 10.254.0.1/30 dev thunderbolt0;")
    assert check_cable_address([bare], "darwin") == []
    assert check_cable_address([bare, line("thunderbolt1", Kind.THUNDERBOLT)], "linux") == []


def test_a_disk_is_no_cable_to_a_peer() -> None:
    assert check_thunderbolt([cable("4", "")], []) == []


def test_two_cables_into_one_bridge_come_with_a_warning_and_two_ports_do_not() -> None:
    cables = [cable("1", "studio2"), cable("2", "studio3")]
    bridged = check_thunderbolt(cables, [line("bridge0", Kind.THUNDERBOLT)])
    assert [check.subject for check in bridged] == ["receptacle 1", "receptacle 2", "bridge"]
    assert "no loop protection" in bridged[-1].text
    ports = check_thunderbolt(cables, [line("en2", Kind.THUNDERBOLT), line("en3", Kind.THUNDERBOLT)])
    assert len(ports) == 2


@pytest.mark.anyio
async def test_a_peer_that_answers_and_one_that_refuses() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answering = await check_peer(Linux(), PeerPort("studio2", "127.0.0.1", port))
    server.close()
    await server.wait_closed()
    assert answering.ok
    assert answering.subject == f"studio2 127.0.0.1:{port}"
    refusing = await check_peer(Linux(), PeerPort("studio2", "127.0.0.1", port))
    assert not refusing.ok
    assert "refused" in refusing.text
    assert "does not run there" in refusing.cure


class Private(Linux):
    """A platform on which every error looks like Local Network privacy."""

    def local_network_privacy_suspected(self, errno: int) -> bool:
        return True


@pytest.mark.anyio
async def test_local_network_privacy_is_named_with_its_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    check = await check_peer(Private(), PeerPort("studio2", "10.0.0.2", 52410))
    assert "Local Network" in check.cure
    assert "--system" in check.cure
    check = await check_peer(Linux(), PeerPort("studio2", "10.0.0.2", 52410))
    assert "Local Network" not in check.cure


@pytest.mark.anyio
async def test_the_whole_report_on_this_host() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        peer = PeerPort("itself", "127.0.0.1", listener.getsockname()[1])
        report = await netcheck(Linux(), (line("en0", Kind.ETHERNET),), None, [peer])
    assert [check.name for check in report.checks] == ["mdns", "primary", "port"]
    assert report.checks[-1].ok
    assert report.interfaces[0].name == "en0"
