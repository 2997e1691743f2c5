"""How the coordinator brings the ranks of a plan into one group.

GATHERING until every rank has loaded its layers of the same files; PREPARING (each rank left its old group and is
ready to connect); FORMING (all connect at about the same time); FORMED. A rank that reports trouble, or a
deadline, starts the next attempt: attempts of one plan only grow, and a rank follows the highest. Between
attempts that failed lies a pause that doubles and is forgotten once a group has lived for a while.

Decides only when to say `prepare` and `form`. Called by the engine host of the coordinator.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from exod.core.engine.engine_messages import FormOrder, RankPhase, RankStatus
from exod.model import MeshPlan, NodeId

PREPARE_DEADLINE_S: Final = 12.0
FORM_DEADLINE_S: Final = 10.0
"""Both past the deadlines of rank.py: a rank answers in fractions of a second, or says that it gave up, or is
replaced by its own daemon; this is for one that is not heard of."""

REPEAT_S: Final = 0.5
"""Orders may be lost with their connection: said again until the rank's status shows them."""

PAUSE_FIRST_S: Final = 0.1
PAUSE_LIMIT_S: Final = 5.0
LIVED_S: Final = 10.0
"""A group that lived this long was sound: the next fault is a new one and is answered without a pause."""


class Stage(StrEnum):
    IDLE = "idle"
    GATHERING = "gathering"
    PREPARING = "preparing"
    FORMING = "forming"
    FORMED = "formed"
    PAUSE = "pause"


class OrderRank(msgspec.Struct, frozen=True):
    """Command: send this order to this node (which may be the coordinator itself)."""

    to: NodeId
    order: FormOrder


_HOLDS_ITS_LAYERS: Final = frozenset(
    {RankPhase.LOADED, RankPhase.PREPARING, RankPhase.PREPARED, RankPhase.FORMED, RankPhase.ABORTED}
)


class Formation:
    """The coordinator's view of one plan's group. Silent on nodes that are not the coordinator."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._plan: MeshPlan | None = None
        self._statuses: dict[NodeId, RankStatus] = {}
        self.stage = Stage.IDLE
        self.attempt = 0
        self.problem = ""
        self._deadline = 0.0
        self._repeat_at = 0.0
        self._formed_at = 0.0
        self._pause_s = 0.0

    @property
    def formed(self) -> bool:
        return self.stage is Stage.FORMED

    def follow(self, plan: MeshPlan | None, now: float) -> list[OrderRank]:
        """A plan was committed that this node coordinates; None where it coordinates none, or none is usable."""
        self._plan = plan if plan is not None and plan.coordinator == self._me and plan.ring else None
        self.stage = Stage.GATHERING if self._plan is not None else Stage.IDLE
        self.attempt = 0
        self.problem = ""
        self._pause_s = 0.0
        return self._advance(now)

    def rank_status(self, status: RankStatus, now: float) -> list[OrderRank]:
        """What a rank reports; statuses of other plans are kept until theirs is followed."""
        self._statuses[status.sender] = status
        return self._advance(now)

    def forget(self, node: NodeId) -> None:
        """What this node said of its rank is void: it is down."""
        self._statuses.pop(node, None)
        if self._plan is not None and node in self._plan.ring and self.stage is not Stage.PAUSE:
            self.stage = Stage.GATHERING

    def handle_timer(self, now: float) -> list[OrderRank]:
        return self._advance(now)

    def next_deadline(self) -> float | None:
        match self.stage:
            case Stage.PREPARING | Stage.FORMING:
                return min(self._deadline, self._repeat_at)
            case Stage.PAUSE:
                return self._deadline
            case _:
                return None

    def _ranks(self) -> list[RankStatus] | None:
        """The statuses of all ranks under this plan, or None while one is missing."""
        assert self._plan is not None
        found = [self._statuses.get(node) for node in self._plan.ring]
        ranks = [status for status in found if status is not None and status.plan_hash == self._plan.hash]
        return ranks if len(ranks) == len(found) else None

    def _advance(self, now: float) -> list[OrderRank]:
        if self._plan is None:
            return []
        ranks = self._ranks()
        if self.stage is Stage.PAUSE and now >= self._deadline:
            self.stage = Stage.GATHERING
        if ranks is None or any(rank.phase not in _HOLDS_ITS_LAYERS for rank in ranks):
            if self.stage is not Stage.PAUSE:
                self.stage = Stage.GATHERING  # a rank died, or loads again: nothing to prepare yet
            return []
        match self.stage:
            case Stage.GATHERING:
                return self._gather(ranks, now)
            case Stage.PREPARING | Stage.FORMING | Stage.FORMED if any(map(self._gave_up, ranks)):
                return self._retry(now)
            case Stage.PREPARING if self._all(ranks, RankPhase.PREPARED):
                return self._enter(Stage.FORMING, FORM_DEADLINE_S, now)
            case Stage.FORMING if self._all(ranks, RankPhase.FORMED):
                self.stage = Stage.FORMED
                self._formed_at = now
                return []
            case Stage.PREPARING | Stage.FORMING if now >= self._deadline:
                return self._retry(now)
            case Stage.PREPARING | Stage.FORMING if now >= self._repeat_at:
                return self._orders(now)
            case _:
                return []

    def _gather(self, ranks: list[RankStatus], now: float) -> list[OrderRank]:
        self.problem = disagreement(ranks)
        if self.problem:
            return []
        self.attempt = max(self.attempt, *(rank.attempt for rank in ranks)) + 1
        return self._enter(Stage.PREPARING, PREPARE_DEADLINE_S, now)

    def _all(self, ranks: list[RankStatus], *phases: RankPhase) -> bool:
        return all(rank.attempt == self.attempt and rank.phase in phases for rank in ranks)

    def _gave_up(self, rank: RankStatus) -> bool:
        """Has this rank left the attempt? One that has not heard of it yet has not, while it is being prepared."""
        if rank.attempt < self.attempt:
            return self.stage is not Stage.PREPARING
        match self.stage:
            case Stage.PREPARING:
                on_the_way = rank.phase in (RankPhase.PREPARING, RankPhase.PREPARED)
            case Stage.FORMING:
                on_the_way = rank.phase in (RankPhase.PREPARED, RankPhase.FORMED)
            case _:
                on_the_way = rank.phase is RankPhase.FORMED
        return rank.attempt > self.attempt or not on_the_way

    def _retry(self, now: float) -> list[OrderRank]:
        lived = self.stage is Stage.FORMED and now - self._formed_at > LIVED_S
        if self.stage is Stage.FORMED and (lived or self._pause_s == 0):
            self._pause_s = PAUSE_FIRST_S
            self.stage = Stage.GATHERING
            return self._advance(now)
        self._pause_s = min(PAUSE_LIMIT_S, max(PAUSE_FIRST_S, self._pause_s * 2))
        self.stage = Stage.PAUSE
        self._deadline = now + self._pause_s
        return []

    def _enter(self, stage: Stage, deadline_s: float, now: float) -> list[OrderRank]:
        self.stage = stage
        self._deadline = now + deadline_s
        return self._orders(now)

    def _orders(self, now: float) -> list[OrderRank]:
        """The present order for every rank that has not followed it yet."""
        assert self._plan is not None
        self._repeat_at = now + REPEAT_S
        forming = self.stage is Stage.FORMING
        order = FormOrder(self._me, self._plan.hash, self.attempt, "form" if forming else "prepare")
        done = RankPhase.FORMED if forming else RankPhase.PREPARED
        return [
            OrderRank(node, order)
            for node in self._plan.ring
            if self._statuses[node].attempt != self.attempt or self._statuses[node].phase is not done
        ]


def disagreement(ranks: Sequence[RankStatus | None]) -> str:
    """Why these ranks must not form a group, in words; empty where they may, or where one has not loaded yet."""
    known = [rank for rank in ranks if rank is not None and rank.phase in _HOLDS_ITS_LAYERS]
    if not known or len(known) < len(ranks):
        return ""
    first, *others = known
    for other in others:
        if other.fingerprint != first.fingerprint:
            return (
                f"nodes {first.sender} and {other.sender} hold different files of {first.model}: copy one folder "
                "to the other, or download it again on both"
            )
        if other.versions != first.versions:
            return (
                f"nodes {first.sender} and {other.sender} run different versions ({first.versions}; "
                f"{other.versions}): install the same on both"
            )
    return ""
