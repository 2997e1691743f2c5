"""What a rank met on an edge as evidence about a path: of the plan in force, and not where nobody listens."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.base.events import RingEvidence
from exod.core.engine.edge_evidence import ring_evidence
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exoengine.protocol import EdgeSeen
from tests.core.engine.engine_samples import A, B, a_plan

PLAN = a_plan(A, B)
SEEN = EdgeSeen(PLAN.hash, 3, 1, "unanswered", 0, 1.0)
AT_IT = RankStatus(sender=B, incarnation=1, seq=1, phase=RankPhase.PREPARED, plan_hash=PLAN.hash, attempt=3)


def test_it_names_the_neighbour_of_the_plan_in_force() -> None:
    assert ring_evidence(SEEN, PLAN, {}) == RingEvidence(PLAN.hash, B, "unanswered", 0, 1.0)
    assert ring_evidence(SEEN, None, {}) is None
    assert ring_evidence(msgspec.structs.replace(SEEN, plan_hash="of yesterday"), PLAN, {}) is None
    assert ring_evidence(msgspec.structs.replace(SEEN, rank=2), PLAN, {}) is None


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"phase": RankPhase.FORMED}, True),
        ({"phase": RankPhase.LOADED}, False),
        ({"attempt": 2}, False),
        ({"plan_hash": "of yesterday"}, False),
    ],
)
def test_a_port_that_refuses_counts_only_while_its_rank_is_at_the_same_attempt(
    changes: dict[str, object], counts: bool
) -> None:
    refused = msgspec.structs.replace(SEEN, fault="refused")
    status = msgspec.structs.replace(AT_IT, **changes)
    assert (ring_evidence(refused, PLAN, {B: status}) is not None) is counts
    assert ring_evidence(refused, PLAN, {}) is None, "nothing is known of it"
