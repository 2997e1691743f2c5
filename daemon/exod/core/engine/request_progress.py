"""How far one request is, and for how long it has come no further.

The deadline of a request belongs to the position of its sequence, not to an attempt. Each rank says how far it is
(`RankStatus.progress`). A fault takes ranks back, and they run again what they had: that counts as progress only
where it gets further than the last time that it was run again. So a request that comes to nothing ends, however
often its group is formed again, while a rank that was replaced may prefill a long prompt.

Decides how long a request stands still, and on which edges it must not be tried again. Never ends it. Positions are
tokens of prompt and answer, times monotonic seconds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from exod.model import MeshPlan, NodeId

LONGEST_LOOK_S: Final = 2.0
"""Progress is looked at twice a second. A longer pause is this daemon's own: what ranks said then is unread."""

HUNG_LIMIT: Final = 2
"""A step that hung so often on the same edges would hang a third time."""

Edges = tuple[str, ...]
"""The paths that a group's edges take."""


class _Move(IntEnum):
    NONE = 0
    AGAIN = 1
    """Something is run again, and got further than the last time."""
    NEW = 2
    """Further than ever before."""


class _Reached:
    """How far one rank came."""

    def __init__(self) -> None:
        self._furthest = self._last = 0
        self._again = -1
        """How far it came when it was taken back and ran again what it had; -1 where it never was."""
        self._was_taken_back = False

    def reach(self, position: int) -> _Move:
        self._was_taken_back |= position < self._last
        self._last = position
        if position > self._furthest:
            self._furthest, self._again, self._was_taken_back = position, -1, False
            return _Move.NEW
        if self._was_taken_back and position > self._again:
            self._again = position
            return _Move.AGAIN
        return _Move.NONE


class RequestProgress:
    """Of one request that is under way."""

    def __init__(self, now: float) -> None:
        self.stalled_s = 0.0
        """For how long it has come no further."""
        self.position = 0
        """The furthest that any rank came."""
        self._looked_at = now
        self._ranks: dict[NodeId, _Reached] = {}
        self._has_moved = False
        """Since the last look."""
        self._hung_on: Edges | None = None
        self._hung = 0

    def heard(self, node: NodeId, position: int) -> None:
        """A rank says how far it is."""
        move = self._ranks.setdefault(node, _Reached()).reach(position)
        self._has_moved |= move is not _Move.NONE
        if move is _Move.NEW:
            self._hung = 0
            self.position = max(self.position, position)

    @property
    def has_moved(self) -> bool:
        return self._has_moved

    def look(self, now: float, others_move: bool) -> None:
        """`others_move`: does another request come further? One that has not begun yet may wait for it."""
        waits = self.position == 0 and others_move
        if self._has_moved:
            self.stalled_s = 0.0
        elif not waits:
            self.stalled_s += min(now - self._looked_at, LONGEST_LOOK_S)
        self._looked_at, self._has_moved = now, False

    def hung(self, edges: Edges) -> None:
        """A step took longer than its deadline, and the group that ran it is gone."""
        self._hung = self._hung + 1 if edges == self._hung_on else 1
        self._hung_on = edges

    def must_not_try(self, edges: Edges) -> bool:
        return self._hung >= HUNG_LIMIT and edges == self._hung_on


def edges_of(plan: MeshPlan) -> Edges:
    return tuple(edge.path for edge in plan.edges)
