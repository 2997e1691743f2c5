"""The network of a Mac as XNU answers a program that sends: what it refuses, with which errno, on which interface.

Written from the kernel's behaviour, not recorded on a Mac. Local Network privacy refuses what leaves by a local
interface, and spares VPNs; a moment after boot, wake and link changes is refused alike; a cable that is out is
ENETDOWN, an address that is gone EADDRNOTAVAIL. An unbound send to 169.254/16 leaves by the primary interface.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from exod.model import Kind, LocalAddress

EADDRNOTAVAIL, ENETDOWN, EHOSTDOWN, EHOSTUNREACH = 49, 50, 64, 65
"""Darwin's numbers."""

SELF_ASSIGNED = ipaddress.IPv4Network("169.254.0.0/16")


@dataclass
class FakeNetwork:
    """`now` is monotonic seconds; `primary` has the default route."""

    addresses: tuple[LocalAddress, ...]
    primary: str = "en0"
    now: float = 0.0
    denied: set[str] = field(default_factory=set)
    unsettled_until: float = 0.0
    unplugged: set[str] = field(default_factory=set)
    hosts_down: set[str] = field(default_factory=set)

    def clock(self) -> float:
        return self.now

    def deny(self, *interfaces: str) -> None:
        """Local Network privacy, on some interfaces or on all that are local."""
        local = [one.interface for one in self.addresses if one.kind is not Kind.VPN]
        self.denied = set(interfaces or local)

    def allow(self) -> None:
        self.denied.clear()

    def wake(self, for_s: float) -> None:
        """The system just woke: for so long sends are refused as if it were privacy."""
        self.unsettled_until = self.now + for_s

    def multicast(self, _platform: object, local: LocalAddress) -> int:
        return self._leave(local.interface, local.address)

    def send(self, interface: str, local: str, remote: str) -> int:
        """A bound send or connect. Returns 0 or the errno."""
        refused = self._leave(interface, local)
        if refused:
            return refused
        return EHOSTUNREACH if remote in self.hosts_down else 0

    def unbound_source(self, remote: str) -> str | None:
        """The local address that an unbound connect leaves from."""
        target = ipaddress.IPv4Address(remote)
        near = [one for one in self._up() if target in one.network]
        if target in SELF_ASSIGNED:
            near.sort(key=lambda one: one.interface != self.primary)
        if near:
            return near[0].address
        return next((one.address for one in self._up() if one.interface == self.primary), None)

    def bound_source(self, interface: str, local: str) -> str | None:
        return None if self._link(interface, local) else local

    def _up(self) -> list[LocalAddress]:
        return [one for one in self.addresses if one.interface not in self.unplugged]

    def _leave(self, interface: str, local: str) -> int:
        broken = self._link(interface, local)
        if broken:
            return broken
        kind = next(one.kind for one in self.addresses if one.interface == interface)
        if kind is Kind.VPN:
            return 0
        return EHOSTUNREACH if interface in self.denied or self.now < self.unsettled_until else 0

    def _link(self, interface: str, local: str) -> int:
        if interface in self.unplugged:
            return ENETDOWN
        known = any((one.interface, one.address) == (interface, local) for one in self.addresses)
        return 0 if known else EADDRNOTAVAIL
