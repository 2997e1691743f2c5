"""Cards for tests: a node with the addresses that a test names."""

from __future__ import annotations

import msgspec

from exod.model import Kind, LocalAddress, NodeCard, NodeId

KEY = bytes(range(32))

KINDS = {
    "bridge0": Kind.THUNDERBOLT,
    "en0": Kind.ETHERNET,
    "en1": Kind.WIFI,
    "utun4": Kind.VPN,
    "lo0": Kind.LOOPBACK,
    "xx0": Kind.OTHER,
}


def card(place: int, *addresses: str, **changes: object) -> NodeCard:
    """`addresses` like `bridge0=10.0.0.1/24`."""
    found = []
    for text in addresses:
        interface, rest = text.split("=")
        address, prefix = rest.split("/")
        found.append(LocalAddress(interface, KINDS[interface], address, int(prefix)))
    made = NodeCard(
        id=NodeId(f"{place:016x}"),
        name=f"studio{place}",
        incarnation=1_000 + place,
        version="0",
        mesh_port=52410,
        ring_port=52420,
        api_port=52415,
        addresses=tuple(found),
        engine=True,
        memory_mib=1024,
        model="embedded:count",
    )
    return msgspec.structs.replace(made, **changes)
