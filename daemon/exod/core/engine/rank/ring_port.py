"""Which port this node's rank listens on while a ring forms.

Another program may have the configured port for a while: it lies in the range from which systems take the ports of
outgoing connections. Then the next of a few is announced, so that the next plan uses it. Where all are taken the
last is kept, the rank's status names it, and another round is made later: a plan each second would help nobody.

Decides the port alone.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.model import MeshPlan, NodeId

PORTS: Final = 8
"""The configured one and those after it: an outgoing connection takes one at random out of some ten thousand, so
two in a row are an accident, and eight are a program that means to have them."""

REST_S: Final = 60.0
"""After a round without a free port: other programs end in minutes. A port that is kept is tried all the time."""

HIGHEST_PORT: Final = 65535


class RingPortTaken(msgspec.Struct, frozen=True):
    """Command of the rank to its node's core: someone else has the port that the plan gives this rank."""

    port: int


def ports_taken(plan: MeshPlan, me: NodeId) -> list[RingPortTaken]:
    return [RingPortTaken(edge.target_port) for edge in plan.edges if edge.target == me]


class RingPorts:
    def __init__(self, first: int) -> None:
        self._first = first
        self.port = first
        self._taken: set[int] = set()
        self._round_ended_at: float | None = None

    def taken(self, port: int, now: float) -> bool:
        """Someone else has `port`. Returns whether another one was chosen."""
        if port != self.port:
            return False  # of a plan that is being replaced
        if self._round_ended_at is not None:
            if now - self._round_ended_at < REST_S:
                return False
            self._taken.clear()
            self._round_ended_at = None
        self._taken.add(port)
        ports = range(self._first, min(self._first + PORTS, HIGHEST_PORT + 1))
        free = [one for one in (*ports[port - self._first :], *ports) if one not in self._taken]
        if not free:
            self._round_ended_at = now
            return False
        self.port = free[0]
        return True

    def listened(self) -> None:
        """A group was formed on the present port: the next trouble is a new one."""
        self._taken.clear()
        self._round_ended_at = None
