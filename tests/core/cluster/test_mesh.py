"""The cluster's agreement, message by message: what is said yes to, what is refused, and what is repeated.

Whole clusters under loss, partition and crash are in tests/sim; here each rule has its own small test.
"""

from __future__ import annotations

import msgspec

from exod.core.base.config import CoreConfig
from exod.core.base.events import CommitPlan, PersistEpoch, SendMessage, SuspendPlan
from exod.core.base.journal import Journal
from exod.core.base.mesh_messages import (
    Ack,
    Commit,
    Committed,
    LinkReport,
    LinkSummary,
    MeshMessage,
    Nack,
    Propose,
    RenegotiateWish,
)
from exod.core.cluster.mesh import Mesh
from exod.core.cluster.pair_summary import PairSummary
from exod.core.cluster.ring_order import plan_hash
from exod.model import Epoch, Kind, MeshPlan, MeshState, NodeCard, NodeId, NodeState, PathId, Selection, path_id
from tests.core.pair.cards import card

LOW, HIGH = card(1, "bridge0=10.0.0.1/24"), card(2, "bridge0=10.0.0.2/24")
PATH = path_id("10.0.0.1", "10.0.0.2")
OTHER_PATH = path_id("10.9.0.1", "10.9.0.2")
SELECTION = Selection(LOW.incarnation, HIGH.incarnation, 1, PATH)


def summary_of(peer: NodeCard, **changes: object) -> PairSummary:
    """The pair as the other one sees it: agreed and well."""
    mine = "10.0.0.1" if peer.id == HIGH.id else "10.0.0.2"
    made = PairSummary(
        peer=peer.id,
        card=peer,
        incarnation=peer.incarnation,
        state=NodeState.UP,
        left=False,
        heard=True,
        agreed=True,
        summary=LinkSummary(
            peer.id, peer.incarnation, True, SELECTION, PATH, "bridge0", mine, Kind.THUNDERBOLT, True, 0.5
        ),
        usable=frozenset({PATH}),
        plan_prefix="",
        detect_ms=None,
        verdict_at=None,
    )
    return msgspec.structs.replace(made, **changes)


class Pair:
    """A coordinator and a member, with their messages in the test's hands."""

    def __init__(self) -> None:
        self.now = 10.0
        self.journals = {LOW.id: Journal(), HIGH.id: Journal()}
        self.nodes = {one.id: Mesh(one, CoreConfig(), self.journals[one.id], 0, self.now) for one in (LOW, HIGH)}
        self.update()

    @property
    def low(self) -> Mesh:
        return self.nodes[LOW.id]

    @property
    def high(self) -> Mesh:
        return self.nodes[HIGH.id]

    def update(self, **changes: object) -> None:
        self.low.update([summary_of(HIGH, **changes)], self.now)
        self.high.update([summary_of(LOW, **changes)], self.now)

    def sent(self, node: NodeCard) -> list[MeshMessage]:
        """What the node has said since it was last asked; other commands are kept."""
        commands = self.journals[node.id].drain()
        for command in commands:
            if not isinstance(command, SendMessage):
                self.journals[node.id].command(command)
        return [command.message for command in commands if isinstance(command, SendMessage)]

    def done(self, node: NodeCard, kind: type[CommitPlan] | type[SuspendPlan]) -> list[CommitPlan | SuspendPlan]:
        return [command for command in self.journals[node.id].drain() if isinstance(command, kind)]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for mesh in self.nodes.values():
            mesh.evaluate(self.now)

    def deliver(self, rounds: int = 6) -> None:
        """Carry all messages both ways until nothing more is said."""
        for _ in range(rounds):
            for source, target in ((LOW, HIGH), (HIGH, LOW)):
                for message in self.sent(source):
                    self.nodes[target.id].receive(source.id, message, self.now)

    def agree(self) -> MeshPlan:
        self.wait(1.5)
        self.deliver()
        assert self.low.committed is not None
        assert self.low.committed == self.high.committed
        return self.low.committed


def propose(plan: MeshPlan, **changes: object) -> Propose:
    plan = msgspec.structs.replace(
        plan, **{"epoch": Epoch(plan.epoch.number + 1, plan.epoch.coordinator_incarnation), **changes}
    )
    return Propose(msgspec.structs.replace(plan, hash=plan_hash(plan)), "test")


def test_two_nodes_agree_and_both_commit_the_same_plan() -> None:
    pair = Pair()
    plan = pair.agree()
    assert plan.coordinator == LOW.id
    assert plan.ring == (LOW.id, HIGH.id)
    assert pair.low.state is pair.high.state is MeshState.AGREED
    for node in (LOW, HIGH):
        (commit,) = pair.done(node, CommitPlan)
        assert isinstance(commit, CommitPlan)
        assert commit.plan == plan


def test_nothing_is_committed_before_the_ack() -> None:
    pair = Pair()
    pair.sent(LOW)
    reports = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(HIGH.id, reports[-1], pair.now)
    pair.wait(1.5)
    (proposal,) = [one for one in pair.sent(LOW) if isinstance(one, Propose)]
    assert pair.low.committed is None
    pair.wait(0.1)
    assert proposal in pair.sent(LOW), "a proposal that may be lost is repeated"
    pair.low.receive(HIGH.id, Ack(HIGH.id, 999, proposal.plan.epoch, proposal.plan.hash), pair.now)
    assert pair.low.committed is None, "an ack of another life is none"
    pair.low.receive(HIGH.id, Ack(HIGH.id, HIGH.incarnation, proposal.plan.epoch, "other"), pair.now)
    assert pair.low.committed is None, "an ack of another plan is none"
    pair.low.receive(HIGH.id, Ack(HIGH.id, HIGH.incarnation, proposal.plan.epoch, proposal.plan.hash), pair.now)
    assert pair.low.committed == proposal.plan


def test_an_ack_or_a_report_in_anothers_name_is_none() -> None:
    pair = Pair()
    pair.sent(LOW)
    (*_, report) = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(card(3, "bridge0=10.0.0.3/24").id, report, pair.now)
    pair.wait(1.5)
    assert not [one for one in pair.sent(LOW) if isinstance(one, Propose) and len(one.plan.members) > 1]
    pair.low.receive(HIGH.id, report, pair.now)
    pair.wait(1.5)
    proposal = [one for one in pair.sent(LOW) if isinstance(one, Propose)][-1]
    pair.low.receive(HIGH.id, Ack(LOW.id, HIGH.incarnation, proposal.plan.epoch, proposal.plan.hash), pair.now)
    assert pair.low.committed is None
    pair.low.receive(HIGH.id, Ack(HIGH.id, HIGH.incarnation, proposal.plan.epoch, proposal.plan.hash), pair.now)
    assert pair.low.committed == proposal.plan


def test_a_commit_is_repeated_until_it_is_receipted() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.low._delivery = None
    pair.low._commit(plan, "again", pair.now)
    for _ in range(3):
        pair.wait(0.1)
        assert any(isinstance(one, Commit) for one in pair.sent(LOW))
    pair.low.receive(HIGH.id, Committed(HIGH.id, HIGH.incarnation, plan.epoch, plan.hash), pair.now)
    pair.wait(0.2)
    assert not any(isinstance(one, Commit) for one in pair.sent(LOW))


def test_a_commit_that_comes_twice_is_receipted_twice_and_done_once() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.done(HIGH, CommitPlan)
    pair.high.receive(LOW.id, Commit(plan, "late"), pair.now)
    assert any(isinstance(one, Committed) for one in pair.sent(HIGH))
    assert not pair.done(HIGH, CommitPlan)


def refusal(pair: Pair, message: Propose, sender: NodeId = LOW.id) -> str:
    pair.sent(HIGH)
    pair.high.receive(sender, message, pair.now)
    answers = [one for one in pair.sent(HIGH) if isinstance(one, Ack | Nack)]
    assert len(answers) == 1
    return answers[0].text if isinstance(answers[0], Nack) else ""


def test_a_commit_of_anybody_but_the_plans_coordinator_is_refused() -> None:
    pair = Pair()
    plan = pair.agree()
    other = propose(plan).plan
    stranger = card(3, "bridge0=10.0.0.3/24").id
    pair.high.receive(stranger, Commit(other, "believe me"), pair.now)
    (answer,) = [one for one in pair.sent(HIGH) if isinstance(one, Nack)]
    assert "of its sender" in answer.text
    assert pair.high.committed == plan
    pair.high.receive(LOW.id, Commit(other, "as its coordinator says"), pair.now)
    assert pair.high.committed == other


def test_a_good_proposal_is_said_yes_to_twice() -> None:
    pair = Pair()
    message = propose(pair.agree())
    assert refusal(pair, message) == ""
    assert refusal(pair, message) == ""


def test_what_a_member_refuses() -> None:
    pair = Pair()
    plan = pair.agree()
    assert refusal(pair, propose(plan, epoch=Epoch(1, 1))) == "epoch 1 is taken"
    assert "not the plan of its sender" in refusal(pair, propose(plan, coordinator=HIGH.id))
    tampered = msgspec.structs.replace(propose(plan).plan, model="other")
    assert "not the plan of its sender" in refusal(pair, Propose(tampered, "test"))
    older = tuple(msgspec.structs.replace(one, incarnation=1) for one in plan.members)
    assert "incarnation" in refusal(pair, propose(plan, members=older))
    assert refusal(pair, propose(plan, members=plan.members[:1])) == "it does not name me"
    moved = tuple(msgspec.structs.replace(one, path=OTHER_PATH) for one in plan.edges)
    assert "is bridge0 (10.0.0.2) at studio2" in refusal(pair, propose(plan, edges=moved))
    pair.high.update([summary_of(LOW, agreed=False)], pair.now)
    assert "is agreed at studio2" in refusal(pair, propose(plan))


def test_two_plans_of_one_epoch_are_never_both_promised() -> None:
    pair = Pair()
    plan = pair.agree()
    one = propose(plan)
    other = propose(plan, model="other")
    assert one.plan.epoch == other.plan.epoch
    assert refusal(pair, one) == ""
    assert "is taken" in refusal(pair, other)


def test_a_nack_with_a_higher_epoch_renumbers_the_proposal() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.low.renegotiate("test", pair.now)
    (first,) = [one for one in pair.sent(LOW) if isinstance(one, Propose)]
    pair.low.receive(
        HIGH.id, Nack(HIGH.id, HIGH.incarnation, first.plan.epoch, first.plan.hash, 90, "too low"), pair.now
    )
    (second,) = [one for one in pair.sent(LOW) if isinstance(one, Propose)]
    assert second.plan.epoch.number == 91
    assert second.plan.epoch > first.plan.epoch > plan.epoch


def test_a_dead_edge_suspends_the_plan_at_once_on_both_ends() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.update(usable=frozenset[PathId](), agreed=False)
    for node, mesh in ((LOW, pair.low), (HIGH, pair.high)):
        (suspend,) = pair.done(node, SuspendPlan)
        assert isinstance(suspend, SuspendPlan)
        assert suspend.plan_hash == plan.hash
        assert mesh.state is MeshState.RENEGOTIATING
    pair.update()
    pair.wait(0.3)
    pair.deliver()
    assert pair.low.committed == pair.high.committed
    assert pair.low.committed is not None
    assert pair.low.committed.epoch > plan.epoch, "the same edge again is a new plan: collectives were aborted"


def test_a_slow_edge_runs_on_until_the_next_plan() -> None:
    pair = Pair()
    pair.agree()
    slow = msgspec.structs.replace(summary_of(HIGH).summary, in_band=False, cost_ms=40.0)
    pair.low.update([summary_of(HIGH, summary=slow)], pair.now)
    assert not pair.done(LOW, SuspendPlan)
    assert pair.low.state is MeshState.AGREED


def test_a_member_that_goes_down_is_planned_without() -> None:
    pair = Pair()
    pair.agree()
    pair.done(LOW, CommitPlan)
    pair.low.update([summary_of(HIGH, state=NodeState.DOWN, agreed=False)], pair.now)
    (commit,) = pair.done(LOW, CommitPlan)
    assert isinstance(commit, CommitPlan)
    assert commit.plan.ring == (LOW.id,)
    assert pair.low.state is MeshState.ALONE


def test_a_suspended_member_whose_coordinator_knows_nothing_asks() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.high.update([summary_of(LOW, usable=frozenset[PathId](), agreed=False)], pair.now)
    pair.high.update([summary_of(LOW)], pair.now)
    pair.sent(HIGH)
    pair.wait(0.3)
    (wish,) = [one for one in pair.sent(HIGH) if isinstance(one, RenegotiateWish)]
    assert wish.plan_hash == plan.hash
    pair.low.receive(HIGH.id, wish, pair.now)
    pair.deliver()
    assert pair.high.suspended is None
    assert pair.high.committed is not None
    assert pair.high.committed.epoch > plan.epoch
    pair.low.receive(HIGH.id, wish, pair.now)
    assert not any(isinstance(one, Propose) for one in pair.sent(LOW)), "a wish that was fulfilled is void"


def test_a_member_that_never_answers_is_left_out() -> None:
    pair = Pair()
    pair.sent(LOW)
    reports = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(HIGH.id, reports[-1], pair.now)
    for _ in range(60):
        pair.wait(0.1)
    assert pair.low.committed is not None
    assert pair.low.committed.ring == (LOW.id,)


def test_epoch_numbers_are_persisted_before_they_are_used() -> None:
    pair = Pair()
    pair.wait(1.5)
    for source, target in ((HIGH, LOW), (LOW, HIGH)):
        for message in pair.sent(source):
            pair.nodes[target.id].receive(source.id, message, pair.now)
    for node in (LOW, HIGH):
        numbers = [one.number for one in pair.journals[node.id].drain() if isinstance(one, PersistEpoch)]
        assert numbers
        assert max(numbers) >= 1


def test_a_node_that_lives_again_does_not_keep_the_plan_of_its_old_life() -> None:
    pair = Pair()
    pair.agree()
    pair.low.adopt_card(msgspec.structs.replace(LOW, incarnation=9_999), pair.now)
    assert pair.low.committed is None
    (suspend,) = pair.done(LOW, SuspendPlan)
    assert isinstance(suspend, SuspendPlan)


def test_a_member_that_shows_another_plan_for_long_gets_the_commit_again() -> None:
    pair = Pair()
    pair.agree()
    pair.wait(0.5)
    pair.low.update([summary_of(HIGH, plan_prefix="00" * 8)], pair.now)
    pair.wait(0.2)
    assert not any(isinstance(one, Commit) for one in pair.sent(LOW))
    pair.wait(2.0)
    assert any(isinstance(one, Commit) for one in pair.sent(LOW))


def test_a_join_is_not_given_the_figure_of_the_verdict_that_parted_them() -> None:
    pair = Pair()
    pair.agree()
    pair.now += 3.0
    lost = {"state": NodeState.DOWN, "agreed": False, "detect_ms": 3001.0, "verdict_at": pair.now}
    pair.low.update([summary_of(HIGH, **lost)], pair.now)
    pair.wait(0.1)
    (alone,) = [one for one in pair.done(LOW, CommitPlan) if isinstance(one, CommitPlan)][-1:]
    assert (alone.reason, alone.detect_ms) == ("studio2 is down", 3001.0)
    verdict = {key: lost[key] for key in ("detect_ms", "verdict_at")}
    pair.now += 0.2
    pair.update(**verdict)
    pair.wait(0.6)
    pair.deliver()
    (joined,) = [one for one in pair.done(LOW, CommitPlan) if isinstance(one, CommitPlan)]
    assert (joined.reason, joined.detect_ms) == ("studio2 joined", None)


def test_a_coordinator_that_started_again_has_its_first_plan_and_the_member_a_change() -> None:
    pair = Pair()
    pair.agree()
    pair.now += 3.0
    again = msgspec.structs.replace(LOW, incarnation=LOW.incarnation + 1)
    pair.nodes[LOW.id] = Mesh(again, CoreConfig(), pair.journals[LOW.id], 0, pair.now)
    selection = Selection(again.incarnation, HIGH.incarnation, 1, PATH)
    for mesh, peer in ((pair.low, HIGH), (pair.high, again)):
        summary = msgspec.structs.replace(
            summary_of(peer).summary, peer_incarnation=peer.incarnation, selection=selection
        )
        mesh.update([summary_of(peer, summary=summary)], pair.now)
    pair.wait(1.5)
    pair.deliver()
    reasons = [
        [one.reason for one in pair.done(node, CommitPlan) if isinstance(one, CommitPlan)][-1]
        for node in (LOW, HIGH)
    ]
    assert reasons == ["first plan", "studio1 started again"]


def test_a_member_whose_daemon_started_again_suspends_nothing_because_its_rank_may_live() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.done(LOW, CommitPlan)
    pair.now += 3.0
    again = msgspec.structs.replace(HIGH, incarnation=HIGH.incarnation + 1)
    measuring = summary_of(again, heard=False, agreed=False, usable=frozenset())
    pair.low.update([measuring], pair.now)
    assert pair.low.committed == plan
    assert pair.low.suspended is None
    pair.nodes[HIGH.id] = Mesh(again, CoreConfig(), pair.journals[HIGH.id], 0, pair.now)
    selection = Selection(LOW.incarnation, again.incarnation, 1, PATH)
    for mesh, peer in ((pair.low, again), (pair.high, LOW)):
        summary = msgspec.structs.replace(
            summary_of(peer).summary, peer_incarnation=peer.incarnation, selection=selection
        )
        mesh.update([summary_of(peer, summary=summary)], pair.now)
    pair.wait(1.5)
    pair.deliver()
    commands = pair.journals[LOW.id].drain()
    assert [one.reason for one in commands if isinstance(one, CommitPlan)] == ["studio2 started again"]
    assert not [one for one in commands if isinstance(one, SuspendPlan)]
    assert pair.low.committed == pair.high.committed != plan


def test_a_member_whose_daemon_started_again_and_falls_silent_is_a_fault() -> None:
    pair = Pair()
    pair.agree()
    again = msgspec.structs.replace(HIGH, incarnation=HIGH.incarnation + 1)
    pair.low.update([summary_of(again, heard=False, agreed=False, state=NodeState.DOWN)], pair.now)
    suspended = [one.reason for one in pair.done(LOW, SuspendPlan) if isinstance(one, SuspendPlan)]
    assert suspended == ["studio2 is down"]


def test_a_member_that_never_says_yes_is_waited_for_by_name() -> None:
    pair = Pair()
    pair.sent(LOW)
    reports = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(HIGH.id, reports[-1], pair.now)
    pair.wait(1.5)
    assert pair.low.state is MeshState.FORMING
    assert pair.low.waiting_for == (HIGH.id,), "asked"
    pair.wait(3.1)
    pair.wait(0.1)
    assert pair.low.committed is not None
    assert len(pair.low.committed.members) == 1
    assert pair.low.state is MeshState.FORMING
    assert pair.low.waiting_for == (HIGH.id,), "left out, and asked again later"


def test_a_refusal_is_told_by_name() -> None:
    pair = Pair()
    plan = pair.agree()
    pair.low._commit(plan, "again", pair.now)
    nack = Nack(HIGH.id, HIGH.incarnation, plan.epoch, plan.hash, plan.epoch.number, "no")
    pair.low.receive(HIGH.id, nack, pair.now)
    assert pair.low._wishes.reason == "studio2 refused the commit: no"


def test_a_refusal_that_stays_is_asked_for_once_and_not_for_ever() -> None:
    """Another coordinator is first in the member's eyes, and nothing about that changes for ten minutes."""
    pair = Pair()
    pair.sent(LOW)
    reports = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(HIGH.id, reports[-1], pair.now)
    for _ in range(500):
        pair.wait(1.0)
        for said in pair.sent(LOW):
            if isinstance(said, Propose):
                plan = said.plan
                nack = Nack(HIGH.id, HIGH.incarnation, plan.epoch, plan.hash, plan.epoch.number, "not you")
                pair.low.receive(HIGH.id, nack, pair.now)
    assert pair.low.epoch_seen <= 2
    assert pair.low.waiting_for == (HIGH.id,)


def test_news_of_a_member_is_a_reason_to_ask_it_again() -> None:
    pair = Pair()
    pair.sent(LOW)
    reports = [one for one in pair.sent(HIGH) if isinstance(one, LinkReport)]
    pair.low.receive(HIGH.id, reports[-1], pair.now)
    for _ in range(60):
        pair.wait(0.1)
    pair.sent(LOW)
    pair.low.update([summary_of(HIGH, plan_prefix="00" * 8)], pair.now)
    pair.wait(0.6)
    assert any(isinstance(one, Propose) for one in pair.sent(LOW))


def test_a_member_that_suspends_every_plan_costs_a_bounded_number_of_epochs() -> None:
    pair = Pair()
    plan = pair.agree()
    for _ in range(600):
        wish = RenegotiateWish(HIGH.id, "bridge0 to studio1 is dead", pair.low.plan_hash)
        pair.low.receive(HIGH.id, wish, pair.now)
        pair.deliver(2)
        pair.wait(0.5)
    assert pair.low.epoch_seen - plan.epoch.number <= 12
    pair.low.renegotiate("asked for by hand", pair.now)
    pair.deliver(2)
    assert pair.low.last_change is not None
    assert pair.low.last_change.reason == "asked for by hand", "a person is not held up"
