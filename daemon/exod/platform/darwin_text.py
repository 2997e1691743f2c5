"""What macOS's tools print -> facts. Pure functions of text, tolerant: what is missing is unknown, never an error.

Labels are English on every system (`networksetup` is not localised); ports, devices and keys come and go with
models, releases and virtual machines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from exod.model import Kind, ThunderboltPort
from exod.platform.names import carrier_grade_nat, kind_by_name


class InterfaceFacts(msgspec.Struct, frozen=True):
    """One interface's block of `ifconfig -v`."""

    members: tuple[str, ...] = ()
    """A bridge's ports."""
    is_vpn: bool = False
    type: str = ""
    """`Wi-Fi`, `Ethernet`, …"""
    status: str = ""
    """`active` or `inactive`; many have none."""


class NetworkFacts(msgspec.Struct, frozen=True):
    """What the tools said together."""

    ports: Mapping[str, str] = MappingProxyType({})
    """Device -> hardware port: `en5` -> `Thunderbolt 4`."""
    disabled: frozenset[str] = frozenset()
    """Devices whose network service is switched off in System Settings."""
    services: Mapping[str, str] = MappingProxyType({})
    """Device -> network service: `bridge0` -> `Thunderbolt Bridge`, in the language that macOS was set up in."""
    interfaces: Mapping[str, InterfaceFacts] = MappingProxyType({})


_THUNDERBOLT_PORT = re.compile(r"Thunderbolt (Bridge|\d+)")
"""Whole names: `Thunderbolt Ethernet Slot 1` is an Ethernet adapter."""

_TETHERING = ("iPhone", "iPad", "Bluetooth")


def classify_interface(facts: NetworkFacts, name: str, addresses: Sequence[str]) -> tuple[Kind, str]:
    """Hardware port first, then a bridge's members, what `ifconfig` says, addresses, and the name last."""
    kind, why = _classify(facts, name, addresses)
    if name in facts.disabled:
        why += "; its network service is disabled in System Settings"
    return kind, why


def _classify(facts: NetworkFacts, name: str, addresses: Sequence[str]) -> tuple[Kind, str]:
    port = facts.ports.get(name)
    if port is not None:
        kind = _kind_of_port(port, name)
        if kind is not None:
            return kind, f"hardware port “{port}”"
    interface = facts.interfaces.get(name, InterfaceFacts())
    if interface.members:
        return _kind_of_bridge(facts, interface.members)
    if name == "bridge0":
        return Kind.THUNDERBOLT, "named bridge0, as macOS names its Thunderbolt bridge"
    if interface.is_vpn:
        return Kind.VPN, "marked as a VPN by the system"
    if carrier_grade_nat(addresses):
        return Kind.VPN, "an address of 100.64.0.0/10, which VPNs use"
    by_name = kind_by_name(name)
    if by_name is not None:
        return by_name, f"named {name}"
    if interface.type == "Wi-Fi":
        return Kind.WIFI, "a wireless device"
    if re.fullmatch(r"(en|vlan|bond)\d+", name):
        return Kind.ETHERNET, f"named {name}"
    return Kind.OTHER, f"of an unknown type ({interface.type or 'none given'})"


def _kind_of_port(port: str, device: str) -> Kind | None:
    if _THUNDERBOLT_PORT.fullmatch(port):
        return Kind.THUNDERBOLT
    if port in {"Wi-Fi", "AirPort"}:
        return Kind.WIFI
    if port.startswith(_TETHERING):
        return Kind.OTHER
    # Every other port with an `en` device is Ethernet, under the name of its adapter: `Ethernet`, `10G
    # Ethernet`, `USB 10/100/1000 LAN`, `AX88179A`.
    return Kind.ETHERNET if device.startswith("en") else None


def _kind_of_bridge(facts: NetworkFacts, members: Sequence[str]) -> tuple[Kind, str]:
    kinds = {_kind_of_port(facts.ports.get(member, ""), member) for member in members}
    if Kind.THUNDERBOLT in kinds:
        return Kind.THUNDERBOLT, f"a bridge of Thunderbolt ports ({', '.join(members)})"
    if Kind.ETHERNET in kinds:
        return Kind.ETHERNET, f"a bridge with a hardware port ({', '.join(members)})"
    return Kind.OTHER, "a bridge without a hardware port (Internet sharing, virtual machines)"


def parse_hardware_ports(text: str) -> dict[str, str]:
    """`networksetup -listallhardwareports` -> device -> port, user-defined VLANs included as `VLAN NAME`."""
    ports: dict[str, str] = {}
    port = ""
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        match key:
            case "Hardware Port":
                port = value.strip()
            case "VLAN User Defined Name":
                port = f"VLAN {value.strip()}"
            case "Device" | 'Device ("Hardware" Port)':
                if port and value.strip():
                    ports[value.strip()] = port
                port = ""
    return ports


_SERVICE = re.compile(r"\((?P<place>\*?\d*)\) (?P<name>.+)")
_SERVICE_DEVICE = re.compile(r"\(Hardware Port: .*, Device: ?(?P<device>[^)]*)\)")


def parse_disabled_services(text: str) -> frozenset[str]:
    """`networksetup -listnetworkserviceorder` -> devices of disabled services: `(*) Name` or `(*3) Name`.

    A device with one enabled service is enabled. Services may have no device at all.
    """
    disabled: set[str] = set()
    enabled: set[str] = set()
    for device, _, is_disabled in _services(text):
        (disabled if is_disabled else enabled).add(device)
    return frozenset(disabled - enabled)


def parse_service_names(text: str) -> dict[str, str]:
    """The same output -> device -> its first service's name, where a shell can take that between double quotes."""
    names: dict[str, str] = {}
    for device, name, _ in _services(text):
        if not set(name) & set('"$`\\!'):
            names.setdefault(device, name)
    return names


def _services(text: str) -> Iterator[tuple[str, str, bool]]:
    """Device, service, and whether the service is disabled."""
    name, is_disabled = "", False
    for line in text.splitlines():
        line = line.strip()
        if (device := _SERVICE_DEVICE.fullmatch(line)) is not None:
            if name and device["device"].strip():
                yield device["device"].strip(), name, is_disabled
        elif (service := _SERVICE.fullmatch(line)) is not None:
            name, is_disabled = service["name"].strip(), service["place"].startswith("*")


_INTERFACE_HEAD = re.compile(r"(?P<name>[A-Za-z][\w.-]*): flags=")


def parse_ifconfig(text: str) -> dict[str, InterfaceFacts]:
    """`ifconfig -v` -> facts of each interface."""
    interfaces: dict[str, InterfaceFacts] = {}
    name = ""
    for line in text.splitlines():
        head = _INTERFACE_HEAD.match(line)
        if head is not None:
            name = head["name"]
            interfaces[name] = InterfaceFacts()
            continue
        if not name:
            continue
        known = interfaces[name]
        key, _, value = line.strip().partition(": ")
        if key == "member":
            interfaces[name] = msgspec.structs.replace(known, members=(*known.members, value.split()[0]))
        elif key == "type":
            interfaces[name] = msgspec.structs.replace(known, type=value.strip())
        elif key == "status":
            interfaces[name] = msgspec.structs.replace(known, status=value.strip())
        elif ("agent domain:" in line and " type:VPN " in f"{line} ") or (
            line.strip().startswith("xflags=") and "IS_VPN" in line
        ):
            interfaces[name] = msgspec.structs.replace(known, is_vpn=True)
    return interfaces


_NWI_INTERFACE = re.compile(r"\s+(?P<name>[a-z]+\d+) : flags\s*:")


def parse_nwi_primary(text: str) -> str | None:
    """`scutil --nwi` -> the first interface of its IPv4 part, which is the one of the default route."""
    in_ipv4 = False
    for line in text.splitlines():
        if line.startswith("IPv4 network interface"):
            in_ipv4 = True
        elif line.startswith("IPv6 network interface"):
            return None
        elif in_ipv4 and (match := _NWI_INTERFACE.match(line)) is not None:
            return match["name"]
    return None


_RECEPTACLE_TAG = re.compile(r"receptacle_\d+_tag")

_CONNECTED = {"receptacle_connected": True, "receptacle_no_devices_connected": False}


def parse_thunderbolt(text: str, ports: Mapping[str, str]) -> tuple[ThunderboltPort, ...]:
    """`system_profiler SPThunderboltDataType -json` -> receptacles, in the system's order.

    `ports` is `parse_hardware_ports`: receptacle 4 is the device of hardware port `Thunderbolt 4`.
    """
    try:
        buses = json.loads(text).get("SPThunderboltDataType", [])
    except (ValueError, AttributeError):
        return ()
    device_of = {port: device for device, port in ports.items()}
    found: list[ThunderboltPort] = []
    for bus in buses if isinstance(buses, list) else []:
        if not isinstance(bus, dict):
            continue
        tags = [tag for key, tag in bus.items() if _RECEPTACLE_TAG.fullmatch(key) and isinstance(tag, dict)]
        peers = list(_computers(bus.get("_items")))
        connected = [tag for tag in tags if _CONNECTED.get(_text(tag, "receptacle_status_key"))]
        for tag in tags:
            # A bus of two receptacles does not say which of them its devices hang on.
            peer = peers[0] if len(peers) == 1 and connected == [tag] else {}
            receptacle = _text(tag, "receptacle_id_key")
            found.append(
                ThunderboltPort(
                    receptacle=receptacle,
                    connected=_CONNECTED.get(_text(tag, "receptacle_status_key")),
                    speed=_text(tag, "current_speed_key"),
                    interface=device_of.get(f"Thunderbolt {receptacle}", ""),
                    domain=_text(bus, "domain_uuid_key"),
                    peer_name=_text(peer, "device_name_key"),
                    peer_domain=_text(peer, "domain_uuid_key"),
                )
            )
    return tuple(found)


def _computers(items: object) -> Iterator[dict[str, Any]]:
    """Peers that are computers have a domain of their own; disks and docks have a switch and a mode."""
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            if _text(item, "domain_uuid_key"):
                yield item
            yield from _computers(item.get("_items"))


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""
