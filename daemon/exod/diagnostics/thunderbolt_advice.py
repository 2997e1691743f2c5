"""What to do about a Thunderbolt cable and macOS's bridge: no bridge, a ring of cables, a lease of the LAN. Pure.

Decides the texts of `exoctl netcheck` and `exoctl doctor`; looks at nothing and changes nothing itself. Each
command is one that is known to do what it says, and none adds a route: `route add -host … -interface …` makes the
kernel send the peer's frames to this Mac itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from exod.daemon_api.shapes import InterfaceLine, NetworkCheck
from exod.model import Kind, ThunderboltPort
from exod.wrong_route import BRIDGE_SERVICE, cable_addresses

BRIDGE: Final = "bridge0"
"""macOS's own bridge over the Thunderbolt ports."""

_LINK_LOCAL: Final = ipaddress.IPv4Network("169.254.0.0/16")


class BridgeCommands:
    """For the bridge's network service, by the name that it has on this Mac."""

    def __init__(self, service: str) -> None:
        self.on = f'sudo networksetup -setnetworkserviceenabled "{service}" on'
        self.off = f'sudo networksetup -setnetworkserviceenabled "{service}" off'
        # Without a DHCP server on the cable both ends then take addresses of their own (169.254), which do.
        self.ipv4 = f'sudo networksetup -setdhcp "{service}"'
        self.addresses = cable_addresses(service)


def check_thunderbolt(
    ports: Sequence[ThunderboltPort],
    interfaces: Sequence[InterfaceLine],
    primary: str | None = None,
    service: str = BRIDGE_SERVICE,
) -> list[NetworkCheck]:
    """One check for each receptacle with a computer behind it, and one for each thing wrong with the bridge.

    `primary` is the interface of the default route, `service` what the bridge's network service is called.
    """
    commands = BridgeCommands(service)
    cabled = [port for port in ports if port.connected and (port.peer_name or port.peer_domain)]
    checks = [_check_cable(port, interfaces, commands) for port in cabled]
    bridge = next((line for line in interfaces if line.name == BRIDGE), None)
    if bridge is not None and bridge.eligible:
        if len(cabled) > 1:
            checks.append(_ring_of_cables(len(cabled), commands))
        checks += _check_addresses(bridge, interfaces, primary, bool(cabled), commands)
    if ports and not any(port.connected for port in ports):
        checks.append(_nothing_connected())
    return checks


def _check_cable(
    port: ThunderboltPort, interfaces: Sequence[InterfaceLine], commands: BridgeCommands
) -> NetworkCheck:
    subject = f"receptacle {port.receptacle or 'unknown'}"
    cable = f"cable to {port.peer_name or port.peer_domain}" + (f" at {port.speed}" if port.speed else "")
    usable = [line.name for line in interfaces if line.kind is Kind.THUNDERBOLT and line.eligible]
    if usable:
        return NetworkCheck("thunderbolt", subject, ok=True, text=f"{cable}; carried by {', '.join(usable)}")
    if any(line.name == BRIDGE for line in interfaces):
        text = f"{cable}, but {BRIDGE} is down, switched off or has no IPv4 address, and exod speaks IPv4 alone"
        cure = f"{commands.on}; where IPv4 is off in its settings: {commands.ipv4}"
        return NetworkCheck("thunderbolt", subject, ok=False, text=text, cure=cure)
    text = f"{cable}, but no Thunderbolt interface has an address: {BRIDGE} is missing"
    return NetworkCheck("thunderbolt", subject, ok=False, text=text, cure=_bring_back(port.interface or "enX"))


def _bring_back(device: str) -> str:
    """macOS loses the bridge after some crashes. What lasts comes first."""
    return (
        "unplug the cable and plug it in again; then restart this Mac; then System Settings, Network, Manage "
        "Virtual Interfaces, add a bridge of the Thunderbolt ports. Until the next restart: "
        f"sudo ifconfig {BRIDGE} create; sudo ifconfig {BRIDGE} addm {device} up; sudo ipconfig set {BRIDGE} DHCP"
    )


def _ring_of_cables(count: int, commands: BridgeCommands) -> NetworkCheck:
    text = (
        f"{count} computers are cabled to one bridge, and macOS's bridge has no loop protection: "
        "where the cables close a ring, frames circle for ever"
    )
    cure = (
        "in a ring of three Macs unplug one cable, or switch the bridge off on all of them and give each cable a "
        f"/30 of its own (System Settings, Network): {commands.off}"
    )
    return NetworkCheck("thunderbolt", "bridge", ok=True, text=text, cure=cure)


def _check_addresses(
    bridge: InterfaceLine,
    interfaces: Sequence[InterfaceLine],
    primary: str | None,
    has_cable: bool,
    commands: BridgeCommands,
) -> list[NetworkCheck]:
    """Whose subnet is the bridge in? Self-assigned addresses are no fault, and may be replaced by set ones."""
    twin = next((line.name for line in interfaces if line is not bridge and _share_subnet(line, bridge)), None)
    if primary == BRIDGE or twin is not None:
        trouble = f"carries this Mac's default route: {BRIDGE} took a lease from a router behind the cable"
        if primary != BRIDGE:
            trouble = f"has an address of the subnet that {twin} is in: other programs may take either"
        text = f"{BRIDGE} {trouble}"
        return [NetworkCheck("thunderbolt", "bridge", ok=False, text=text, cure=commands.addresses)]
    if has_cable and bridge.addresses and all(_is_link_local(one) for one in bridge.addresses):
        text = f"{BRIDGE} has a self-assigned address, which may change; one that is set lasts"
        return [NetworkCheck("thunderbolt", "bridge", ok=True, text=text, cure=commands.addresses)]
    return []


def _nothing_connected() -> NetworkCheck:
    text = "no receptacle reports a device; with a cable in, macOS has lost the port, as after some crashes"
    cure = "unplug the cable at both ends and plug it in again, try another receptacle, then restart both Macs"
    return NetworkCheck("thunderbolt", "receptacles", ok=True, text=text, cure=cure)


def _is_link_local(address: str) -> bool:
    return ipaddress.IPv4Interface(address).ip in _LINK_LOCAL


def _share_subnet(one: InterfaceLine, other: InterfaceLine) -> bool:
    """Self-assigned addresses do not count: every interface has them in the same subnet."""
    networks = [
        {ipaddress.IPv4Interface(address).network for address in line.addresses if not _is_link_local(address)}
        for line in (one, other)
    ]
    return any(mine.overlaps(its) for mine in networks[0] for its in networks[1])
