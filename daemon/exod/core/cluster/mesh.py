"""The cluster's agreement on one plan: coordinator, proposal, unanimous ack, commit.

The theory. The lowest live node that misses nobody coordinates. It gathers what every member reports about its
pairs, works out the plan that should be, and where that differs from the plan that is (or the plan that is has
broken) it numbers a proposal above every epoch it has seen and asks all members. A member says yes only to its own
coordinator, only to edges that its own links agree on, and never to an epoch below one it said yes to. When all
have said yes the plan is committed and every member told, with receipts. Whatever is lost is repeated; whatever is
late is refused by its epoch. A member that loses the coordinator takes the next lowest, whose numbers are higher
again; so a superseded plan never comes back, and two halves of a partition number apart and are renumbered when
they meet.

A broken edge or a vanished rank suspends the plan at once on the nodes that see it; only a commit ends that.

Decides which plan is in force. Leaves to others: who coordinates (coordinator_choice.py), who has joined
(joined_members.py), the order (ring_order.py), what is still unanswered (unanimous_ack.py), links (link.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from exod.core.base.config import CoreConfig
from exod.core.base.events import CommitPlan, PersistEpoch, SendMessage, SuspendPlan
from exod.core.base.journal import Journal
from exod.core.base.mesh_messages import (
    Ack,
    Commit,
    Committed,
    LinkReport,
    MeshMessage,
    Nack,
    Propose,
    RenegotiateWish,
)
from exod.core.cluster.agreement_timing import LastChange, agreement_ms
from exod.core.cluster.coordinator_choice import MeshPairs
from exod.core.cluster.epochs import Epochs
from exod.core.cluster.joined_members import PATIENCE_S, JoinedMembers
from exod.core.cluster.link_reports import REPORT_EVERY_S, LinkReporter
from exod.core.cluster.pair_summary import PairSummary
from exod.core.cluster.plan_acceptance import find_fault, objection
from exod.core.cluster.plan_diff import Absences, as_seen_here, describe_change
from exod.core.cluster.plan_repeats import PlanRepeats
from exod.core.cluster.renegotiation import FIRST_WAIT_S, Wishes
from exod.core.cluster.ring_order import content, hash_prefix, is_sound, plan_hash
from exod.core.cluster.unanimous_ack import RETRY_S, Ballot, Delivery, is_answer
from exod.core.pair import change_events
from exod.model import Epoch, MeshPlan, MeshState, NodeCard, NodeId

JOIN_SETTLE_S = 0.5
"""Nodes that join together get one plan: wait this long after the last one joined, unless a plan is broken."""


class Mesh:
    def __init__(self, card: NodeCard, config: CoreConfig, journal: Journal, epoch_number: int, now: float) -> None:
        self.card = card
        self._config = config
        self._journal = journal
        self.committed: MeshPlan | None = None
        self.suspended: str | None = None
        self.last_change: LastChange | None = None
        self._peers = MeshPairs(card)
        self._members = JoinedMembers(now)
        self._epochs = Epochs(epoch_number)
        self._ballot: Ballot | None = None
        self._delivery: Delivery | None = None
        self._wishes = Wishes()
        self._trigger_at: float | None = None
        self._started_at = now
        self._reporter = LinkReporter()
        self._repeats = PlanRepeats()
        self.absences = Absences()
        self.deadline = now

    # --- what others ask ----------------------------------------------------------------------------------------

    @property
    def epoch_seen(self) -> int:
        return self._epochs.seen

    @property
    def coordinator(self) -> NodeId:
        return self._peers.coordinator

    @property
    def misses(self) -> bool:
        """Do others hear a node that this one does not hear? Then another should coordinate."""
        return self._peers.unheard.misses

    @property
    def coordinates(self) -> bool:
        return self.coordinator == self.card.id

    @property
    def waiting_for(self) -> tuple[NodeId, ...]:
        """Live nodes that have not joined or not said yes, as the coordinator sees it."""
        if not self.coordinates:
            return ()
        asked = set() if self._ballot is None else self._ballot.missing
        return tuple(sorted(asked | self._members.waiting | self._members.left_out))

    @property
    def excluded_by(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._peers.divergence.excluded_by))

    @property
    def state(self) -> MeshState:
        plan = self.committed
        if plan is None:
            return MeshState.FORMING
        if self.suspended is not None or self._ballot is not None:
            return MeshState.RENEGOTIATING
        if len(plan.members) == 1:
            return MeshState.FORMING if self._peers.living else MeshState.ALONE
        return MeshState.AGREED

    @property
    def plan_hash(self) -> str:
        """Of the plan in force; empty for none."""
        return "" if self.committed is None else self.committed.hash

    @property
    def _news(self) -> tuple[int, int]:
        return (self._peers.news, self._members.news)

    @property
    def plan_prefix(self) -> str:
        return "" if self.committed is None else hash_prefix(self.committed)

    # --- inputs -------------------------------------------------------------------------------------------------

    def adopt_card(self, card: NodeCard, now: float) -> None:
        reborn = card.incarnation != self.card.incarnation
        self.card = self._peers.card = card
        if reborn:
            if self.committed is not None:
                self._suspend("this node started a new incarnation", now)
            self.committed, self.suspended = None, None
            self._ballot = self._delivery = None
            self._reporter = LinkReporter()
        self.evaluate(now)

    def update(self, pairs: Iterable[PairSummary], now: float) -> None:
        """Links changed: all of them are taken before anything is concluded."""
        self._members.welcome(*self._peers.update(pairs))
        self.evaluate(now)

    def forget(self, peer: NodeId) -> None:
        self._peers.forget(peer)
        self._members.forget(peer)
        self.absences.forget(peer)

    def connected(self, peer: NodeId, now: float) -> None:
        """A control connection exists again: repeat what may have been lost."""
        self._members.welcome(peer)
        self._reporter.report_again()
        if self._ballot is not None:
            self._ballot.retry_at = now
        if self._delivery is not None:
            self._delivery.retry_at = now
        self.evaluate(now)

    def saw_epoch(self, number: int) -> None:
        self._epochs.saw(number)

    def renegotiate(self, reason: str, now: float) -> None:
        """A person asks for a new plan: the running order need not be kept."""
        self._want(reason, by_hand=True, now=now)
        self.evaluate(now)

    def lagged(self, lag_s: float) -> None:
        self._members.shift(lag_s)
        self._peers.shift(lag_s)
        if self._ballot is not None:
            self._ballot.started_at += lag_s

    def receive(self, peer: NodeId, message: MeshMessage, now: float) -> None:
        """A message of an authenticated peer. One of another life than the known one changes nothing."""
        match message:
            case LinkReport():
                if not self._take_report(peer, message):
                    return  # repeated in case it was lost: nothing to work out
            case Propose():
                self._consider(peer, message, now)
            case Ack():
                self._take_ack(peer, message, now)
            case Nack():
                self._take_nack(peer, message, now)
            case Commit():
                self._follow(peer, message, now)
            case Committed():
                self._take_receipt(peer, message)
            case RenegotiateWish():
                if self.coordinates and message.plan_hash == self.plan_hash:
                    self._want(message.reason, by_hand=message.by_hand, now=now)
        self.evaluate(now)

    # --- the member's side --------------------------------------------------------------------------------------

    def _consider(self, peer: NodeId, message: Propose, now: float) -> None:
        plan = message.plan
        self.saw_epoch(plan.epoch.number)
        refusal = self._refusal(peer, plan)
        me = self.card
        if refusal is not None:
            self._journal.decide(now, plan.hash, "refused a proposal", epoch=plan.epoch.number, reason=refusal)
            self._send(peer, Nack(me.id, me.incarnation, plan.epoch, plan.hash, self.epoch_seen, refusal))
            return
        if plan.epoch != self._epochs.promised:
            self._journal.decide(
                now, plan.hash, "said yes to a proposal", epoch=plan.epoch.number, coordinator=peer
            )
        self._peers.divergence.forget(peer)
        self._promise(plan)
        if self._trigger_at is None:
            self._trigger_at = now
        self._send(peer, Ack(me.id, me.incarnation, plan.epoch, plan.hash))

    def _refusal(self, peer: NodeId, plan: MeshPlan) -> str | None:
        if plan.coordinator != peer or not is_sound(plan):
            return "not the plan of its sender"
        if self._peers.first(but=self._peers.divergence.excluded_by - {peer}) != peer:
            return f"{self._name(self.coordinator)} coordinates at {self.card.name}"
        if self._epochs.taken(plan):
            self.saw_epoch(plan.epoch.number + 1)
            return f"epoch {plan.epoch.number} is taken"
        return objection(plan, self.card, self._peers.pairs)

    def _follow(self, peer: NodeId, message: Commit, now: float) -> None:
        plan, me = message.plan, self.card
        self.saw_epoch(plan.epoch.number)
        receipt = Committed(me.id, me.incarnation, plan.epoch, plan.hash)
        if self.committed is not None and plan.hash == self.committed.hash:
            self._send(peer, receipt)
            return
        mine = any(member.id == me.id and member.incarnation == me.incarnation for member in plan.members)
        mine &= plan.coordinator == peer
        if self._epochs.superseded(plan) or not mine or not is_sound(plan):
            text = "a newer plan is under way" if mine else "not a plan of this incarnation, or of its sender"
            self._send(peer, Nack(me.id, me.incarnation, plan.epoch, plan.hash, self.epoch_seen, text))
            return
        seen = as_seen_here(message.reason, self.committed, plan, self._peers.names)
        self._commit(plan, self.absences.own(me.name, now) or seen, now)
        self._send(peer, receipt)

    def _promise(self, plan: MeshPlan) -> None:
        """Accept no lower epoch from now on."""
        self._epochs.promise(plan)
        self._journal.command(PersistEpoch(self.epoch_seen))

    def _report(self, now: float) -> None:
        targets = self._peers.reported_to
        if not targets:
            return
        links = [one.summary for _, one in sorted(self._peers.living.items())]
        calm = self.state is MeshState.AGREED or bool(self.excluded_by)
        for to in sorted(targets):
            report = self._reporter.due(self.card, to, links, epoch_seen=self.epoch_seen, calm=calm, now=now)
            if report is not None:
                self._send(to, report)

    # --- the coordinator's side ---------------------------------------------------------------------------------

    def _take_report(self, peer: NodeId, report: LinkReport) -> bool:
        if report.sender != peer:
            return False
        self.saw_epoch(report.epoch_seen)
        return self._members.take(report)

    def _take_ack(self, peer: NodeId, message: Ack, now: float) -> None:
        ballot = self._ballot
        if ballot is None or not is_answer(peer, message, ballot.plan):
            return
        ballot.ack(peer)
        if ballot.unanimous:
            self._commit(ballot.plan, ballot.reason, now)

    def _take_nack(self, peer: NodeId, message: Nack, now: float) -> None:
        self.saw_epoch(message.epoch_seen)
        ballot, plan = self._ballot, self.committed
        if ballot is not None and is_answer(peer, message, ballot.plan):
            ballot.refusals[peer] = message.text
            self._journal.decide(now, message.plan_hash, "a member refused", member=peer, text=message.text)
            if message.epoch_seen > ballot.plan.epoch.number:
                self._ballot = None  # numbered too low: propose again above it
        elif plan is not None and self._delivery is not None and is_answer(peer, message, plan):
            self._delivery.missing.discard(peer)
            self._want(f"{self._name(peer)} refused the commit: {message.text}", by_hand=False, now=now)

    def _take_receipt(self, peer: NodeId, message: Committed) -> None:
        if self._delivery is not None and is_answer(peer, message, self._delivery.plan):
            self._delivery.missing.discard(peer)

    def _coordinate(self, now: float) -> None:
        waiting = self._members.assess(self._peers.pairs, now)
        self._send_again_to_strays(now)
        desired = self._desired(waiting, now)
        if desired is None:
            self._ballot = None
            return
        current = self.committed
        fits = current is not None and content(desired) == content(current)
        if fits and self.suspended is None and self._wishes.reason is None:
            self._ballot = None
            self._trigger_at = None
            return
        if self._trigger_at is None:
            self._trigger_at = now
        wait = (
            0.0 if not fits or self._wishes.by_hand else self._repeats.may_repeat_at(content(desired), self._news)
        )
        if self._ballot is not None and (now < wait or content(self._ballot.plan) != content(desired)):
            self._ballot = None
        if self._ballot is not None:
            self._pursue(self._ballot, now)
        elif now >= wait and self._settled(current, desired, now):
            self._propose(desired, now)

    def _desired(self, waiting: dict[NodeId, float], now: float) -> MeshPlan | None:
        """The plan that should be; None while it cannot be told yet."""
        current = self.committed
        bound = set() if current is None else {member.id for member in current.members}
        for peer, until in waiting.items():
            # A newcomer that is slow to join must not hold up the repair of a plan that runs.
            if now < until and (current is None or peer in bound):
                return None
        if self._peers.unheard.pending(bound if current is not None else None, now):
            return None
        running = () if current is None or self._wishes.by_hand else current.ring
        unheard = self._peers.unheard.named()
        return self._members.plan(self.card, self._peers.pairs, self._members.joined, running, unheard, now)

    def _settled(self, current: MeshPlan | None, desired: MeshPlan, now: float) -> bool:
        """Give nodes that come together the time to meet; a repair waits for nobody."""
        if current is None:
            return now >= self._started_at + self._config.solo_settle_s
        members = {member.id for member in current.members}
        newcomers = any(member.id not in members for member in desired.members)
        return self.suspended is not None or not newcomers or now >= self._members.grew_at + JOIN_SETTLE_S

    def _propose(self, desired: MeshPlan, now: float) -> None:
        epoch = Epoch(self.epoch_seen + 1, self.card.incarnation)
        plan = msgspec.structs.replace(desired, epoch=epoch, hash="")
        plan = msgspec.structs.replace(plan, hash=plan_hash(plan))
        change = describe_change(self.committed, plan, self._peers.names, self.absences.back(plan, now))
        reason = self._wishes.reason or self.suspended or change
        self._promise(plan)
        asked = frozenset(member.id for member in plan.members if member.id != self.card.id)
        self._ballot = Ballot(plan, reason, asked, now)
        self._journal.decide(
            now,
            plan.hash,
            "proposed a plan",
            epoch=epoch.number,
            ring=plan.ring,
            reason=reason,
            asked=sorted(asked),
        )
        self._pursue(self._ballot, now)

    def _pursue(self, ballot: Ballot, now: float) -> None:
        if ballot.unanimous:
            self._commit(ballot.plan, ballot.reason, now)
            return
        if now - ballot.started_at >= PATIENCE_S:
            for peer in sorted(ballot.missing):
                self._members.exclude(peer, peer in ballot.refusals, now)
                self._journal.decide(
                    now,
                    ballot.plan.hash,
                    "leaves out a member",
                    member=peer,
                    text=ballot.refusals.get(peer, "no answer"),
                )
            self._ballot = None
            return
        for peer in ballot.due(now):
            self._send(peer, Propose(ballot.plan, ballot.reason))

    def _deliver(self, now: float) -> None:
        delivery = self._delivery
        if delivery is None:
            return
        delivery.forget_absent({peer: pair.incarnation for peer, pair in self._peers.living.items()})
        for peer in delivery.due(now):
            self._send(peer, Commit(delivery.plan, delivery.reason))
        if not delivery.missing:
            self._delivery = None

    def _send_again_to_strays(self, now: float) -> None:
        """A member whose datagrams show another plan missed the commit."""
        plan = self.committed
        if plan is None or self.suspended is not None or plan.coordinator != self.card.id:
            return
        strays = {member.id for member in plan.members if self._peers.apart(member.id, self.plan_prefix, now)}
        if strays and self._delivery is None:
            self._delivery = Delivery(plan, "sent again", strays, now)

    # --- both ---------------------------------------------------------------------------------------------------

    def evaluate(self, now: float) -> None:
        """Work out what follows from what is known. Safe to call at any time, any number of times."""
        self._watch_plan(now)
        self._look_around(now)
        if self.coordinates:
            self._wishes.stop_asking()
            self._coordinate(now)
        else:
            self._ballot = None
            if self.suspended is None and self._trigger_at is not None and now - self._trigger_at > PATIENCE_S:
                self._trigger_at = None  # that proposal came to nothing
            self._ask(now)
        self._report(now)
        self._deliver(now)
        settled = self.state in (MeshState.AGREED, MeshState.ALONE) and self._trigger_at is None
        calm = settled and self._delivery is None and not self._wishes.asking
        repeats = [todo.retry_at for todo in (self._ballot, self._delivery) if todo is not None]
        self.deadline = min([now + (REPORT_EVERY_S / 2 if calm else RETRY_S), *repeats])

    def _look_around(self, now: float) -> None:
        misses, unheard = self.misses, self._peers.unheard
        self._peers.look(self._members.reports, self.committed, self.suspended, now)
        if self.misses is not misses:
            who = sorted(one.name for one in unheard.nodes.values())
            self._journal.decide(now, self.card.id, "misses nodes" if self.misses else "misses nobody", nodes=who)

    def _watch_plan(self, now: float) -> None:
        plan = self.committed
        if plan is None or self.suspended is not None:
            return
        fault = find_fault(plan, self.card, self._peers.pairs)
        coordinator = self.coordinator
        if fault is None and coordinator != self.card.id and self._peers.apart(coordinator, self.plan_prefix, now):
            fault = "the coordinator runs another plan"
        if fault is not None:
            self._suspend(fault, now)

    def _suspend(self, fault: str, now: float) -> None:
        assert self.committed is not None
        self.suspended = reason = self.absences.own(self.card.name, now) or fault
        self._repeats.suspended(now)
        if self._trigger_at is None:
            self._trigger_at = now
        self._journal.decide(now, self.committed.hash, "suspended the plan", reason=reason, fault=fault)
        self._journal.command(SuspendPlan(self.committed.hash, reason))

    def _want(self, reason: str, *, by_hand: bool, now: float) -> None:
        if self.coordinates:
            self._wishes.want(reason, by_hand=by_hand)
        else:
            self._wishes.ask(self.card.id, self.plan_hash, reason, by_hand=by_hand, at=now)

    def _ask(self, now: float) -> None:
        """Tell the coordinator of a wish; a suspension is one, because it may not know of it."""
        if self.suspended is not None and not self._wishes.asking:
            at = now + FIRST_WAIT_S
            self._wishes.ask(self.card.id, self.plan_hash, self.suspended, by_hand=False, at=at)
        wish = self._wishes.due(self.plan_hash, now)
        if wish is not None:
            self._send(self.coordinator, wish)

    def _commit(self, plan: MeshPlan, reason: str, now: float) -> None:
        """The one setter of the plan in force."""
        detect_ms, agree_ms = agreement_ms(
            self.committed, self.last_change, self._peers.pairs, self._trigger_at, now
        )
        self._promise(plan)
        self.absences.committed(self.committed, plan, now)
        self.committed, self.suspended = plan, None
        self._ballot = None
        self._wishes.clear()
        self._trigger_at = None
        self._peers.divergence.committed()
        self._repeats.committed(content(plan), self._news, now)
        self.last_change = LastChange(now, reason, detect_ms, agree_ms)
        if plan.coordinator == self.card.id:
            others = {member.id for member in plan.members if member.id != self.card.id}
            self._delivery = Delivery(plan, reason, others, now)
        else:
            self._delivery = None
        self._journal.command(CommitPlan(plan, reason, detect_ms, agree_ms))
        change_events.plan_committed(self._journal, plan, reason, detect_ms, agree_ms, now)

    def _name(self, node: NodeId) -> str:
        return self._peers.names.get(node, node)

    def _send(self, peer: NodeId, message: MeshMessage) -> None:
        self._journal.command(SendMessage(peer, message))

    def validate(self) -> None:
        """The invariants of the mesh that one node can see."""
        plan = self.committed
        if plan is not None:
            assert plan.hash == plan_hash(plan)
            assert plan.epoch <= self._epochs.promised, "in force without a promise"
            assert self._epochs.promised.number <= self.epoch_seen
        if self._ballot is not None:
            assert self.coordinates, "a proposal of one who does not coordinate"
