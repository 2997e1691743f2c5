"""Is the peer there? UP, SUSPECT or DOWN, from its datagrams on all paths together and from its control connection.

The theory. A path dies by silence while others speak (link.py); when all are silent it is the peer that is suspect,
and nothing is switched. A suspect peer may be stopped or busy and come back with everything it had, so it is DOWN
only after longer than any pause that is worth sitting out, or sooner where its control connection broke as well: a
stopped process's kernel keeps its connections, a dead host's or a killed process's does not.

Decides the state of one peer; never anything about paths.
"""

from __future__ import annotations

from enum import StrEnum

from exod.core.base.errors import IllegalMoveError
from exod.core.base.journal import Journal
from exod.model import NodeId, NodeState

DOWN_AFTER_S = 3.0
"""A daemon that is stopped for 2 s must come back to its old place (issue 3), with a margin for a busy machine."""
DOWN_AFTER_BROKEN_S = 1.0
"""With the control connection gone as well: a power cut shows within 2 s (contract, MQTT)."""
DOWN_GRACE_S = 2.5
"""After the first missed datagram of a slow pair: the time that urgent probes get for an answer."""


class Sign(StrEnum):
    HEARD = "heard"
    QUIET = "silent on all paths"
    LOST = "silent for too long"
    LEFT = "said goodbye"


TRANSITIONS: dict[tuple[NodeState, Sign], NodeState] = {
    (NodeState.UP, Sign.QUIET): NodeState.SUSPECT,
    (NodeState.UP, Sign.LEFT): NodeState.DOWN,
    (NodeState.SUSPECT, Sign.HEARD): NodeState.UP,
    (NodeState.SUSPECT, Sign.LOST): NodeState.DOWN,
    (NodeState.SUSPECT, Sign.LEFT): NodeState.DOWN,
    (NodeState.DOWN, Sign.HEARD): NodeState.UP,
}


class PeerLiveness:
    """A peer that is known and was not heard yet is SUSPECT."""

    def __init__(self, peer: NodeId, journal: Journal, now: float) -> None:
        self._peer, self._journal = peer, journal
        self.state = NodeState.SUSPECT
        self.since = now
        self.ever_heard = False
        self.left = False
        self.connection_broken = False
        self.last_rx = now
        self.audible_since = now
        """Since when the peer has been heard without a gap, on all paths together."""
        self.quiet_since = now
        self.reason = "not heard yet"

    def quiet_s(self, now: float) -> float:
        return now - self.quiet_since

    def hear(self, received_at: float, gap_s: float) -> None:
        """`gap_s` of silence begins a new stretch of being audible."""
        self.ever_heard = True
        if received_at - self.last_rx > gap_s:
            self.audible_since = received_at
        self.last_rx = max(self.last_rx, received_at)
        self.quiet_since = max(self.quiet_since, received_at)

    def return_if_heard(self, received_at: float, suspect_after_s: float, now: float) -> bool:
        """UP again, unless what was heard waited here for so long that the silence since makes the peer suspect:
        a backlog would otherwise turn the state with each datagram. Returns whether the state changed.
        """
        if self.state is NodeState.UP or now - received_at >= suspect_after_s:
            return False
        self._apply(Sign.HEARD, now, "heard")
        return True

    def leave(self, now: float) -> bool:
        self.left = True
        if self.state is NodeState.DOWN:
            return False
        self._apply(Sign.LEFT, now, Sign.LEFT)
        return True

    def forgive(self, seconds: float, now: float) -> None:
        self.quiet_since = min(now, self.quiet_since + seconds)

    def judge(self, now: float, suspect_after_s: float, interval_s: float) -> bool:
        """`interval_s` is the shortest pace the peer announced on any path. Returns whether the state changed."""
        quiet = self.quiet_s(now)
        if self.state is NodeState.UP and quiet >= suspect_after_s:
            self._apply(Sign.QUIET, now, Sign.QUIET)
            return True
        if self.state is NodeState.SUSPECT and quiet >= self.down_after_s(interval_s):
            silent = f"silent for {quiet:.1f} s" if self.ever_heard else "never answered"
            self._apply(Sign.LOST, now, silent + (" and disconnected" if self.connection_broken else ""))
            return True
        return False

    def down_after_s(self, interval_s: float) -> float:
        if self.connection_broken:
            return max(DOWN_AFTER_BROKEN_S, 1.5 * interval_s)
        return max(DOWN_AFTER_S, 1.5 * interval_s + DOWN_GRACE_S)

    def deadline(self, suspect_after_s: float, interval_s: float) -> float | None:
        match self.state:
            case NodeState.UP:
                return self.quiet_since + suspect_after_s
            case NodeState.SUSPECT:
                return self.quiet_since + self.down_after_s(interval_s)
            case NodeState.DOWN:
                return None

    def restart(self, now: float) -> None:
        """A new incarnation: it has not been heard yet, and what broke or left was the old one."""
        self.left = False
        self.ever_heard = False
        self.connection_broken = False
        self.last_rx = self.quiet_since = self.audible_since = now
        if self.state is NodeState.DOWN:
            # It is known to live again (its card or its datagram says so), but not yet heard in this life.
            self._set(NodeState.SUSPECT, now, "started again")

    def _apply(self, sign: Sign, now: float, reason: str) -> None:
        after = TRANSITIONS.get((self.state, sign))
        if after is None:
            story = self._journal.story(self._peer)
            raise IllegalMoveError("no such transition of a peer", story=story, state=self.state, sign=sign)
        self._set(after, now, reason)

    def _set(self, after: NodeState, now: float, reason: str) -> None:
        self._journal.decide(now, self._peer, f"peer is {after}", before=self.state, reason=reason)
        self.state = after
        self.since = now
        self.reason = reason
