"""Where a rank reaches the others: values that travel from the daemons to the workers. Decides nothing."""

from __future__ import annotations

from typing import Final

import msgspec

RDMA_STAND_IN: Final = "EXOD_RDMA_STAND_IN"
"""In a worker's environment, `1` where `debug.rdma_stand_in` is set: RDMA is played by the native group."""


class CrossConnection(msgspec.Struct, frozen=True):
    """A tensor group's connection to a rank that is no neighbour in the ring; `interface` is this rank's own."""

    rank: int
    """The other one's."""
    connects: bool
    host: str
    """The `address:port` of the one that listens."""
    source: str
    """The address of the one that connects; empty: any."""
    interface: str = ""


class FurtherCable(msgspec.Struct, frozen=True):
    """A cable to the neighbour `rank` beside the ring's edge: this end's interface and address, the other's."""

    rank: int
    interface: str
    near: str
    far: str


class RdmaSetup(msgspec.Struct, frozen=True):
    """What MLX's JACCL needs to know, the same on all ranks of a plan."""

    devices: tuple[tuple[tuple[str, ...], ...], ...]
    """For each rank and each other one, the RDMA devices of the cables to it; none to itself."""
    coordinator: str
    """The `address:port` where rank 0 takes the others' connections before RDMA begins."""
    stand_in: bool = False
    """A test: the native group plays JACCL."""
