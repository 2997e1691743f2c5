"""What an interface's name and addresses tell, where the system tells nothing better. Pure.

Names are conventions of systems and of VPN products. They come after what the hardware says, and measuring
comes after both: a kind only breaks ties inside a latency band.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase

from exod.model import Kind

CARRIER_GRADE_NAT = ipaddress.IPv4Network("100.64.0.0/10")
"""RFC 6598. Tailscale, NetBird and others number their nodes from it; a cable is hardly ever numbered so."""

LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
"""RFC 3927: self-assigned. Comes and goes for minutes, so it is never an identity."""

LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")

VPN_NAMES = (
    "utun*",  # macOS: every VPN, and services of Apple's own
    "tun*",
    "tap*",
    "tailscale*",
    "wg*",
    "wireguard*",
    "nordlynx*",
    "proton*",
    "mullvad*",
    "netbird*",
    "wt[0-9]*",  # NetBird on Linux
    "zt*",  # ZeroTier on Linux
    "feth*",  # ZeroTier on macOS
    "ppp*",
    "ipsec*",
    "cscotun*",
    "gpd*",  # GlobalProtect
    "warp*",  # Cloudflare WARP
    "CloudflareWARP",
    "nebula*",
)

UNUSABLE_NAMES = (
    # macOS: peer-to-peer Wi-Fi, debugging, tunnels that are always there, virtual machines, Internet sharing.
    "awdl*",
    "llw*",
    "anpi*",
    "ap[0-9]*",
    "p2p*",
    "pktap*",
    "iptap*",
    "gif*",
    "stf*",
    "XHC*",
    "vmenet*",
    "vmnet*",
    "vnic*",
    "bridge[1-9]*",
    # Linux: containers, virtual machines, test and queueing devices. Their subnets exist on every host.
    "docker*",
    "br-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]*",
    "podman*",
    "virbr*",
    "lxcbr*",
    "lxdbr*",
    "incusbr*",
    "vnet[0-9]*",
    "cni*",
    "flannel*",
    "cali*",
    "cilium*",
    "kube-*",
    "dummy*",
    "ifb*",
    "nlmon*",
)


def kind_by_name(name: str) -> Kind | None:
    """Loopback, VPN, or other (no way to another host); None where the name says nothing sure."""
    if name in {"lo", "lo0"}:
        return Kind.LOOPBACK
    if _matches(name, VPN_NAMES):
        return Kind.VPN
    if _matches(name, UNUSABLE_NAMES):
        return Kind.OTHER
    return None


def carrier_grade_nat(addresses: Iterable[str]) -> bool:
    """Is one of these IPv4 addresses from 100.64.0.0/10?"""
    return any(ipaddress.IPv4Address(address) in CARRIER_GRADE_NAT for address in addresses)


def is_link_local(address: str) -> bool:
    return ipaddress.IPv4Address(address) in LINK_LOCAL


def is_loopback(address: str) -> bool:
    return ipaddress.IPv4Address(address) in LOOPBACK


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
