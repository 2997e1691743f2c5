"""How long an agreement took: from the verdict, wherever on this node it fell, to the commit.

Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from exod.core.cluster.pair_summary import PairSummary
from exod.model import MeshPlan, NodeId

BELONGS_S = 1.0
"""A verdict this much older than the moment that a plan was found wanting still led to it."""


class LastChange(msgspec.Struct, frozen=True):
    """The newest commit. `at` is monotonic seconds of this host."""

    at: float
    reason: str
    detect_ms: float | None
    agree_ms: float


def agreement_ms(
    before: MeshPlan | None,
    last: LastChange | None,
    pairs: Mapping[NodeId, PairSummary],
    trigger_at: float | None,
    now: float,
) -> tuple[float | None, float]:
    """(detect_ms, agree_ms): how long the newest verdict against a path in use took, where there was one, and how
    long ago it fell. Without one, since this node knew that another plan is needed.

    Only a verdict on a member's link led here, and only one that the commit before did not answer already.
    """
    if trigger_at is None:
        return None, 0.0
    members = () if before is None or last is None else before.members
    judged = [pairs[one.id] for one in members if one.id in pairs]
    answered_at = -math.inf if last is None else last.at
    verdicts = [
        (one.verdict_at, one.detect_ms)
        for one in judged
        if one.verdict_at is not None and one.verdict_at > answered_at
    ]
    recent = [verdict for verdict in verdicts if verdict[0] >= trigger_at - BELONGS_S]
    if not recent:
        return None, (now - trigger_at) * 1e3
    verdict_at, detect_ms = max(recent, key=lambda verdict: verdict[0])
    return detect_ms, (now - min(trigger_at, verdict_at)) * 1e3
