"""When graphs communicate over RDMA: proven first, lost at a fault, proven again after a pause that doubles."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.engine_events import RdmaWired
from exod.core.engine.engine_messages import RankStatus, RdmaProof
from exod.core.engine.transport.transport_choice import (
    LIVED_S,
    PAUSE_FIRST_S,
    PAUSE_LIMIT_S,
    PROOF_DEADLINE_S,
    REPEAT_S,
    ProofOrder,
    TransportChoice,
)
from exod.model import MeshPlan
from exoengine.protocol import RdmaSetup
from tests.core.engine.engine_samples import A, B, a_plan, status

PLAN = a_plan(A, B)
SETUP = RdmaSetup((((), ("rdma_en2",)), (("rdma_en3",), ())), "10.0.0.1:52421")
WIRED = RdmaWired(PLAN.hash, SETUP, "")


def ranks(proofs: tuple[RdmaProof, ...] = (RdmaProof(), RdmaProof()), **fields: object) -> list[RankStatus]:
    found = [status(node, no_rdma="", proof=proof) for node, proof in zip((A, B), proofs, strict=True)]
    return [msgspec.structs.replace(one, **fields) for one in found]


def a_choice(wished: str = "auto", wired: RdmaWired = WIRED) -> TransportChoice:
    choice = TransportChoice(A, wished)
    choice.wired(wired)
    return choice


def numbers(orders: list[ProofOrder]) -> set[int]:
    return {order.order.number for order in orders}


def prove(choice: TransportChoice, now: float, plan: MeshPlan = PLAN) -> None:
    """The proof that is due is ordered, and both ranks find that all is well."""
    [number] = numbers(choice.advance(plan, ranks(), True, now))
    assert choice.offer(plan) is None, "not proven yet"
    choice.advance(plan, ranks((RdmaProof(number, "ok"), RdmaProof(number, "running"))), True, now)
    assert choice.offer(plan) is None, "one rank has not ended"
    choice.advance(plan, ranks((RdmaProof(number, "ok"),) * 2), True, now)
    assert choice.offer(plan) == SETUP


def a_used_choice(now: float = 0.0) -> TransportChoice:
    choice = a_choice()
    prove(choice, now)
    choice.used(now)
    return choice


def test_rdma_is_proven_by_all_ranks_before_it_is_used() -> None:
    choice = a_choice()
    orders = choice.advance(PLAN, ranks(), True, 1.0)
    assert [order.to for order in orders] == [A, B]
    assert {order.order.setup for order in orders} == {SETUP}
    prove(a_choice(), 1.0)


def test_no_proof_begins_before_the_group_stands() -> None:
    choice = a_choice()
    assert choice.advance(PLAN, ranks(), False, 1.0) == []
    assert choice.advance(PLAN, ranks()[:1], True, 1.0) == [], "a rank is not known"


@pytest.mark.parametrize(
    ("wished", "wired", "unable", "why"),
    [
        ("tcp", WIRED, "", 'engine.transport = "tcp"'),
        ("rdma", RdmaWired(PLAN.hash, None, "no cable"), "", "no cable"),
        ("rdma", RdmaWired("another", SETUP, ""), "", "the cables between the ranks are not known yet"),
        ("rdma", WIRED, "MLX has no JACCL", f"{A}: MLX has no JACCL"),
    ],
)
def test_what_stands_in_its_way_is_said_and_nothing_is_tried(
    wished: str, wired: RdmaWired, unable: str, why: str
) -> None:
    choice, found = a_choice(wished, wired), ranks(no_rdma=unable)
    assert choice.advance(PLAN, found, True, 1.0) == []
    assert choice.obstacle(PLAN, found) == why
    assert choice.offer(PLAN) is None
    assert choice.text(PLAN, found) == ("" if wished == "tcp" else f"ranks run over TCP, not RDMA: {why}")
    assert a_choice("auto", wired).text(PLAN, found) == "", "nobody asked"


def test_what_must_be_sealed_does_not_go_over_rdma() -> None:
    choice = TransportChoice(A, "rdma", sealed=True)
    choice.wired(WIRED)
    assert choice.advance(PLAN, ranks(), True, 1.0) == []
    assert 'mesh.seal = "all"' in choice.text(PLAN, ranks())


def test_an_older_exod_on_a_rank_is_an_obstacle() -> None:
    assert a_choice().obstacle(PLAN, [*ranks()[:1], status(B)]) == f"{B}: its exod knows of none"


def test_a_single_rank_has_nobody_to_reach() -> None:
    alone = a_plan(A)
    assert a_choice("rdma").obstacle(alone, ranks()[:1]) == "there is no other rank"


def test_an_order_is_repeated_to_whom_it_did_not_reach() -> None:
    choice = a_choice()
    [number] = numbers(choice.advance(PLAN, ranks(), True, 1.0))
    half = ranks((RdmaProof(number, "running"), RdmaProof()))
    assert choice.advance(PLAN, half, True, 1.0 + REPEAT_S / 2) == []
    assert [order.to for order in choice.advance(PLAN, half, True, 1.0 + REPEAT_S)] == [B]
    assert choice.next_deadline() == 1.0 + 2 * REPEAT_S


def test_a_new_coordinator_counts_on_from_what_the_ranks_know() -> None:
    choice = a_choice()
    assert numbers(choice.advance(PLAN, ranks((RdmaProof(7, "ok"), RdmaProof(9, "failed"))), True, 1.0)) == {10}
    assert choice.offer(PLAN) is None, "another coordinator's proof is none"


def test_a_proof_that_fails_is_tried_again_after_a_pause_that_doubles() -> None:
    choice, now, pauses = a_choice(), 0.0, []
    for _ in range(9):
        [number] = numbers(choice.advance(PLAN, ranks(), True, now))
        failed = ranks((RdmaProof(number, "failed", "rdma_en2 is PORT_DOWN"), RdmaProof(number, "running")))
        choice.advance(PLAN, failed, True, now)
        assert f"the proof of RDMA failed: {A}: rdma_en2 is PORT_DOWN" in choice.text(PLAN, failed)
        due = choice.next_deadline()
        assert due is not None
        assert choice.advance(PLAN, ranks(), True, due - 0.001) == []
        pauses.append(due - now)
        now = due
    assert pauses[:3] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S]
    assert pauses[-1] == PAUSE_LIMIT_S
    assert [event.data["transport"] for event in choice.news()] == ["tcp"] * 9


def test_a_proof_that_nobody_ends_is_given_up() -> None:
    choice = a_choice()
    [number] = numbers(choice.advance(PLAN, ranks(), True, 0.0))
    half = ranks((RdmaProof(number, "ok"), RdmaProof()))
    choice.advance(PLAN, half, True, PROOF_DEADLINE_S - 0.001)
    choice.advance(PLAN, half, True, PROOF_DEADLINE_S)
    assert f"nothing came from {B}" in choice.text(PLAN, half)


def test_a_group_that_was_lost_is_followed_by_tcp_until_rdma_is_proven_again() -> None:
    choice = a_used_choice()
    assert choice.text(PLAN, ranks()) == ""
    choice.lost("the cable is dead", 50.0)
    assert choice.offer(PLAN) is None
    assert "the group over RDMA was lost: the cable is dead" in choice.text(PLAN, ranks())
    assert choice.advance(PLAN, ranks(), True, 50.0 + PAUSE_FIRST_S - 0.001) == []
    prove(choice, 50.0 + PAUSE_FIRST_S)
    choice.used(61.0)
    assert [event.data["transport"] for event in choice.news()] == ["rdma", "tcp", "rdma"]


def test_a_group_that_is_lost_soon_waits_longer_each_time_and_one_that_lived_does_not() -> None:
    choice, now = a_used_choice(), 0.0
    for pause_s in (PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S):
        choice.lost("a rank's process ended", now)
        assert choice.next_deadline() == now + pause_s
        now += pause_s
        prove(choice, now)
        choice.used(now)
    choice.lost("a rank's process ended", now + LIVED_S)
    assert choice.next_deadline() == now + LIVED_S + PAUSE_FIRST_S


def test_other_cables_are_proven_anew() -> None:
    choice = a_used_choice()
    choice.left()
    choice.wired(RdmaWired(PLAN.hash, None, "the plan's edge runs over en0"))
    choice.wired(WIRED)
    assert choice.offer(PLAN) is None
    assert choice.advance(PLAN, ranks(), True, 1.0)


def test_the_same_cables_under_the_next_plan_need_no_new_proof() -> None:
    choice = a_used_choice()
    after = a_plan(A, B, number=2)
    assert choice.offer(after) is None, "its cables are not known yet"
    choice.wired(RdmaWired(after.hash, SETUP, ""))
    assert choice.offer(after) == SETUP


def test_a_proof_of_an_earlier_plan_does_not_count() -> None:
    choice = a_choice()
    [number] = numbers(choice.advance(PLAN, ranks(), True, 0.0))
    after = a_plan(A, B, number=2)
    choice.wired(RdmaWired(after.hash, msgspec.structs.replace(SETUP, coordinator="10.0.0.2:1"), ""))
    found = ranks((RdmaProof(number, "ok"),) * 2)
    assert numbers(choice.advance(after, found, True, 1.0)) == {number + 1}
    assert choice.offer(after) is None


def test_a_plan_that_is_suspended_ends_a_proof() -> None:
    choice = a_choice()
    choice.advance(PLAN, ranks(), True, 0.0)
    assert choice.advance(None, [], False, 1.0) == []
    assert choice.next_deadline() is None
