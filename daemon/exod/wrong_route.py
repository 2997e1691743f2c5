"""When the route to a peer's address is wrong, how that is reported, and what mends it.

A route is right where connections leave from the address that the path begins at. Pure: it asks for no route, runs
nothing, and the daemon changes no route. `platform` is "darwin" or "linux"; addresses are IPv4.
"""

from __future__ import annotations

from typing import Final

BRIDGE_SERVICE: Final = "Thunderbolt Bridge"
"""What an English macOS calls the bridge's network service when it makes it."""


def cable_addresses(service: str = BRIDGE_SERVICE) -> str:
    """Gives a Mac's Thunderbolt bridge a subnet of its own: two hosts need no more than a /30."""
    return (
        f'sudo networksetup -setmanual "{service}" 10.254.0.1 255.255.255.252; '
        "on the other Mac the same with 10.254.0.2"
    )


def is_right(leaves_from: str | None, local: str) -> bool:
    """`leaves_from` is the address that a connection would leave from; None where there is no route."""
    return leaves_from == local


def wrong_route_text(
    interface: str, local: str, remote: str, leaves_from: str | None, taken_interface: str, platform: str
) -> str:
    """Both interfaces, and the command that mends it. `taken_interface` is the one that has `leaves_from`."""
    if leaves_from is None:
        taken = f"there is no route to {remote}"
    else:
        taken = (
            f"connections to {remote} leave from {taken_interface} ({leaves_from}), not from {interface} ({local})"
        )
    return f"{taken}; mend it: {route_cure(platform, interface, local, remote)}"


def route_cure(platform: str, interface: str, local: str, remote: str) -> str:
    """`local` is the address of `interface`."""
    if platform == "darwin":
        # No route: one that is bound to an interface makes macOS send the peer's frames to this Mac itself.
        return (
            f"give {interface} a subnet of its own (System Settings, Network); for the cable: {cable_addresses()}"
        )
    # Not `add`: that fails where a route to this very address exists already and leads elsewhere.
    return f"sudo ip route replace {remote}/32 dev {interface} src {local}"
