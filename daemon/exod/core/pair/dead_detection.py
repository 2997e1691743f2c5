"""What a pair's silence proves: a dead path, a suspect peer, or nothing.

The theory. A path that is silent is dead if the peer was heard on another path, the witness path, in the meantime.
A datagram of the witness path counts only late in the silence, because what was sent before a stall may arrive
after it began. Time in which the peer was silent on all paths says nothing about any one of them, whichever end
stood still, so it does not count on any of them once the peer is heard again (invariants 8 and 9).

Decides which paths are dead by silence; never how good a measured path is (path.py). Times in seconds.
"""

from __future__ import annotations

from exod.core.probe.path import WIRED_BEAT_S, WIRED_MISSES, Path
from exod.core.probe.path_table import PathTable

WITNESS_SHARE = 0.7
"""How late in the silence the witness path must be heard: after the first miss a burst brings a datagram every 20
ms, and what a VPN delays (22 ms and one lost beat) arrives earlier than this."""
GAP_BEATS = 1.5
"""A peer is heard without a break while no gap over all paths together is longer than this."""
SHORTEST_GAP_S = GAP_BEATS * WIRED_BEAT_S
"""Nothing shorter counts as a gap, whatever interval the peer announced."""
WITNESS_BEATS = 1.2
"""The peer must have been heard for this long without a break: one that comes back from a stall is heard on one
path first, and on the others a moment later. In a burst that is three datagrams: one lost on the silent path proves
nothing."""


def declare_dead(paths: PathTable, audible_since: float, now: float) -> bool:
    """Apply SILENT where it is proven. Returns whether a path is overdue and only lacks a witness path.

    `audible_since`: since when the peer has been heard, over all paths together, without a gap.
    """
    heard_for_s = WITNESS_BEATS * beat_s(paths)
    overdue = False
    for path in paths.alive:
        limit = path.silence_limit_s
        if path.quiet_s(now) < limit:
            continue
        late_enough = max(path.quiet_since + WITNESS_SHARE * limit, audible_since + heard_for_s)
        witness = _witness(path, paths, late_enough)
        if witness is None:
            overdue = True
            continue
        silent_ms = (now - path.last_rx) * 1e3
        path.silent(now, f"silent for {silent_ms:.0f} ms while {witness.candidate.local.interface} was heard")
    return overdue


def _witness(silent: Path, paths: PathTable, late_enough: float) -> Path | None:
    for path in paths:
        if path is not silent and path.heard and path.last_rx >= late_enough:
            return path
    return None


def beat_s(paths: PathTable) -> float:
    """The shortest interval that the peer announced on a path that is not dead."""
    return max(WIRED_BEAT_S, min((path.peer_interval_s for path in paths.alive), default=WIRED_BEAT_S))


def suspect_after_s(paths: PathTable) -> float:
    """Silence on all paths after which the peer is suspect: twice the limit of one path at the shortest interval.
    At a longer interval the first miss comes later, and the burst that it begins makes up for the rest.
    """
    limit = min((path.base_limit_s for path in paths.alive), default=WIRED_MISSES * WIRED_BEAT_S)
    return 2 * limit + GAP_BEATS * (beat_s(paths) - WIRED_BEAT_S)


def gap_s(paths: PathTable) -> float:
    """Silence on all paths after which the peer counts as heard anew."""
    return GAP_BEATS * beat_s(paths)


def total_silence_s(paths: PathTable) -> float:
    """Silence on all paths that is longer than this says nothing about any one path."""
    return WIRED_MISSES * beat_s(paths)
