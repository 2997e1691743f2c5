"""`exoctl netcheck`: this host's interfaces, its Thunderbolt ports, multicast DNS, and whether peers answer.

Looks and tells; it changes nothing, and nothing here steers the mesh. Runs only when a person asks, as it takes a
second or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from exod.daemon_api.discovery_state import DiscoveryState
from exod.daemon_api.shapes import InterfaceLine, NetcheckReport, NetworkCheck
from exod.diagnostics.thunderbolt_advice import BRIDGE, check_thunderbolt
from exod.model import Kind
from exod.platform.system import Platform
from exod.wrong_route import BRIDGE_SERVICE

CONNECT_S: Final = 2.0
"""For a TCP handshake: a VPN takes 0.1 s, and one lost SYN is sent again after 1 s."""


class PeerPort(msgspec.Struct, frozen=True):
    """Where a peer should answer."""

    name: str
    address: str
    port: int
    local: str = ""
    interface: str = ""
    """This end of the path, which the connection is bound to. Empty: as the route table goes."""


async def netcheck(
    platform: Platform,
    interfaces: tuple[InterfaceLine, ...],
    discovery: DiscoveryState | None,
    peers: Sequence[PeerPort],
) -> NetcheckReport:
    """`discovery` is None where the config switches multicast DNS off. Takes `CONNECT_S` and a little more."""
    answering = asyncio.gather(*(check_peer(platform, peer) for peer in peers))
    ports, primary, answers = await asyncio.gather(platform.thunderbolt(), platform.primary_interface(), answering)
    checks = [
        check_mdns(discovery),
        check_primary(primary, interfaces),
        *check_thunderbolt(ports, interfaces, primary, platform.network_service(BRIDGE) or BRIDGE_SERVICE),
        *check_cable_address(interfaces, platform.system),
        *answers,
    ]
    return NetcheckReport(interfaces=interfaces, checks=tuple(checks))


def check_mdns(state: DiscoveryState | None) -> NetworkCheck:
    """Is this node announced, and does it hear anyone?"""
    if state is None:
        text = "switched off by cluster.mdns: peers are found by cluster.peers alone"
        return NetworkCheck("mdns", "multicast DNS", ok=True, text=text)
    if state.error:
        cure = "see which program holds UDP port 5353 without sharing it: sudo lsof -nP -iUDP:5353"
        return NetworkCheck("mdns", "multicast DNS", ok=False, text=state.error, cure=cure)
    if not state.announced_on:
        text = "not announced: no eligible interface but VPNs"
        cure = (
            "connect a cable or a network that gives an IPv4 address (exod speaks no IPv6); peers beyond a VPN are "
            "named by cluster.peers"
        )
        return NetworkCheck("mdns", "multicast DNS", ok=False, text=text, cure=cure)
    heard = ", ".join(sorted(peer.name for peer in state.peers)) or "nobody yet"
    text = f"announced on {', '.join(state.announced_on)}; heard: {heard}"
    if not state.hears_itself:
        text = f"announced on {', '.join(state.announced_on)}, and not even heard on this host: it is blocked here"
        cure = "allow UDP port 5353 in this host's firewall, or name the other nodes in cluster.peers"
        return NetworkCheck("mdns", "multicast DNS", ok=False, text=text, cure=cure)
    if not state.peers:
        text += "; where other nodes should be, it may be blocked: name them in cluster.peers"
    return NetworkCheck("mdns", "multicast DNS", ok=True, text=text)


def check_primary(primary: str | None, interfaces: Sequence[InterfaceLine]) -> NetworkCheck:
    """Whatever lies in no subnet of this host leaves by the default route."""
    if primary is None:
        text = "there is none: only hosts on this host's own subnets can be reached"
        return NetworkCheck("primary", "default route", ok=True, text=text)
    kind = next((line.kind for line in interfaces if line.name == primary), None)
    if kind is Kind.VPN:
        text = f"leaves by {primary}, a VPN: a peer that shares no subnet with this host is reached through it"
        return NetworkCheck("primary", "default route", ok=True, text=text)
    return NetworkCheck("primary", "default route", ok=True, text=f"leaves by {primary}")


def check_cable_address(interfaces: Sequence[InterfaceLine], system: str) -> list[NetworkCheck]:
    """On Linux: a cable whose interface has no IPv4 address. A Mac's bridge has checks of its own."""
    cables = [line for line in interfaces if line.kind is Kind.THUNDERBOLT and line.up]
    if system == "darwin" or any(line.eligible for line in cables):
        return []
    return [
        NetworkCheck(
            "thunderbolt",
            line.name,
            ok=False,
            text=line.why,
            cure=f"sudo ip address add 10.254.0.1/30 dev {line.name}; there with 10.254.0.2/30",
        )
        for line in cables
        if not line.addresses
    ]


async def check_peer(platform: Platform, peer: PeerPort) -> NetworkCheck:
    """Does the peer's mesh port take a connection that is bound as our own are?"""
    subject = f"{peer.name} {peer.address}:{peer.port}"
    try:
        async with asyncio.timeout(CONNECT_S):
            writer = await _connect(platform, peer)
    except TimeoutError:
        text = f"no answer within {CONNECT_S:g} s: a firewall drops it, or the way back is another"
        cure = f"allow TCP and UDP port {peer.port} there"
        return NetworkCheck("port", subject, ok=False, text=text, cure=cure)
    except OSError as error:
        return NetworkCheck("port", subject, ok=False, text=_reason(error), cure=_cure(platform, error))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return NetworkCheck("port", subject, ok=True, text="answers")


async def _connect(platform: Platform, peer: PeerPort) -> asyncio.StreamWriter:
    if not peer.interface:
        _, writer = await asyncio.open_connection(peer.address, peer.port)
        return writer
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with contextlib.suppress(PermissionError):
            platform.bind_to_interface(sock, peer.interface)
        sock.bind((peer.local, 0))
        await asyncio.get_running_loop().sock_connect(sock, (peer.address, peer.port))
        _, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    return writer


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _cure(platform: Platform, error: OSError) -> str:
    if error.errno is not None and platform.local_network_privacy_suspected(error.errno):
        return (
            "if ping works, macOS keeps exod from the local network: allow it in System Settings, Privacy & "
            "Security, Local Network, or install it for the system: sudo exoctl service install --system"
        )
    if isinstance(error, ConnectionRefusedError):
        return "exod does not run there, or listens on another port: exoctl status on that host"
    return "exoctl netcheck on that host shows its addresses"
