"""What `exoctl doctor` finds on a Mac alone: protected folders, Local Network privacy, sleep, firewall. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

from exod.daemon_api.shapes import Finding, InterfaceLine
from exod.model import Kind

PROTECTED: Final = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents")
"""Folders of a home that macOS's privacy control (TCC) keeps from programs that nobody allowed."""

VOLUMES: Final = PurePath("/Volumes")
"""External disks and network shares: protected in the same way."""


def of_protected_folders(places: Mapping[str, PurePath], home: PurePath) -> list[Finding]:
    """`places`: what lies where, as text: `the model` -> its folder."""
    found = []
    for what, place in places.items():
        guarded = next((home / name for name in PROTECTED if place.is_relative_to(home / name)), None)
        if guarded is None and place.is_relative_to(VOLUMES):
            guarded = VOLUMES
        if guarded is None:
            continue
        text = (
            f"{what} lies in {guarded} ({place}): macOS keeps that from what launchd starts, and exod as a service "
            "is told “Operation not permitted”"
        )
        cure = (
            f"move it to another folder of the home, such as {home / 'exod'}, or allow exod in System Settings, "
            "Privacy & Security, Full Disk Access"
        )
        found.append(Finding("protected_folder", "warning", what, text, cure))
    return found


def of_denied(text: str, peers: Sequence[tuple[str, int]], interfaces: Sequence[InterfaceLine]) -> Finding:
    """Local Network privacy, with its cures in the order in which to try them. `peers`: (address, mesh port)."""
    wifi = [ipaddress.IPv4Interface(one) for line in interfaces if line.kind is Kind.WIFI for one in line.addresses]
    over_wifi = [one for one, _ in peers if any(ipaddress.IPv4Address(one) in way.network for way in wifi)]
    over_cable = [one for one, _ in peers if one not in over_wifi]
    named = ", ".join(f'"{address}:{port}"' for address, port in peers) or '"PEER:52410"'
    cures = [
        "allow it: System Settings, Privacy & Security, Local Network, entry “exod”; exod goes on by itself then",
        "if there is no such entry: exoctl service install, which makes exod.app, what macOS asks about",
        "run it for the system, which macOS mostly exempts: sudo exoctl service install --system",
        f"without a screen, from macOS 15.5: {_allow_list(over_cable, over_wifi)}; then restart this Mac",
        f"such a list may leave multicast out: also set cluster.peers = [{named}] in the configuration",
    ]
    cure = "in this order: " + " ".join(f"({place}) {one}." for place, one in enumerate(cures, start=1))
    return Finding("local_network_denied", "error", "Local Network", text, cure)


def _allow_list(over_cable: Sequence[str], over_wifi: Sequence[str]) -> str:
    cable = " ".join(f"{one}/32" for one in over_cable) or "PEER/32"
    command = (
        f"sudo defaults write com.apple.network.local-network AllowedEthernetLocalNetworkAddresses -array {cable}"
    )
    if not over_wifi:
        return command
    wifi = " ".join(f"{one}/32" for one in over_wifi)
    return (
        f"{command}; "
        f"sudo defaults write com.apple.network.local-network AllowedWiFiLocalNetworkAddresses -array {wifi}"
    )


def of_sleep(pmset: str) -> list[Finding]:
    """`pmset`: what `pmset -g` prints. No output, or another form of it, finds nothing."""
    match = re.search(r"^\s*sleep\s+(\d+)", pmset, re.MULTILINE)
    if match is None or int(match[1]) == 0:
        return []
    text = (
        f"this Mac sleeps after {match[1]} min without input. exod keeps it awake while its rank loads or answers; "
        "asleep it is out of the mesh"
    )
    return [Finding("sleeps", "warning", "power", text, "sudo pmset -c sleep 0")]


FIREWALL: Final = ("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate")


def of_firewall(told: str) -> tuple[list[Finding], str]:
    """`told`: what FIREWALL prints, such as `Firewall is enabled. (State = 1)`. The second value is a fact for
    people where it is on; that is no fault, since it asks for each program.
    """
    state = re.search(r"State = (\d)", told)
    if state is None or state[1] == "0":
        return [], ""
    if state[1] == "1":
        fact = (
            "macOS's firewall is on: exod and Python must be allowed in System Settings, Network, Firewall, "
            "Options (the mesh is exod's, the ring Python's)"
        )
        return [], fact
    text = "macOS's firewall blocks all incoming connections: no other node reaches this one"
    cure = "System Settings, Network, Firewall, Options: switch off “Block all incoming connections”"
    return [Finding("firewall_blocks", "error", "firewall", text, cure)], ""
