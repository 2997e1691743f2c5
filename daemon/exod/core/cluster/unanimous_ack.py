"""The coordinator's two to-do lists: a proposal that wants all acks, and a commit that wants all receipts.

Decides what is still missing and when to repeat it; never what is proposed (mesh.py). Messages may be lost with
their connection, so both repeat until answered.
"""

from __future__ import annotations

from collections.abc import Mapping

from exod.core.base.mesh_messages import Ack, Committed, Nack
from exod.model import MeshPlan, NodeId

RETRY_S = 0.1
"""A lost message costs this much of the 300 ms that an agreement may take."""


class Ballot:
    """One proposal. Unanimous when everyone who was asked has said yes."""

    def __init__(self, plan: MeshPlan, reason: str, asked: frozenset[NodeId], now: float) -> None:
        self.plan = plan
        self.reason = reason
        self.missing = set(asked)
        self.started_at = now
        self.retry_at = now
        self.refusals: dict[NodeId, str] = {}

    def ack(self, peer: NodeId) -> None:
        self.missing.discard(peer)
        self.refusals.pop(peer, None)

    @property
    def unanimous(self) -> bool:
        return not self.missing

    def due(self, now: float) -> list[NodeId]:
        """Whom to ask (again) now."""
        if now < self.retry_at:
            return []
        self.retry_at = now + RETRY_S
        return sorted(self.missing)


class Delivery:
    """One commit on its way to the members."""

    def __init__(self, plan: MeshPlan, reason: str, missing: set[NodeId], now: float) -> None:
        self.plan = plan
        self.reason = reason
        self.missing = missing
        self.retry_at = now

    def forget_absent(self, living: Mapping[NodeId, int]) -> None:
        """`living` has the incarnation of each peer that is not down: an earlier life needs no commit any more."""
        self.missing -= {one.id for one in self.plan.members if living.get(one.id) != one.incarnation}

    def due(self, now: float) -> list[NodeId]:
        if now < self.retry_at:
            return []
        self.retry_at = now + RETRY_S
        return sorted(self.missing)


def is_answer(peer: NodeId, message: Ack | Nack | Committed, plan: MeshPlan) -> bool:
    """Does this message answer this plan, from the life of the member that was asked?"""
    asked = any(one.id == peer and one.incarnation == message.incarnation for one in plan.members)
    return asked and message.sender == peer and (message.epoch, message.plan_hash) == (plan.epoch, plan.hash)
