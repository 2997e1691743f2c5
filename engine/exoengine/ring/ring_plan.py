"""One formation of one plan, as one rank sees it: which connections it makes, and which it waits for.

Decides nothing. Raises FormError for an address that is none.
"""

from __future__ import annotations

import dataclasses
import enum

from exoengine.protocol import RdmaSetup


class Channel(enum.IntEnum):
    CONTROL = 0
    DATA = 1
    GRAPH = 2


class FormError(Exception):
    """The ring was not formed; `code` is stable, `str(error)` is one line for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class RdmaError(Exception):
    """There is no group over RDMA; `str(error)` is one line for people."""


@dataclasses.dataclass(frozen=True)
class RingConnection:
    """A connection across the ring, as one of its ends sees it."""

    peer: int
    connects: bool
    """Does this rank connect, or listen?"""
    host: str
    """The `address:port` of the one that listens."""
    source: str = ""
    """The address of the one that connects; empty: any."""
    interface: str = ""
    """This rank's own, that the socket is bound to; empty: none."""


@dataclasses.dataclass(frozen=True)
class Cable:
    """A cable to a neighbour beside the one of the ring's edge: this end's interface, its address, the other's."""

    peer: int
    interface: str
    near: str
    far: str


Key = tuple[int, Channel]
"""The rank at the other end, and what the connection is for."""


@dataclasses.dataclass(frozen=True)
class RingPlan:
    """One formation of one plan, as one rank sees it."""

    plan_hash: str
    attempt: int
    rank: int
    size: int
    hosts: tuple[str, ...]
    key: bytes
    connect_from: str = ""
    accept_from: str = ""
    """The left neighbour's address on the edge to this rank; empty: anybody may try to prove to be it."""
    connect_interface: str = ""
    listen_interface: str = ""
    """What connecting and listening sockets are bound to; empty: nothing."""
    across: tuple[RingConnection, ...] = ()
    cables: tuple[Cable, ...] = ()
    """Further ones to this rank's neighbours."""
    all_sealed: bool = False
    """Is nothing to go inside graphs, where it carries no MAC?"""
    rdma: RdmaSetup | None = None
    """Graphs communicate over RDMA; None: over the native group."""

    @property
    def right(self) -> int:
        return (self.rank + 1) % self.size

    @property
    def left(self) -> int:
        return (self.rank - 1) % self.size

    def outward(self) -> dict[Key, RingConnection]:
        """The connections that this rank makes."""
        right = RingConnection(self.right, True, self.hosts[self.right], self.connect_from, self.connect_interface)
        around = {(self.right, channel): right for channel in Channel}
        return around | {(tie.peer, Channel.GRAPH): tie for tie in self.across if tie.connects}

    def inward(self) -> dict[Key, RingConnection]:
        """The connections that it waits for."""
        left = RingConnection(self.left, False, self.hosts[self.rank], self.accept_from, self.listen_interface)
        around = {(self.left, channel): left for channel in Channel}
        return around | {(tie.peer, Channel.GRAPH): tie for tie in self.across if not tie.connects}


def split_host(host: str) -> tuple[str, int]:
    """Raises FormError for what is no `address:port`."""
    address, _, port = host.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise FormError("bad_plan", f"the plan names no address:port, but {host!r}")
    return address, int(port)
