"""Does macOS keep this daemon from the local network? Told from what became of its sends.

The theory. macOS's Local Network privacy (macOS 15 and newer) refuses each send and connect of a program that
nobody allowed with "no route to host" (EHOSTUNREACH, 65), interface by interface, and says nothing else. The same
number comes for a moment after boot, wake and link changes, and for a single host that is off. So an interface is
denied after three refusals in a row that span 30 s, and one multicast datagram that left clears it: multicast needs
no other host. VPNs are not local to macOS, so nobody hands in what became of sends over them.

Decides that alone; sends nothing. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

EHOSTUNREACH: Final = 65
"""Darwin's number."""

REFUSALS: Final = 3
LASTING_S: Final = 30.0
"""After boot, wake and link changes the same error comes for some seconds; 20 s were seen after a wake."""

STALE_S: Final = 60.0
"""Refusals that are further apart belong to different times: several rounds of the check fit in."""


class _Refused(msgspec.Struct, frozen=True):
    first: float
    last: float
    count: int


class LocalNetworkWatch:
    """Keeps the refusals in a row of each interface."""

    def __init__(self) -> None:
        self._interfaces: frozenset[str] = frozenset()
        self._refused: dict[str, _Refused] = {}
        self._allowed: set[str] = set()

    def follow(self, interfaces: Iterable[str]) -> None:
        """The interfaces that are local to macOS and up. One that comes back begins anew."""
        self._interfaces = frozenset(interfaces)
        self._allowed &= self._interfaces
        for gone in self._refused.keys() - self._interfaces:
            del self._refused[gone]

    def left(self, interface: str) -> None:
        """A multicast datagram left by this interface."""
        self._refused.pop(interface, None)
        if interface in self._interfaces:
            self._allowed.add(interface)

    def refused(self, interface: str, errno: int, now: float) -> None:
        """A send or connect by this interface failed. Errors that have other causes say nothing here."""
        if errno != EHOSTUNREACH or interface not in self._interfaces:
            return
        before = self._refused.get(interface)
        if before is None or now - before.last > STALE_S:
            self._refused[interface] = _Refused(now, now, 1)
        else:
            self._refused[interface] = _Refused(before.first, now, before.count + 1)

    @property
    def denied(self) -> tuple[str, ...]:
        """The interfaces that macOS keeps from this daemon, by name."""
        return tuple(
            sorted(
                name
                for name, one in self._refused.items()
                if one.count >= REFUSALS and one.last - one.first >= LASTING_S
            )
        )

    @property
    def verdict(self) -> bool | None:
        """Is this daemon allowed on every interface? None: not known yet."""
        if self.denied:
            return False
        return True if self._interfaces and self._allowed == self._interfaces else None

    @property
    def text(self) -> str:
        """For people; empty where nothing is denied."""
        return denied_text(self.denied)


def denied_text(interfaces: tuple[str, ...]) -> str:
    if not interfaces:
        return ""
    return (
        f"macOS refuses every send of exod on {', '.join(interfaces)} (no route to host, errno {EHOSTUNREACH}): "
        "its Local Network privacy keeps exod from the other nodes, while ping and other programs reach them"
    )
