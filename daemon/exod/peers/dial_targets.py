"""Where to dial a peer: an address and port, and the interface that the connection is bound to.

Decides how a contact is dialled, from the addresses of this host. Pure: it opens nothing.
"""

from __future__ import annotations

import ipaddress

import msgspec

from exod.model import Kind, LocalAddress, is_ipv4


class Target(msgspec.Struct, frozen=True):
    """Where to dial. `local` and `interface` are empty where the route table may choose. A contact is where a peer
    may be; the others are paths to one that is known.
    """

    address: str
    port: int
    local: str = ""
    interface: str = ""
    bound_contact: bool = False

    @property
    def contact(self) -> bool:
        return self.bound_contact or not self.local


def contact_targets(address: str, port: int, mine: tuple[LocalAddress, ...]) -> tuple[Target, ...]:
    """How a contact is dialled: bound to each interface whose subnet it lies in, for the route table knows one of
    them only; unbound where it lies in none, or is a host name.
    """
    if not is_ipv4(address):
        return (Target(address, port),)
    remote = ipaddress.IPv4Address(address)
    near = [one for one in mine if one.kind is not Kind.LOOPBACK and remote in one.network]
    bound = tuple(Target(address, port, one.address, one.interface, bound_contact=True) for one in near)
    return bound or (Target(address, port),)
