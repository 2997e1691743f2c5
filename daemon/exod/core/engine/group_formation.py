"""How the coordinator brings the ranks of a plan into one group.

GATHERING until every rank has loaded its layers of the same files; PREPARING (each rank left its old group and is
ready to connect); FORMING (all connect at about the same time); FORMED. A rank that reports trouble, or a
deadline, starts the next attempt: attempts of one plan only grow, and a rank follows the highest. Between
attempts that failed lies a pause that doubles and is forgotten once a group has lived for a while. A rank that
died, or loads again, leads back to gathering from anywhere but the pause, which is not cut short. IDLE where this
node coordinates no usable plan. A group that stands over TCP is moved to RDMA where that is `offered`.

Decides only when to order `prepare` and `form`. Times in monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Literal

import msgspec

from exod.core.base.errors import IllegalMoveError
from exod.core.engine.engine_messages import HOLDS_ITS_LAYERS, FormOrder, RankPhase, RankStatus
from exod.model import MeshPlan, NodeId
from exoengine.protocol import RdmaSetup

PREPARE_DEADLINE_S: Final = 12.0
FORM_DEADLINE_S: Final = 10.0
"""Both past the deadlines of worker_life.py: a rank answers in fractions of a second, or says that it gave up, or
is replaced by its own daemon; this is for one that is not heard of."""

REPEAT_S: Final = 0.5
"""Orders may be lost with their connection: repeated until the rank's status shows them."""

PAUSE_FIRST_S: Final = 0.1
PAUSE_LIMIT_S: Final = 5.0
LIVED_S: Final = 3.0
"""A group that lived this long was sound: the next fault is a new one and is answered without a pause. As that of
worker_life.py: three seconds of answers for a tenth of one to form it."""


RECENT_MOVES: Final = 32
"""Kept for the error of an illegal move: several attempts, each of which has four moves."""


class FormationState(StrEnum):
    IDLE = "idle"
    GATHERING = "gathering"
    PREPARING = "preparing"
    FORMING = "forming"
    FORMED = "formed"
    PAUSE = "pause"


class FormationEvent(StrEnum):
    PLAN_FOLLOWED = "a plan is to be formed"
    NO_PLAN = "no usable plan of ours"
    RANK_MISSING = "a rank does not hold its layers"
    RANKS_COMPLETE = "all ranks hold their layers"
    ALL_PREPARED = "all ranks are prepared"
    ALL_FORMED = "all ranks stand in the group"
    ATTEMPT_FAILED = "the attempt failed"
    SOUND_GROUP_LOST = "a group that had lived was lost"
    RDMA_OFFERED = "the group is to run over RDMA"
    PAUSE_OVER = "the pause is over"


TRANSITIONS: Final[dict[tuple[FormationState, FormationEvent], FormationState]] = {
    **{(state, FormationEvent.PLAN_FOLLOWED): FormationState.GATHERING for state in FormationState},
    **{(state, FormationEvent.NO_PLAN): FormationState.IDLE for state in FormationState},
    (FormationState.GATHERING, FormationEvent.RANK_MISSING): FormationState.GATHERING,
    (FormationState.GATHERING, FormationEvent.RANKS_COMPLETE): FormationState.PREPARING,
    (FormationState.PREPARING, FormationEvent.RANK_MISSING): FormationState.GATHERING,
    (FormationState.PREPARING, FormationEvent.ALL_PREPARED): FormationState.FORMING,
    (FormationState.PREPARING, FormationEvent.ATTEMPT_FAILED): FormationState.PAUSE,
    (FormationState.FORMING, FormationEvent.RANK_MISSING): FormationState.GATHERING,
    (FormationState.FORMING, FormationEvent.ALL_FORMED): FormationState.FORMED,
    (FormationState.FORMING, FormationEvent.ATTEMPT_FAILED): FormationState.PAUSE,
    (FormationState.FORMED, FormationEvent.RANK_MISSING): FormationState.GATHERING,
    (FormationState.FORMED, FormationEvent.SOUND_GROUP_LOST): FormationState.GATHERING,
    (FormationState.FORMED, FormationEvent.RDMA_OFFERED): FormationState.GATHERING,
    (FormationState.FORMED, FormationEvent.ATTEMPT_FAILED): FormationState.PAUSE,
    (FormationState.PAUSE, FormationEvent.PAUSE_OVER): FormationState.GATHERING,
}


_UNDER_WAY: Final = frozenset({FormationState.PREPARING, FormationState.FORMING, FormationState.FORMED})


class OrderRank(msgspec.Struct, frozen=True):
    """Command: send this order to this node (which may be the coordinator itself)."""

    to: NodeId
    order: FormOrder


class Formation:
    """The coordinator's view of one plan's group. Silent on nodes that are not the coordinator."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._plan: MeshPlan | None = None
        self._statuses: dict[NodeId, RankStatus] = {}
        self._state = FormationState.IDLE
        self._recent: deque[str] = deque(maxlen=RECENT_MOVES)
        self.attempt = 0
        self.problem = ""
        """Why the ranks must not form a group, where they hold their layers and must not."""
        self.offered: RdmaSetup | None = None
        """What the next attempt is to be over RDMA with; None: TCP."""
        self.rdma: RdmaSetup | None = None
        """Of the present attempt."""
        self.rdma_lost = ""
        """Why an attempt over RDMA, or its group, came to nothing; whoever reads it empties it."""
        self._deadline = 0.0
        self._repeat_at = 0.0
        self._formed_at = 0.0
        self._pause_s = 0.0

    @property
    def state(self) -> FormationState:
        return self._state

    @property
    def formed(self) -> bool:
        return self._state is FormationState.FORMED

    def _apply(self, event: FormationEvent, now: float) -> None:
        """The one setter of the state."""
        after = TRANSITIONS.get((self._state, event))
        if after is None:
            raise IllegalMoveError(
                "no such move of a formation", state=self._state, event=event, story=tuple(self._recent)
            )
        if after is not self._state:
            self._recent.append(f"{now:.3f} {self._state} + {event} -> {after}, attempt {self.attempt}")
        self._state = after

    def follow(self, plan: MeshPlan | None, now: float) -> list[OrderRank]:
        """A plan was committed that this node coordinates; None where it coordinates none, or none is usable."""
        if plan is None and self._state in _UNDER_WAY:
            self._lose_rdma("the plan's edges cannot be used")
        self.rdma = self.offered = None
        self._plan = plan if plan is not None and plan.coordinator == self._me and plan.ring else None
        self._apply(
            FormationEvent.NO_PLAN if self._plan is None else FormationEvent.PLAN_FOLLOWED,
            now,
        )
        self.attempt = 0
        self.problem = ""
        self._pause_s = 0.0
        return self._advance(now)

    def rank_status(self, status: RankStatus, now: float) -> list[OrderRank]:
        """What a rank reports; statuses of other plans are kept until theirs is followed."""
        self._statuses[status.sender] = status
        return self._advance(now)

    def forget(self, node: NodeId, now: float) -> None:
        """This node is down: its last report of its rank no longer counts."""
        self._statuses.pop(node, None)
        if self._plan is not None and node in self._plan.ring:
            self._rank_missing(now)

    def _rank_missing(self, now: float) -> None:
        if self._state in _UNDER_WAY:
            self._lose_rdma("a rank's process ended")
        if self._state is not FormationState.PAUSE:
            self._apply(FormationEvent.RANK_MISSING, now)

    def handle_timer(self, now: float) -> list[OrderRank]:
        return self._advance(now)

    def next_deadline(self) -> float | None:
        match self._state:
            case FormationState.PREPARING | FormationState.FORMING:
                return min(self._deadline, self._repeat_at)
            case FormationState.PAUSE:
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
        if self._state is FormationState.PAUSE and now >= self._deadline:
            self._apply(FormationEvent.PAUSE_OVER, now)
        if ranks is None or any(rank.phase not in HOLDS_ITS_LAYERS for rank in ranks):
            self._rank_missing(now)
            return []
        match self._state:
            case FormationState.GATHERING:
                return self._gather(ranks, now)
            case FormationState.PREPARING | FormationState.FORMING | FormationState.FORMED if any(
                map(self._gave_up, ranks)
            ):
                return self._retry(now)
            case FormationState.FORMED if self.rdma is None and self.offered is not None:
                self._apply(FormationEvent.RDMA_OFFERED, now)
                return self._gather(ranks, now)
            case FormationState.PREPARING if self._all(ranks, RankPhase.PREPARED):
                self._apply(FormationEvent.ALL_PREPARED, now)
                return self._first_orders(FORM_DEADLINE_S, now)
            case FormationState.FORMING if self._all(ranks, RankPhase.FORMED):
                self._apply(FormationEvent.ALL_FORMED, now)
                self._formed_at = now
                return []
            case FormationState.PREPARING | FormationState.FORMING if now >= self._deadline:
                return self._retry(now)
            case FormationState.PREPARING | FormationState.FORMING if now >= self._repeat_at:
                return self._orders(now)
            case _:
                return []

    def _gather(self, ranks: list[RankStatus], now: float) -> list[OrderRank]:
        self.problem = disagreement(ranks)
        if self.problem:
            return []
        self.attempt = max(self.attempt, *(rank.attempt for rank in ranks)) + 1
        self.rdma = self.offered
        self._apply(FormationEvent.RANKS_COMPLETE, now)
        return self._first_orders(PREPARE_DEADLINE_S, now)

    def _all(self, ranks: list[RankStatus], *phases: RankPhase) -> bool:
        return all(rank.attempt == self.attempt and rank.phase in phases for rank in ranks)

    def _gave_up(self, rank: RankStatus) -> bool:
        """Has this rank left the attempt? One that has not heard of it yet has not, while it is being prepared."""
        if rank.attempt < self.attempt:
            return self._state is not FormationState.PREPARING
        match self._state:
            case FormationState.PREPARING:
                on_the_way = rank.phase in (RankPhase.PREPARING, RankPhase.PREPARED)
            case FormationState.FORMING:
                on_the_way = rank.phase in (RankPhase.PREPARED, RankPhase.FORMED)
            case _:
                on_the_way = rank.phase is RankPhase.FORMED
        return rank.attempt > self.attempt or not on_the_way

    def _lose_rdma(self, text: str) -> None:
        """Whatever comes next comes over TCP."""
        if self.rdma is not None:
            self.rdma_lost = text
            self.rdma = self.offered = None

    def _retry(self, now: float) -> list[OrderRank]:
        given_up = [rank.text for rank in self._ranks() or () if self._gave_up(rank) and rank.text]
        self._lose_rdma(given_up[0] if given_up else "the ranks did not do in time what they should")
        lived = now - self._formed_at > LIVED_S
        if self.formed and (lived or self._pause_s == 0):
            self._pause_s = PAUSE_FIRST_S
            self._apply(FormationEvent.SOUND_GROUP_LOST, now)
            return self._advance(now)
        self._pause_s = min(PAUSE_LIMIT_S, max(PAUSE_FIRST_S, self._pause_s * 2))
        self._apply(FormationEvent.ATTEMPT_FAILED, now)
        self._deadline = now + self._pause_s
        return []

    def _first_orders(self, deadline_s: float, now: float) -> list[OrderRank]:
        self._deadline = now + deadline_s
        return self._orders(now)

    def _orders(self, now: float) -> list[OrderRank]:
        """The present order for every rank that has not followed it yet."""
        assert self._plan is not None
        self._repeat_at = now + REPEAT_S
        forming = self._state is FormationState.FORMING
        step: Literal["prepare", "form"] = "form" if forming else "prepare"
        order = FormOrder(self._me, self._plan.hash, self.attempt, step, self.rdma)
        done = RankPhase.FORMED if forming else RankPhase.PREPARED
        return [
            OrderRank(node, order)
            for node in self._plan.ring
            if self._statuses[node].attempt != self.attempt or self._statuses[node].phase is not done
        ]


def disagreement(ranks: Sequence[RankStatus | None]) -> str:
    """Why these ranks must not form a group, for people; empty where they may, or where one has not loaded yet."""
    known = [rank for rank in ranks if rank is not None and rank.phase in HOLDS_ITS_LAYERS]
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
