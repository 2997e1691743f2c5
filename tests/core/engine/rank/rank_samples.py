"""Ranks at each stage of their way into a group, for tests of them."""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent, KillWorker, ModelFacts
from exod.core.engine.engine_messages import FormOrder, RankPhase
from exod.core.engine.rank.rank import Rank, RankCommand
from exod.model import MeshPlan
from exoengine.protocol import (
    Formed,
    Prepared,
    SyncSettings,
)
from tests.core.engine.engine_samples import (
    FOLDER,
    A,
    B,
    a_plan,
    hello,
    loaded,
    only,
    sizes,
)

PLAN = a_plan(A, B)
FACTS = ModelFacts("m", FOLDER, sizes())


def a_rank() -> Rank:
    return Rank(B, 5, SyncSettings(), b"the ring's key")


def order(plan: MeshPlan, attempt: int, step: str) -> FormOrder:
    return FormOrder(A, plan.hash, attempt, step)  # type: ignore[arg-type]


def a_resolved_rank(plan: MeshPlan = PLAN) -> Rank:
    rank = a_rank()
    rank.commit(plan, "why", 0.0)
    rank.model_found(FACTS, 0.0)
    return rank


def a_loaded_rank(plan: MeshPlan = PLAN, layer_s: float = 0.01) -> Rank:
    rank = a_resolved_rank(plan)
    rank.worker_said(hello(), 1.0)
    span = rank.span()
    assert span is not None
    rank.worker_said(loaded(*span, layer_s), 2.0)
    return rank


def prepare(rank: Rank, attempt: int = 1, now: float = 3.0, plan: MeshPlan = PLAN) -> list[RankCommand]:
    return rank.order(order(plan, attempt, "prepare"), now) + rank.worker_said(Prepared(plan.hash, attempt), now)


def a_formed_rank(now: float = 3.0, layer_s: float = 0.01) -> Rank:
    rank = a_loaded_rank(layer_s=layer_s)
    prepare(rank, now=now)
    rank.order(order(PLAN, 1, "form"), now)
    rank.worker_said(Formed(PLAN.hash, 1, -1), now)
    assert rank.phase is RankPhase.FORMED
    return rank


def kills(rank: Rank, now: float) -> list[KillWorker]:
    """As the host does it: the timer is called when it is due, with beats in between."""
    commands: list[RankCommand] = []
    while (due := rank.next_deadline()) <= now:
        commands += rank.handle_timer(due)
        if only(commands, KillWorker):
            break
    return only(commands, KillWorker)


def reformed(gap_ms: float, **fields: object) -> EmitEvent:
    return EmitEvent("engine.reformed", {"gap_ms": gap_ms, **fields})
