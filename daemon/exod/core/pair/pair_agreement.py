"""The pair's agreement: one register that only grows, written by the lower node, echoed by the upper.

The theory. A selection is (both incarnations, number, path). The lower node raises the number with each selection;
the upper takes over the highest it sees; both put theirs into every datagram on every path. A selection is agreed
when both ends hold it: the upper knows at once, because it has it from the lower, and the lower when it comes back.
Datagrams may be lost, doubled or late: a maximum does not mind. A restart of either end changes an incarnation and
so begins a new register; what was agreed before is void.

Decides what is agreed; never which path is good (path_selection.py).
"""

from __future__ import annotations

from exod.core.base.errors import IllegalMoveError
from exod.model import PathId, Selection


class PairAgreement:
    def __init__(self, *, selects: bool, incarnation_low: int, incarnation_high: int) -> None:
        self.selects = selects
        """Is this the lower node?"""
        self._incarnations = (incarnation_low, incarnation_high)
        self.register: Selection | None = None
        self.peer_register: Selection | None = None
        """What the peer showed, of these incarnations."""

    @property
    def agreed(self) -> bool:
        if self.register is None:
            return False
        return not self.selects or self.peer_register == self.register

    def select(self, path: PathId | None) -> Selection:
        """The lower node writes a new selection."""
        if not self.selects:
            raise IllegalMoveError("only the lower node of a pair selects", path=path)
        seq = 1 if self.register is None else self.register.seq + 1
        self.register = Selection(*self._incarnations, seq, path)
        return self.register

    def observe(self, seen: Selection | None) -> bool:
        """Take what a datagram of both present incarnations shows. Returns whether anything changed here."""
        if seen is None or (seen.incarnation_low, seen.incarnation_high) != self._incarnations:
            return False
        if self.peer_register is not None and seen.seq <= self.peer_register.seq:
            return False
        if self.selects and (self.register is None or seen.seq > self.register.seq):
            return False  # the upper node cannot know more than the lower wrote in these incarnations
        self.peer_register = seen
        if not self.selects:
            self.register = seen
        return True
