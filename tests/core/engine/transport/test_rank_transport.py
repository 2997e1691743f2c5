"""A rank in a group over RDMA: where others are told to abort, its process is killed, and nobody is blamed."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.engine_events import KillWorker, ProveTransport, StartWorker
from exod.core.engine.engine_messages import FormOrder, ProveRdma, RankPhase, RdmaProof
from exod.core.engine.rank.held_requests import RequestGivenUp
from exod.core.engine.rank.rank import Rank
from exod.core.engine.rank.rank_status import ReportStatus
from exod.core.engine.transport.rank_transport import MAX_TEXT, RankTransport
from exoengine.protocol import Abort, Aborted, Formed, Load, Prepare, Prepared, RdmaSetup
from tests.core.engine.engine_samples import A, B, C, a_plan, begin, hello, loaded, only, status, told
from tests.core.engine.rank.rank_samples import PLAN, a_loaded_rank, order, prepare

SETUP = RdmaSetup((((), ("rdma_en2",)), (("rdma_en2",), ())), "10.0.0.1:52421")


def over_rdma(step: str, attempt: int = 1) -> FormOrder:
    return msgspec.structs.replace(order(PLAN, attempt, step), rdma=SETUP)


def a_rank_over_rdma() -> Rank:
    rank = a_loaded_rank()
    [prepared] = told(rank.order(over_rdma("prepare"), 3.0))
    assert isinstance(prepared, Prepare)
    assert prepared.rdma == SETUP
    rank.worker_said(Prepared(PLAN.hash, 1), 3.0)
    rank.order(over_rdma("form"), 3.0)
    rank.worker_said(Formed(PLAN.hash, 1, -1), 3.0)
    assert rank.phase is RankPhase.FORMED
    assert rank.transport.is_entangled
    return rank


def test_dead_links_kill_it_at_once() -> None:
    rank = a_rank_over_rdma()
    commands = rank.suspend(PLAN.hash, "the cable is dead", 4.0)
    [kill] = only(commands, KillWorker)
    assert kill.at_once
    assert "cannot be aborted (the cable is dead)" in kill.text
    assert told(commands) == []


def test_one_that_forms_over_rdma_is_killed_as_well() -> None:
    rank = a_loaded_rank()
    rank.order(over_rdma("prepare"), 3.0)
    rank.worker_said(Prepared(PLAN.hash, 1), 3.0)
    assert told(rank.suspend(PLAN.hash, "dead", 3.1)) == [Abort("dead")], "it is in no group yet"
    rank = a_loaded_rank()
    rank.order(over_rdma("prepare"), 3.0)
    rank.worker_said(Prepared(PLAN.hash, 1), 3.0)
    rank.order(over_rdma("form"), 3.0)
    assert only(rank.suspend(PLAN.hash, "dead", 3.1), KillWorker)


@pytest.mark.parametrize("phase", [RankPhase.ABORTED, RankPhase.LOADING, RankPhase.LOADED, RankPhase.OFF])
def test_a_rank_that_left_the_group_elsewhere_kills_it(phase: RankPhase) -> None:
    """A process that died elsewhere is seen by its own daemon alone: this one would wait for it for ever."""
    assert only(a_rank_over_rdma().heard_of(status(A, phase), 4.0), KillWorker)


def test_what_says_nothing_of_its_group_does_not_kill_it() -> None:
    rank = a_rank_over_rdma()
    for other in (
        status(A, RankPhase.FORMED),
        status(A, RankPhase.PREPARING, attempt=2),
        status(A, RankPhase.LOADED, plan="plan2"),
        status(C, RankPhase.OFF),
    ):
        assert rank.heard_of(other, 4.0) == []


@pytest.mark.parametrize(("spent", "killed"), [(True, True), (False, False)])
def test_one_that_says_that_it_must_be_replaced_is(spent: bool, killed: bool) -> None:
    rank = a_rank_over_rdma()
    aborted = Aborted(PLAN.hash, 1, "peer_lost", "the next rank is gone", 5, is_spent=spent)
    assert bool(only(rank.worker_said(aborted, 4.0), KillWorker)) is killed


def test_a_group_that_was_left_at_a_steps_end_may_be_aborted_again() -> None:
    rank = a_rank_over_rdma()
    rank.order(order(PLAN, 2, "prepare"), 5.0)
    assert rank.transport.is_entangled, "it still stands in the old group"
    rank.worker_said(Prepared(PLAN.hash, 2), 5.0)
    assert not rank.transport.is_entangled
    assert told(rank.suspend(PLAN.hash, "dead", 6.0)) == [Abort("dead")]


def test_its_end_is_no_requests_fault() -> None:
    rank = a_rank_over_rdma()
    rank.begin(begin(10), 4.0)
    for _ in range(9):
        aborted = Aborted(PLAN.hash, 1, "peer_lost", "the next rank is gone", 5, is_spent=True)
        assert only(rank.worker_said(aborted, 4.0), KillWorker)
        gone = rank.worker_gone("it was killed by SIGKILL", 4.0)
        assert only(gone, RequestGivenUp) == []
        while not only(rank.handle_timer(rank.next_deadline()), StartWorker):
            pass
        rank.worker_said(hello(), 5.0)
        rank.worker_said(loaded(6, 12), 5.0)
        prepare(rank, 2, 5.0)


def test_another_span_is_loaded_by_a_new_process() -> None:
    rank = a_rank_over_rdma()
    commands = rank.commit(a_plan(A, B, number=2, split=(3, 9)), "why", 20.0)
    assert only(commands, KillWorker)
    assert not [message for message in told(commands) if isinstance(message, Load)]


def test_one_that_an_earlier_daemon_left_in_such_a_group_is_known() -> None:
    rank = a_loaded_rank()
    rank.worker_gone("its connection was lost", 3.0)
    rank.handle_timer(rank.next_deadline())
    rank.worker_said(hello(layers=(6, 12), plan_hash=PLAN.hash, attempt=1, formed=True, over_rdma=True), 9.0)
    assert rank.transport.is_entangled
    assert only(rank.heard_of(status(A, RankPhase.LOADED), 9.0), KillWorker)


# --- proofs -------------------------------------------------------------------------------------------------


def an_order(number: int, plan: str = PLAN.hash) -> ProveRdma:
    return ProveRdma(A, plan, number, SETUP)


def test_an_order_is_followed_once() -> None:
    part = RankTransport()
    assert part.prove(an_order(1), PLAN, B) == [ProveTransport(1, 1, SETUP)]
    assert part.prove(an_order(1), PLAN, B) == []
    assert part.prove(an_order(2, "another plan"), PLAN, B) == []
    assert part.prove(an_order(2), PLAN, C) == [], "it hosts no rank"
    assert part.proof == RdmaProof(1, "running")


def test_what_the_process_found_goes_round() -> None:
    part = RankTransport()
    part.prove(an_order(3), PLAN, B)
    assert not part.proved(2, ""), "of an earlier order"
    assert part.proved(3, "")
    assert part.proof == RdmaProof(3, "ok")
    part.prove(an_order(4), PLAN, B)
    assert part.proved(4, "x" * 1000)
    assert part.proof == RdmaProof(4, "failed", "x" * MAX_TEXT)
    assert not part.proved(4, ""), "said already"


def test_a_ranks_report_says_what_it_runs_over() -> None:
    rank = a_rank_over_rdma()
    [report] = only(rank.order(over_rdma("prepare"), 9.0), ReportStatus)
    assert report.status.over_rdma
