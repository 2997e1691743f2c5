"""What sysfs and proc say about a link -> its kind. Pure: the files are read by linux.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from exod.model import Kind
from exod.platform.names import carrier_grade_nat, kind_by_name

# ARPHRD_* of <linux/if_arp.h>, as `/sys/class/net/*/type` prints them.
_ETHERNET = "1"
_PPP = "512"
_LOOPBACK = "772"
_NONE = "65534"
_TUNNELS = {"768", "769", "776", "778"}  # IPIP, IP6IP6, SIT, GRE

_THUNDERBOLT_DRIVERS = {"thunderbolt-net", "thunderbolt_net"}


class LinkFacts(msgspec.Struct, frozen=True):
    """`/sys/class/net/NAME/`: texts as read, empty where the file is missing."""

    name: str
    hardware_type: str = ""
    uevent: str = ""
    driver: str = ""
    has_device: bool = False
    is_wireless: bool = False
    is_bridge: bool = False
    is_tunnel_device: bool = False
    has_physical_member: bool = False


def classify_link(link: LinkFacts, addresses: Sequence[str]) -> tuple[Kind, str]:
    """Hardware first, then what the kernel says the device is, then addresses, then names."""
    device_type = _device_type(link.uevent)
    hardware = link.hardware_type.strip()
    if hardware == _LOOPBACK:
        return Kind.LOOPBACK, "the loopback device"
    if link.driver in _THUNDERBOLT_DRIVERS:
        return Kind.THUNDERBOLT, f"driver {link.driver}"
    if device_type == "wlan" or link.is_wireless:
        return Kind.WIFI, "a wireless device"
    if link.has_device and hardware == _ETHERNET:
        return Kind.ETHERNET, f"hardware, driver {link.driver or 'unknown'}"
    if _named_thunderbolt(link):
        return Kind.THUNDERBOLT, f"named {link.name}, as Thunderbolt links are"
    if carrier_grade_nat(addresses):
        return Kind.VPN, "an address of 100.64.0.0/10, which VPNs use"
    if link.is_tunnel_device or device_type == "wireguard" or hardware in {_PPP, _NONE, *_TUNNELS}:
        return Kind.VPN, "a tunnel device"
    if link.is_bridge or device_type == "bridge":
        if link.has_physical_member:
            return Kind.ETHERNET, "a bridge with a hardware port"
        return Kind.OTHER, "a bridge without a hardware port (containers, virtual machines)"
    by_name = kind_by_name(link.name)
    if by_name is not None:
        return by_name, f"named {link.name}"
    if hardware == _ETHERNET:
        return Kind.ETHERNET, "an Ethernet device without hardware (bond, VLAN, container)"
    return Kind.OTHER, f"of an unknown type ({hardware or 'none given'})"


def parse_default_route(route_table: str) -> str | None:
    """The interface of `/proc/net/route`'s default route with the lowest metric."""
    best: tuple[int, str] | None = None
    for line in route_table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        candidate = (int(fields[6]), fields[0])
        if best is None or candidate < best:
            best = candidate
    return best[1] if best is not None else None


def _device_type(uevent: str) -> str:
    for line in uevent.splitlines():
        key, _, value = line.partition("=")
        if key == "DEVTYPE":
            return value.strip()
    return ""


def _named_thunderbolt(link: LinkFacts) -> bool:
    """`thunderbolt0` is what the driver's links are called, where sysfs cannot tell (in containers); `bridge0`
    is macOS's Thunderbolt bridge, so a Linux link of that name that is no bridge stands for one, as in the lab.
    """
    apple_style = re.fullmatch(r"bridge\d+", link.name) is not None and not link.is_bridge
    return link.name.startswith("thunderbolt") or apple_style
