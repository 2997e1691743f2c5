"""What this node's rank met on an edge of the ring, as the mesh's core takes it.

Decides whether it is evidence about the path at all: a port that refuses is none where the neighbour's rank is not
known to be at the same attempt, because then nobody may be listening. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exod.core.base.events import RingEvidence, RingFault
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.model import MeshPlan, NodeId
from exoengine.protocol import EdgeSeen

_AT_IT: Final = frozenset({RankPhase.PREPARED, RankPhase.FORMED})
"""Phases of a rank that was told to form, or will be within a round trip."""


def ring_evidence(
    seen: EdgeSeen, plan: MeshPlan | None, statuses: Mapping[NodeId, RankStatus]
) -> RingEvidence | None:
    """None where it says nothing about a path of the plan in force."""
    if plan is None or plan.hash != seen.plan_hash or not 0 <= seen.rank < len(plan.ring):
        return None
    peer = plan.ring[seen.rank]
    if seen.fault == RingFault.REFUSED:
        status = statuses.get(peer)
        if status is None or (status.plan_hash, status.attempt) != (plan.hash, seen.attempt):
            return None
        if status.phase not in _AT_IT:
            return None
    return RingEvidence(plan.hash, peer, seen.fault, seen.moved_bytes, seen.seconds)
