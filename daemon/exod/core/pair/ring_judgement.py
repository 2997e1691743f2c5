"""Takes one piece of the ring's evidence to its path, and tells of it.

Decides whether a rate is too low; never which path is used then. The fitness itself is the path's
(core/probe/ring_fitness.py).
"""

from __future__ import annotations

from exod.core.base.events import RingEvidence, RingFault
from exod.core.base.journal import Journal
from exod.core.pair import change_events
from exod.core.probe.path import Path
from exod.core.probe.ring_fitness import describe
from exod.model import NodeCard


def judge_ring(
    journal: Journal, peer: NodeCard, path: Path, seen: RingEvidence, limit_mb_per_s: float, now: float
) -> bool:
    """Returns whether the path became unfit. A fault that this version does not know changes nothing."""
    if seen.fault not in set(RingFault):
        return False
    fault, rate = RingFault(seen.fault), 0.0
    if fault is RingFault.MOVED:
        rate = seen.moved_bytes / max(seen.seconds, 1e-6) / 1e6
        if rate >= limit_mb_per_s:
            path.ring.worked(now)
            return False
        fault = RingFault.SLOW
    address = f"{path.candidate.remote.address}:{peer.ring_port}"
    text = describe(fault, address, seen.moved_bytes, rate, limit_mb_per_s)
    unfit = path.ring.failed(text, decisive=fault is RingFault.SLOW, now=now)
    change_events.ring_failed(journal, peer, path, fault, unfit, now)
    return unfit
