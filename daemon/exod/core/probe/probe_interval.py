"""How often a path is probed: by its role, by what the pair is going through, and never in step with others.

The theory. The selected path of a ring edge is probed 20 times a second, its standbys 4 times, pairs that share no
edge once. While nothing is generated or queued, it is 4 times and once. Every datagram announces the longest gap
before the next, so the receiver judges silence by what was promised. A pair that misses something bursts: 50 a
second on every path, in both directions (the urgent flag asks for the other), so that the witness, the standbys'
fresh measure and the second chance of the suspect path are all there before the verdict. Gaps are jittered to
75-100% (as RFC 5880, 6.8.7) by a seeded generator, so nodes that started together drift apart and a run repeats
from its seed.

Decides when a datagram is due; never what is in it (probe_sender.py).
"""

from __future__ import annotations

from exod.core.probe.path import Path
from exod.model import NodeState, PathState

SELECTED_S = 0.050
STANDBY_S = 0.250
QUIET_SELECTED_S = 0.240
QUIET_STANDBY_S = 1.0
"""While nothing is generated: nobody waits for a link, and a cut that is noticed within a second costs nothing. At
0.250 the slowest of eight took 1,002 ms in the lab."""
QUIET_PAIR_S = 1.0
"""Pairs that share no ring edge (design, "Paths and probing")."""
NEVER_HEARD_S = 1.0
"""A candidate that has not answered for NEVER_HEARD_AFTER_S is probably none (a bridge numbered alike)."""
NEVER_HEARD_AFTER_S = 10.0
MEASURING_S = 0.050
MEASURING_FOR_S = 3.0
"""A new candidate is measured at this pace for so long at most, and one that came back until it is measured."""
PROVING_S = 0.050
BURST_S = 0.020
DOWN_PEER_S = 1.0
ABANDONED_PEER_S = 5.0
ABANDONED_AFTER_S = 60.0
"""A peer that stays down is sought every second for a minute, then every five: its own start finds us anyway."""
SHORTEST_GAP = 0.75
"""Of an interval (RFC 5880, 6.8.7). From here on a datagram may leave with another that is due."""
LINGER = 4
"""Datagrams sent at the old pace after a slower one was announced: if one of them arrives, the path is not declared
dead."""

_MULTIPLIER = 6364136223846793005
_INCREMENT = 1442695040888963407
_MASK = (1 << 64) - 1


class Jitter:
    """A 64-bit linear congruential generator (Knuth, TAOCP volume 2, 3.3.4): cheap, seeded, enough to spread."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = (seed * _MULTIPLIER + _INCREMENT) & _MASK

    def fraction(self) -> float:
        """The next number, from 0 up to 1."""
        self._state = (self._state * _MULTIPLIER + _INCREMENT) & _MASK
        return (self._state >> 11) / (1 << 53)

    def gap_s(self, interval_s: float) -> float:
        """75-100% of an interval."""
        return interval_s * (SHORTEST_GAP + (1.0 - SHORTEST_GAP) * self.fraction())


def announced_s(
    path: Path, *, selected: bool, edge: bool, quiet: bool, peer: NodeState, peer_since: float, now: float
) -> float:
    """The steady pace of a path's role, which its datagrams announce."""
    if peer is NodeState.DOWN:
        return DOWN_PEER_S if now - peer_since < ABANDONED_AFTER_S else ABANDONED_PEER_S
    if not edge:
        return QUIET_PAIR_S
    if selected:
        return QUIET_SELECTED_S if quiet else SELECTED_S
    if not path.heard and now - path.created_at > NEVER_HEARD_AFTER_S:
        return NEVER_HEARD_S
    return QUIET_STANDBY_S if quiet else STANDBY_S


def proving_s(path: Path, edge: bool) -> float | None:
    """A degraded path whose newest round trips are good again is looked at closely: its losses are 20 datagrams
    deep, and at a standby's pace a path that is well would look ill for long.
    """
    floor = path.rtt.floor_ms
    if path.state is not PathState.DEGRADED or floor is None or floor >= path.recover_ms:
        return None
    return PROVING_S if edge else STANDBY_S


def measuring(path: Path, now: float) -> bool:
    """A new candidate, or one that came back and is not measured yet."""
    if path.state is not PathState.INIT or path.gone:
        return False
    return now - path.created_at < MEASURING_FOR_S or (path.heard and now - path.state_since < MEASURING_FOR_S)
