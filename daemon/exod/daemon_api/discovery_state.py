"""Who is found by multicast DNS who is lost, and what keeps it from working.

Shapes alone: `network/mdns_discovery.py` fills them in, `exoctl netcheck` and doctor show them.
"""

from __future__ import annotations

import msgspec

from exod.model import NodeId


class PeerFound(msgspec.Struct, frozen=True):
    """A node of this cluster's name says it is at these IPv4 addresses. Repeated whenever it says otherwise."""

    node_id: NodeId
    name: str
    addresses: tuple[str, ...]
    port: int
    incarnation: int


class PeerVanished(msgspec.Struct, frozen=True):
    """It said goodbye, its records ran out, or this host has no interface left to hear it on."""

    node_id: NodeId


class DiscoveryState(msgspec.Struct, frozen=True):
    """For `exoctl netcheck`: where this node is announced, whom it hears, and what keeps it from working."""

    announced_on: tuple[str, ...]
    peers: tuple[PeerFound, ...]
    error: str
    hears_itself: bool = True
    """Did a datagram of this node's own come back? Else multicast is blocked on this very host."""
