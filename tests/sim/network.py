"""The virtual network: directed wires between addresses, with delay, jitter, loss, duplication and reordering.

A Wire is one direction between two addresses, so that one-way faults are a matter of which wire is touched. Nothing
here knows what a datagram means.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from exod.core.base.events import RingFault
from exod.model import Kind


@dataclass(frozen=True)
class Medium:
    """A kind of network that hosts can share, with its healthy delays (one way, seconds)."""

    interface: str
    kind: Kind
    delay_s: float
    jitter_s: float


CABLE = Medium("bridge0", Kind.THUNDERBOLT, 0.00020, 0.00010)
LAN = Medium("en0", Kind.ETHERNET, 0.00012, 0.00010)
"""Faster than the cable to a probe's eye, as in issue 2's lab: the kind must decide."""
VPN = Medium("utun4", Kind.VPN, 0.02200, 0.00200)
MEDIA = (CABLE, LAN, VPN)


@dataclass
class Wire:
    """One direction. `spoiled_until` remembers impairment, so that a verdict can be compared with the truth."""

    medium: Medium
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: bool = False
    ring: RingFault = RingFault.MOVED
    """What the ring's own connection meets on it; probes know nothing of that."""
    mb_per_s: float = 100.0
    spoiled_until: float = -1e9
    busy_until: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.delay_s = self.medium.delay_s
        self.jitter_s = self.medium.jitter_s
        self.loss = self.duplicate = self.reorder = 0.0
        self.cut = False
        self.ring, self.mb_per_s = RingFault.MOVED, 100.0

    @property
    def impaired(self) -> bool:
        return self.cut or self.loss > 0.0

    def arrivals(self, rng: random.Random) -> list[float]:
        """The delays after which copies of one datagram arrive: none where it is lost."""
        if self.cut or (self.loss and rng.random() < self.loss):
            return []
        delay = self.delay_s + self.jitter_s * rng.random()
        if self.reorder and rng.random() < self.reorder:
            delay += 0.03 * rng.random()
        if self.duplicate and rng.random() < self.duplicate:
            return [delay, delay + 0.01 * rng.random()]
        return [delay]


class Network:
    """All wires, by (source address, target address)."""

    def __init__(self) -> None:
        self.wires: dict[tuple[str, str], Wire] = {}

    def join(self, one: str, other: str, medium: Medium) -> None:
        self.wires[one, other] = Wire(medium)
        self.wires[other, one] = Wire(medium)

    def both(self, one: str, other: str) -> tuple[Wire, Wire]:
        return self.wires[one, other], self.wires[other, one]
