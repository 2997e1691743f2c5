"""The cure of a wrong route: what makes connections to an address leave by the interface that is meant.

Pure text: it runs nothing, and the daemon changes no route. `platform` is "darwin" or "linux"; addresses are IPv4.
"""

from __future__ import annotations

from typing import Final

CABLE_ADDRESSES: Final = (
    'sudo networksetup -setmanual "Thunderbolt Bridge" 10.254.0.1 255.255.255.252; '
    "on the other Mac the same with 10.254.0.2"
)
"""Gives a Mac's Thunderbolt bridge a subnet of its own: two hosts need no more than a /30."""


def route_cure(platform: str, interface: str, local: str, remote: str) -> str:
    """`local` is the address of `interface`."""
    if platform == "darwin":
        # No route: one that is bound to an interface makes macOS send the peer's frames to this Mac itself.
        return f"give {interface} a subnet of its own (System Settings, Network); for the cable: {CABLE_ADDRESSES}"
    # Not `add`: that fails where a route to this very address exists already and leads elsewhere.
    return f"sudo ip route replace {remote}/32 dev {interface} src {local}"
