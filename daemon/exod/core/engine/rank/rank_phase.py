"""How far this node's rank is on its way into the group of the plan: one phase, and the moves between phases.

A rank that a plan wants looks for the model, loads its layers and holds them. The coordinator then orders attempts:
`prepare` (leave the old group, make ready), then `form`; the worker says that it is prepared, that it stands in the
group, or that it gave the attempt up. A higher attempt begins from any of these. What ends an attempt from outside
(another plan, a suspended plan, the end of the process) leaves a rank that holds its layers; a process or layers
that are missing lead back to loading from anywhere. A failure is what only another plan, model or file can mend.

Decides which move is allowed, and nothing else. The phase is what other nodes see: that `form` was ordered, but the
group does not stand yet, is a mark beside PREPARED.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from enum import StrEnum
from typing import Final

from exod.core.base.errors import IllegalMoveError
from exod.core.engine.engine_messages import HOLDS_ITS_LAYERS, IN_GROUP, RankPhase

RECENT_MOVES: Final = 32
"""Kept for the error of an illegal move: several attempts, each of which has four moves."""


class RankEvent(StrEnum):
    NOT_WANTED = "no rank is wanted here"
    MODEL_UNKNOWN = "the model is looked for"
    MODEL_FAILED = "the model cannot be hosted"
    LAYERS_MISSING = "the process or its layers are missing"
    LAYERS_HELD = "the layers are held"
    PREPARE_ORDERED = "prepare was ordered"
    PREPARED = "the worker is prepared"
    FORMED = "the worker stands in the group"
    ABORTED = "the worker gave the attempt up"
    ATTEMPT_LEFT = "the attempt was ended from outside"


_UNLOADED: Final = frozenset({RankPhase.RESOLVING, RankPhase.LOADING, RankPhase.FAILED})


_MOVES: Final[tuple[tuple[Collection[RankPhase], RankEvent, RankPhase], ...]] = (
    (frozenset(RankPhase), RankEvent.NOT_WANTED, RankPhase.OFF),
    (_UNLOADED | {RankPhase.OFF, RankPhase.LOADED}, RankEvent.MODEL_UNKNOWN, RankPhase.RESOLVING),
    (_UNLOADED | {RankPhase.LOADED}, RankEvent.MODEL_FAILED, RankPhase.FAILED),
    (_UNLOADED | HOLDS_ITS_LAYERS, RankEvent.LAYERS_MISSING, RankPhase.LOADING),
    (_UNLOADED, RankEvent.LAYERS_HELD, RankPhase.LOADED),
    (HOLDS_ITS_LAYERS, RankEvent.PREPARE_ORDERED, RankPhase.PREPARING),
    ({RankPhase.PREPARING}, RankEvent.PREPARED, RankPhase.PREPARED),
    ({RankPhase.PREPARED}, RankEvent.FORMED, RankPhase.FORMED),
    (IN_GROUP, RankEvent.ABORTED, RankPhase.ABORTED),
    (IN_GROUP | {RankPhase.ABORTED}, RankEvent.ATTEMPT_LEFT, RankPhase.LOADED),
)
TRANSITIONS: Final = {(phase, event): after for phases, event, after in _MOVES for phase in phases}


class PhaseMachine:
    def __init__(self) -> None:
        self._phase = RankPhase.OFF
        self.plan_hash = ""
        """Of the plan whose attempts count; empty while none is usable."""
        self.attempt = 0
        """The number of the newest attempt of this plan that was ordered."""
        self.forming = False
        """Was `form` ordered, and neither group nor abort seen since?"""
        self._recent: deque[str] = deque(maxlen=RECENT_MOVES)

    @property
    def phase(self) -> RankPhase:
        return self._phase

    @property
    def in_group(self) -> bool:
        return self._phase in IN_GROUP

    def follow(self, plan_hash: str) -> None:
        """Another plan: its attempts are counted from the beginning."""
        self.plan_hash, self.attempt = plan_hash, 0

    def is_present(self, plan_hash: str, attempt: int) -> bool:
        return bool(plan_hash) and (plan_hash, attempt) == (self.plan_hash, self.attempt)

    def accepts(self, event: RankEvent) -> bool:
        """Is this a move that the present phase allows? For what comes from outside."""
        return (self._phase, event) in TRANSITIONS

    def apply(self, event: RankEvent, now: float) -> bool:
        """The one setter of the phase. Returns whether it changed."""
        after = TRANSITIONS.get((self._phase, event))
        if after is None:
            raise IllegalMoveError(
                "no such move of a rank", phase=self._phase, event=event, story=tuple(self._recent)
            )
        before, self._phase = self._phase, after
        if after is not RankPhase.PREPARED:
            self.forming = False
        if after is not before:
            self._recent.append(f"{now:.3f} {before} + {event} -> {after}")
        return after is not before
