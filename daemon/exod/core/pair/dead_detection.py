"""What a pair's silence proves: a dead path, a suspect peer, or nothing.

The theory. A path that is silent while the peer is heard on another is dead: that is the alibi. It must come late
in the silence, because what was sent before a stall may arrive after it began. Time in which the peer was silent
everywhere says nothing about any one path, whoever stood still, so it is forgiven on all of them when the peer is
heard again (invariants 8 and 9).

Decides convictions by silence; never what a measured path is worth (path.py). Called by link.py.
"""

from __future__ import annotations

from exod.core.probe.path import WIRED_BEAT_S, WIRED_MISSES, Evidence, Path
from exod.core.probe.path_table import PathTable

ALIBI_SHARE = 0.7
"""How late in the silence the alibi must come: after the first miss a burst brings one every 20 ms, and a VPN's
delay (22 ms and one lost beat) cannot fake one."""
GAP_BEATS = 1.5
"""A pair is audible without a break while no gap in everything is longer than this."""
SHORTEST_GAP_S = GAP_BEATS * WIRED_BEAT_S
"""What is shorter is none, whatever pace the peer announced."""
ALIBI_BEATS = 1.2
"""The alibi must have been speaking for this long: a peer that comes back from a stall is heard on one path first,
and on the others a moment later. In a burst that is three datagrams: one lost on the accused path is no proof."""


def convict(paths: PathTable, audible_since: float, now: float) -> bool:
    """Apply SILENT where it is proven. Returns whether a path is overdue and only lacks its alibi.

    `audible_since`: from when on the peer was heard on some path or other without a gap.
    """
    speaking_s = ALIBI_BEATS * beat_s(paths)
    overdue = False
    for path in paths.alive:
        limit = path.silence_limit_s
        if path.quiet_s(now) < limit:
            continue
        late_enough = max(path.quiet_since + ALIBI_SHARE * limit, audible_since + speaking_s)
        alibi = _alibi(path, paths, late_enough)
        if alibi is None:
            overdue = True
            continue
        path.detect_ms = (now - path.last_rx) * 1e3
        witness = alibi.candidate.local.interface
        path.apply(Evidence.SILENT, now, f"silent for {path.detect_ms:.0f} ms while {witness} was heard")
    return overdue


def _alibi(silent: Path, paths: PathTable, late_enough: float) -> Path | None:
    for path in paths:
        if path is not silent and path.heard and path.last_rx >= late_enough:
            return path
    return None


def beat_s(paths: PathTable) -> float:
    """The fastest pace that the peer announced on a path that is not dead."""
    return max(WIRED_BEAT_S, min((path.peer_interval_s for path in paths.alive), default=WIRED_BEAT_S))


def suspect_after_s(paths: PathTable) -> float:
    """Silence of everything after which the peer is suspect: twice what convicts a path at the full pace. At a
    slower pace the first miss comes later, and the burst that it begins makes up for the rest.
    """
    limit = min((path.base_limit_s for path in paths.alive), default=WIRED_MISSES * WIRED_BEAT_S)
    return 2 * limit + GAP_BEATS * (beat_s(paths) - WIRED_BEAT_S)


def gap_s(paths: PathTable) -> float:
    """A gap in everything after which the peer counts as heard anew."""
    return GAP_BEATS * beat_s(paths)


def total_silence_s(paths: PathTable) -> float:
    """A gap in everything that is longer than this says nothing about one path."""
    return WIRED_MISSES * beat_s(paths)
