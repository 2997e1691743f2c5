"""The coordinator brings the ranks of a plan together, order by order."""

from __future__ import annotations

import pytest

from exod.core.engine.engine_messages import FormOrder, RankPhase, RankStatus
from exod.core.engine.group_formation import (
    FORM_DEADLINE_S,
    LIVED_S,
    PAUSE_FIRST_S,
    PAUSE_LIMIT_S,
    PREPARE_DEADLINE_S,
    REPEAT_S,
    Formation,
    FormationState,
    OrderRank,
)
from exod.core.engine.rank import worker_life
from exod.model import NodeId
from exoengine.protocol import RdmaSetup
from tests.core.engine.engine_samples import A, B, C, a_plan, status

PLAN = a_plan(A, B)
LOADED, PREPARING, PREPARED = RankPhase.LOADED, RankPhase.PREPARING, RankPhase.PREPARED
FORMED, ABORTED, LOADING = RankPhase.FORMED, RankPhase.ABORTED, RankPhase.LOADING


def to(node: NodeId, step: str, attempt: int = 1) -> OrderRank:
    return OrderRank(node, FormOrder(A, PLAN.hash, attempt, step))  # type: ignore[arg-type]


def hear(formation: Formation, phase: RankPhase, attempt: int, now: float, *nodes: NodeId) -> list[OrderRank]:
    orders: list[OrderRank] = []
    for node in nodes or (A, B):
        orders += formation.rank_status(status(node, phase, attempt), now)
    return orders


def a_preparing_formation() -> Formation:
    formation = Formation(A)
    formation.follow(PLAN, 0.0)
    assert hear(formation, LOADED, 0, 1.0) == [to(A, "prepare"), to(B, "prepare")]
    return formation


def a_formed_formation(now: float = 1.0) -> Formation:
    formation = a_preparing_formation()
    hear(formation, PREPARED, 1, now)
    hear(formation, FORMED, 1, now)
    assert formation.formed
    return formation


def test_ranks_are_prepared_together_and_formed_together() -> None:
    formation = Formation(A)
    assert formation.follow(PLAN, 0.0) == []
    assert hear(formation, LOADED, 0, 1.0, A) == []
    assert hear(formation, LOADED, 0, 1.1, B) == [to(A, "prepare"), to(B, "prepare")]
    assert hear(formation, PREPARING, 1, 1.2) == []
    assert hear(formation, PREPARED, 1, 1.3, B) == []
    assert hear(formation, PREPARED, 1, 1.4, A) == [to(A, "form"), to(B, "form")]
    assert hear(formation, FORMED, 1, 1.5, A) == []
    assert not formation.formed
    assert hear(formation, FORMED, 1, 1.6, B) == []
    assert formation.formed


def test_another_nodes_plan_is_none_of_ours() -> None:
    formation = Formation(B)
    formation.follow(PLAN, 0.0)
    assert hear(formation, LOADED, 0, 1.0) == []
    assert formation.state is FormationState.IDLE


def test_statuses_that_came_before_the_plan_count() -> None:
    formation = Formation(A)
    hear(formation, LOADED, 0, 0.0)
    assert formation.follow(PLAN, 1.0) == [to(A, "prepare"), to(B, "prepare")]


def test_orders_are_said_again_to_those_who_have_not_followed() -> None:
    formation = a_preparing_formation()
    hear(formation, PREPARED, 1, 1.1, A)
    due = formation.next_deadline()
    assert due == 1.0 + REPEAT_S
    assert formation.handle_timer(due - 0.01) == []
    assert formation.handle_timer(due) == [to(B, "prepare")]
    hear(formation, PREPARED, 1, 1.6, B)
    hear(formation, FORMED, 1, 1.7, B)
    assert formation.handle_timer(1.6 + REPEAT_S) == [to(A, "form")]


def test_a_group_that_loses_a_rank_is_formed_anew_without_a_pause_the_first_time() -> None:
    formation = a_formed_formation()
    assert hear(formation, ABORTED, 1, 2.0, A) == [to(A, "prepare", 2), to(B, "prepare", 2)]


def test_faults_in_quick_succession_meet_a_pause_that_doubles() -> None:
    formation = a_formed_formation()
    now, pauses = 2.0, []
    hear(formation, ABORTED, 1, now, A)
    for attempt in range(2, 12):
        hear(formation, PREPARED, attempt, now)
        hear(formation, FORMED, attempt, now)
        assert hear(formation, ABORTED, attempt, now, B) == []
        due = formation.next_deadline()
        assert due is not None
        pauses.append(round(due - now, 3))
        now = due
        assert formation.handle_timer(now) == [to(A, "prepare", attempt + 1), to(B, "prepare", attempt + 1)]
    assert pauses[:3] == [PAUSE_FIRST_S * 2, PAUSE_FIRST_S * 4, PAUSE_FIRST_S * 8]
    assert pauses[-1] == PAUSE_LIMIT_S


def test_a_group_that_lived_is_answered_without_a_pause_again() -> None:
    formation = a_formed_formation()
    hear(formation, ABORTED, 1, 2.0, A)
    hear(formation, PREPARED, 2, 2.1)
    hear(formation, FORMED, 2, 2.2)
    assert LIVED_S <= 4.0, "faults five seconds apart are answered at once"
    assert len(hear(formation, ABORTED, 2, 2.3 + LIVED_S, A)) == 2


@pytest.mark.parametrize("phase", [ABORTED, LOADED])
def test_a_rank_that_gives_up_while_it_is_prepared_is_not_waited_for(phase: RankPhase) -> None:
    formation = a_preparing_formation()
    hear(formation, PREPARED, 1, 1.1, A)
    assert hear(formation, phase, 1, 1.2, B) == []
    assert formation.state is FormationState.PAUSE


def test_a_rank_that_gives_up_while_the_group_forms_is_not_waited_for() -> None:
    formation = a_preparing_formation()
    hear(formation, PREPARED, 1, 1.1)
    hear(formation, ABORTED, 1, 1.2, B)
    assert formation.state is FormationState.PAUSE


def test_a_rank_that_loads_again_stops_the_forming_until_it_is_ready() -> None:
    formation = a_formed_formation()
    assert hear(formation, LOADING, 1, 2.0, B) == []
    assert not formation.formed
    assert hear(formation, LOADED, 1, 9.0, B) == [to(A, "prepare", 2), to(B, "prepare", 2)]


def test_a_rank_that_says_nothing_is_given_up_at_a_deadline_and_tried_again() -> None:
    formation = a_preparing_formation()
    formation.handle_timer(1.0 + PREPARE_DEADLINE_S)
    assert formation.state is FormationState.PAUSE
    assert formation.handle_timer(1.0 + PREPARE_DEADLINE_S + PAUSE_LIMIT_S) == [
        to(A, "prepare", 2),
        to(B, "prepare", 2),
    ]


def test_a_ranks_own_deadlines_come_first() -> None:
    assert worker_life.PREPARING.within_s < PREPARE_DEADLINE_S
    assert worker_life.FORMING.within_s < FORM_DEADLINE_S


def test_attempts_go_on_above_what_any_rank_has_seen() -> None:
    formation = Formation(A)
    formation.follow(PLAN, 0.0)
    hear(formation, ABORTED, 7, 1.0, B)
    assert hear(formation, LOADED, 0, 1.0, A) == [to(A, "prepare", 8), to(B, "prepare", 8)]


def test_a_node_that_is_down_is_waited_for() -> None:
    formation = a_formed_formation()
    formation.forget(B, 2.0)
    assert not formation.formed
    assert formation.handle_timer(99.0) == []
    assert hear(formation, LOADED, 0, 100.0, B) == [to(A, "prepare", 2), to(B, "prepare", 2)]


def test_a_node_outside_of_the_ring_disturbs_nothing() -> None:
    formation = a_formed_formation()
    formation.forget(C, 2.0)
    assert hear(formation, ABORTED, 1, 2.0, C) == []
    assert formation.formed


def test_a_rank_whose_plan_is_suspended_is_waited_for() -> None:
    formation = a_formed_formation()
    assert formation.rank_status(status(B, LOADED, 1, plan=""), 2.0) == []
    assert not formation.formed


@pytest.mark.parametrize(
    ("field", "words"), [("fingerprint", "hold different files"), ("versions", "run different versions")]
)
def test_ranks_that_differ_form_no_group_until_they_agree(field: str, words: str) -> None:
    formation = Formation(A)
    formation.follow(PLAN, 0.0)

    def say(node: NodeId, value: str) -> list[OrderRank]:
        report: RankStatus = status(node, LOADED, 0, **{field: value})
        return formation.rank_status(report, 1.0)

    say(A, "one")
    assert say(B, "other") == []
    assert words in formation.problem
    assert len(say(B, "one")) == 2
    assert formation.problem == ""


def test_a_plan_that_is_no_more_is_forgotten_with_its_deadlines() -> None:
    formation = a_preparing_formation()
    assert formation.follow(None, 2.0) == []
    assert formation.next_deadline() is None
    assert formation.state is FormationState.IDLE


# --- over RDMA ----------------------------------------------------------------------------------------------

SETUP = RdmaSetup((((), ("rdma_en2",)), (("rdma_en2",), ())), "10.0.0.1:52421")


def a_formation_over_rdma() -> Formation:
    formation = a_formed_formation()
    formation.offered = SETUP
    assert {order.order.rdma for order in formation.handle_timer(2.0)} == {SETUP}
    assert formation.attempt == 2
    hear(formation, PREPARED, 2, 2.1)
    hear(formation, FORMED, 2, 2.2)
    assert formation.formed
    return formation


def test_a_group_is_moved_to_rdma_once_it_is_offered() -> None:
    formation = a_formation_over_rdma()
    assert formation.rdma == SETUP
    assert formation.handle_timer(3.0) == [], "it is there"


def test_a_group_over_rdma_that_is_lost_is_formed_again_over_tcp() -> None:
    formation = a_formation_over_rdma()
    orders = hear(formation, ABORTED, 2, 3.0, B)
    assert {(order.order.step, order.order.attempt, order.order.rdma) for order in orders} == {("prepare", 3, None)}
    assert formation.rdma_lost


def test_a_ranks_death_in_a_group_over_rdma_leads_to_tcp() -> None:
    formation = a_formation_over_rdma()
    hear(formation, LOADING, 2, 3.0, B)
    assert formation.rdma_lost == "a rank's process ended"
    orders = hear(formation, LOADED, 2, 4.0)
    assert {order.order.rdma for order in orders} == {None}


def test_a_suspended_plan_loses_rdma_and_a_new_plan_does_not() -> None:
    formation = a_formation_over_rdma()
    formation.follow(PLAN, 3.0)
    assert formation.rdma_lost == ""
    formation = a_formation_over_rdma()
    formation.follow(None, 3.0)
    assert formation.rdma_lost == "the plan's edges cannot be used"
