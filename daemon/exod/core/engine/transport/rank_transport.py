"""What this node's rank has to do with RDMA: the attempt's setup, a group that only a kill ends, and its proofs.

A worker in a group over RDMA does not hear an abort, nor SIGTERM, while it waits for a rank that is gone. So where
others are told to abort, this one is killed: by this node's evidence about its links, by another rank's report, or
because the worker itself says that it gave up. Decides when that is so. Times are not needed.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_events import ProveTransport
from exod.core.engine.engine_messages import IN_GROUP, FormOrder, ProveRdma, RankStatus, RdmaProof
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Aborted, Hello, RdmaSetup

MAX_TEXT: Final = 300
"""Of what a proof's process said: it goes round in every status."""


class RankTransport:
    def __init__(self) -> None:
        self.setup: RdmaSetup | None = None
        """Of the present attempt; None: TCP."""
        self.is_entangled = False
        """Does the worker stand in a group over RDMA, or form one?"""
        self._plan_hash = ""
        """Of the group that the worker is entangled in."""
        self.killed = False
        """Was it killed for that? Then its end is nobody's fault."""
        self.no_rdma = ""
        self.proof = RdmaProof()
        self.text = ""
        """On the coordinator: why the ranks do not run over RDMA."""

    def greeted(self, hello: Hello) -> None:
        self.no_rdma, self.is_entangled = hello.no_rdma, hello.over_rdma
        self._plan_hash = hello.plan_hash or ""

    def prepared(self) -> None:
        """The worker left the group that it was in, at a step's end."""
        self.is_entangled = False

    def ordered(self, order: FormOrder) -> None:
        """The next attempt is prepared; until that is done the worker stands in the group of the last."""
        self.setup = order.rdma

    def forming(self, plan_hash: str) -> None:
        self.is_entangled, self._plan_hash = self.setup is not None, plan_hash

    def aborted(self, aborted: Aborted) -> bool:
        """The worker gave its group up. Must it be killed for that?"""
        self.is_entangled = aborted.is_spent
        return self.is_entangled

    def ended(self) -> bool:
        """The process ended. Was it killed because it could not be aborted?"""
        was_killed = self.killed
        self.killed = self.is_entangled = False
        self.setup = None
        return was_killed

    def is_lost_with(self, status: RankStatus, plan: MeshPlan | None) -> bool:
        """Does the status of another rank of this attempt's plan say that it is in no group? Its process may be a
        new one, and this worker would wait for the old one for ever.
        """
        return (
            self.is_entangled
            and plan is not None
            and status.sender in plan.ring
            and plan.hash == status.plan_hash == self._plan_hash
            and status.phase not in IN_GROUP
        )

    def prove(self, order: ProveRdma, plan: MeshPlan | None, me: NodeId) -> list[ProveTransport]:
        """The coordinator's order; one that is followed already is not followed again."""
        if plan is None or order.plan_hash != plan.hash or me not in plan.ring or order.number <= self.proof.number:
            return []
        self.proof = RdmaProof(order.number, "running")
        return [ProveTransport(order.number, plan.ring.index(me), order.setup)]

    def proved(self, number: int, text: str) -> bool:
        """What the process found; empty where all is well. Is it news?"""
        if (number, "running") != (self.proof.number, self.proof.state):
            return False
        self.proof = RdmaProof(number, "failed" if text else "ok", text[:MAX_TEXT])
        return True
