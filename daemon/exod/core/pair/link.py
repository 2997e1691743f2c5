"""One pair of nodes: its paths, what is heard on them, which one it uses, and whether both ends agree.

The theory. Datagrams of both present incarnations are evidence; everything else changes nothing (invariants 4 and
12). dead_detection.py decides what silence proves. The lower node's selector chooses while the peer is there to
follow; the register carries the choice; agreed means that both hold it and that the path works here and, by the
peer's report, there (3). Whatever changes is sent at once on every path that was heard, so agreement takes one
round trip.

Decides what a datagram may change and when to look again. Leaves to others: a path's own state (path.py), the order
(path_order.py), the choice (path_selection.py), the register (pair_agreement.py), the datagrams (probe_sender.py),
what the peer says in its datagrams (peer_statements.py).
"""

from __future__ import annotations

from exod.core.base.config import CoreConfig
from exod.core.base.events import LogRejected, RaiseIncarnation, RingEvidence
from exod.core.base.journal import Journal
from exod.core.pair import change_events, dead_detection
from exod.core.pair.next_check import NextCheck
from exod.core.pair.pair_agreement import PairAgreement
from exod.core.pair.path_rating import SLOW_ALARM, rate_path
from exod.core.pair.path_selection import PathSelector
from exod.core.pair.peer_liveness import PeerLiveness
from exod.core.pair.peer_statements import PeerStatements
from exod.core.pair.ring_judgement import judge_ring
from exod.core.probe.candidate_paths import candidate_paths
from exod.core.probe.datagram import Datagram
from exod.core.probe.path import USABLE, Path
from exod.core.probe.path_order import why_left
from exod.core.probe.path_table import PathTable
from exod.core.probe.probe_sender import ProbeSender
from exod.core.probe.ring_fitness import MIN_MB_PER_S
from exod.model import NodeCard, NodeState, PathId, PathState, Selection

POKE_S = 0.1
"""A peer that speaks of an incarnation which is not ours gets an answer, at most so often."""
WISH_S = 1.0
"""A wish holds for so long after the datagram that carried it."""
ALARM_S = 0.5
"""A burst that brought nothing in this time brings nothing more: past every verdict on a wire, and on a radio."""


class Link:
    def __init__(
        self,
        me: NodeCard,
        peer: NodeCard,
        *,
        key: bytes,
        config: CoreConfig,
        journal: Journal,
        seed: int,
        now: float,
    ) -> None:
        self.me = me
        self.peer = peer
        self.peer_incarnation = peer.incarnation
        self._config = config
        self._journal = journal
        self.probes = ProbeSender(me, peer, key, journal, seed)
        self.paths = PathTable(peer.id, config, journal)
        self.liveness = PeerLiveness(peer.id, journal, now)
        self.selector = PathSelector(config)
        self.agreement = self._new_agreement()
        self.selection_cause = "no path is measured yet"
        self._followed: Selection | None = None
        """The peer's selection that was announced last."""
        self.agreed = False
        self.agreed_since = now
        self.detect_ms: float | None = None
        """How long the newest verdict against the selected path took from the last sign of health."""
        self.verdict_at: float | None = None
        self.statements = PeerStatements(self.paths)
        self.changed = True
        """Something that a plan depends on changed since the flag was last cleared (by node.py)."""
        self._wish: tuple[PathId, float] | None = None
        self._raised = 0
        self._poked_at = -POKE_S
        self._overdue = False
        self._next_check = NextCheck(self.paths, self.liveness, now)
        self._adopt_candidates(now)

    @property
    def selects(self) -> bool:
        return self.me.id < self.peer.id

    @property
    def selected(self) -> PathId | None:
        register = self.agreement.register
        return None if register is None else register.path

    @property
    def selected_path(self) -> Path | None:
        return self.paths.get(self.selected)

    @property
    def _incarnations(self) -> tuple[int, int]:
        """The lower node's first."""
        pair = (self.me.incarnation, self.peer_incarnation)
        return pair if self.selects else (pair[1], pair[0])

    def _new_agreement(self) -> PairAgreement:
        low, high = self._incarnations
        return PairAgreement(selects=self.selects, incarnation_low=low, incarnation_high=high)

    # --- cards and incarnations ---------------------------------------------------------------------------------

    def adopt_me(self, card: NodeCard, now: float) -> None:
        """This node's card changed."""
        reborn = card.incarnation != self.me.incarnation
        self.me = self.probes.me = card
        if reborn:
            self._restart(now)
        self._adopt_candidates(now)
        self._check(now)

    def adopt_peer(self, card: NodeCard, now: float) -> None:
        """The peer's card came again. One of an older life changes nothing, and the peer gets an answer."""
        if card.incarnation < self.peer_incarnation:
            self._poke(now)
            return
        self.peer = self.probes.peer = card
        if card.incarnation > self.peer_incarnation:
            self._peer_restarted(card.incarnation, now)
        self._adopt_candidates(now)
        self.changed = True
        self._check(now)

    def _adopt_candidates(self, now: float) -> None:
        if self.paths.adopt(candidate_paths(self.me, self.peer), self.probes.first_seq(), now):
            self.statements.expect_reports()
        self.probes.hasten(self.paths.present, now)

    def _peer_restarted(self, incarnation: int, now: float) -> None:
        before, self.peer_incarnation = self.peer_incarnation, incarnation
        self._journal.decide(now, self.peer.id, "peer has a new incarnation", before=before, after=incarnation)
        self.paths.forget_windows()
        self.statements.restart()
        self.liveness.restart(now)
        self._restart(now)

    def _restart(self, now: float) -> None:
        """One end's life is new: registers, measurements and states of the old lives are void."""
        self.paths.restart(now)
        self.selector = PathSelector(self._config)
        self.agreement = self._new_agreement()
        self.selection_cause = "no path is measured yet"
        self._followed = None
        self.statements.expect_reports()
        self._refresh_agreed(now)
        self.changed = True
        self._next_check.at_once(now)

    def _poke(self, now: float) -> None:
        """Let the peer see which incarnations are known here."""
        if now - self._poked_at >= POKE_S:
            self._poked_at = now
            self.probes.hasten(self.paths.present, now)

    # --- receiving ----------------------------------------------------------------------------------------------

    def receive(self, datagram: Datagram, local: str, remote: str, received_at: float, now: float) -> None:
        """An authentic datagram of the peer, addressed to this node, that came on (local, remote)."""
        if datagram.sender_incarnation < self.peer_incarnation:
            self._reject(remote, "old_incarnation", f"incarnation {datagram.sender_incarnation} is over")
            self._poke(now)
            return
        if datagram.sender_incarnation > self.peer_incarnation:
            if self.paths.at(local, remote) is None:
                return  # from no address of the peer's card: a twin, or a new address whose card is on the way
            self._peer_restarted(datagram.sender_incarnation, now)
        if datagram.destination_incarnation != self.me.incarnation:
            self._meant_for_another_life(datagram.destination_incarnation, now)
            return
        path = self.paths.at(local, remote)
        if path is None or path.gone or self.liveness.left or (now < path.fault_until and path.fault_drop):
            return
        if not path.window.accept(datagram.seq):
            self._reject(remote, "replay", f"number {datagram.seq} came before, or is too old to tell")
            return
        if datagram.goodbye:
            self.leave(now)
            return
        self._hear(path, datagram, min(received_at, now), now)

    def _hear(self, path: Path, datagram: Datagram, received_at: float, now: float) -> None:
        gap, gap_s = received_at - self.liveness.last_rx, dead_detection.SHORTEST_GAP_S
        if gap > gap_s:
            gap_s = dead_detection.gap_s(self.paths)
            if gap >= dead_detection.total_silence_s(self.paths):
                for one in self.paths:
                    one.forgive(gap, now)
                    one.excuse()
        before = path.own
        path.hear(datagram, received_at)
        unsettled = path.own is not before or self._overdue
        self.liveness.hear(received_at, gap_s)
        if self.liveness.state is not NodeState.UP and self.liveness.return_if_heard(
            received_at, dead_detection.suspect_after_s(self.paths), now
        ):
            self._peer_changed(now)
            unsettled = True
        unsettled |= self._take_statements(datagram, now)
        if datagram.urgent and self.probes.answer_urgent(now):
            self.probes.hasten(self.paths.heard, now)
        selected = self.selected_path
        if path is selected and path.own is PathState.UP:
            if path.rtt.slow_streak >= SLOW_ALARM:
                self._alarm(now)
            elif path.rtt.slow_streak == 0:
                self.probes.calm_down()
        if unsettled or (self.selector.deadline is not None and now >= self.selector.deadline):
            self._check(now)
        elif path is selected and path.own in USABLE:
            self._next_check.heard(path)
        if path.may_send_at <= now:
            # The loop is awake and the echo is fresh: better now than by a timer of its own a moment later.
            self.probes.hasten((path,), now)

    def _meant_for_another_life(self, known: int, now: float) -> None:
        if known > self.me.incarnation and known > self._raised:
            self._raised = known
            self._journal.decide(now, self.me.id, "a higher incarnation of ours is known", seen=known)
            self._journal.command(RaiseIncarnation(known))
        self._poke(now)

    def _take_statements(self, datagram: Datagram, now: float) -> bool:
        """The peer's reports, register, wish and plan. Returns whether anything that matters here changed."""
        unsettled = False
        if self.statements.is_newer(datagram):
            unsettled = self.statements.take(datagram)
            self.changed |= self.statements.changed
            self.statements.changed = False
            if datagram.wish is not None and self.selects:
                self.selector.pin(datagram.wish, now + WISH_S)
                unsettled |= datagram.wish != self.selected
        if self.agreement.observe(datagram.selection):
            unsettled = True
        return unsettled

    def _reject(self, remote: str, code: str, text: str) -> None:
        self._journal.command(LogRejected(remote, code, text))

    # --- other inputs -------------------------------------------------------------------------------------------

    def leave(self, now: float) -> None:
        """The peer said goodbye."""
        if self.liveness.leave(now):
            self._peer_changed(now)
        self._check(now)

    def connected(self, now: float) -> None:
        self.liveness.connection_broken = False
        self.probes.hasten(self.paths.present, now)

    def disconnected(self, now: float) -> None:
        self.liveness.connection_broken = True
        self._check(now)

    def sent(self, path_id: PathId, seq: int, sent_at: float | None, now: float) -> None:
        path = self.paths.get(path_id)
        if path is not None and sent_at is not None and now >= path.fault_until:
            path.stamp(seq, sent_at)

    def refused(self, path_id: PathId, errno: int) -> None:
        """The system refused a datagram. Silence will declare the path dead; this gives the reason."""
        if (path := self.paths.get(path_id)) is not None:
            path.refused(errno)

    def routed(self, path_id: PathId, leaves_from: str | None, now: float) -> None:
        path = self.paths.get(path_id)
        if path is None:
            return
        before = path.route
        path.routed(leaves_from, now)
        if path.route is not before:
            verdict, expected = path.route.name.lower(), path.candidate.local.address
            self._journal.decide(now, path_id, f"route is {verdict}", leaves_from=leaves_from, expected=expected)
            self.probes.hasten(self.paths.present, now)
            self._check(now)

    def ring_evidence(self, path_id: PathId, seen: RingEvidence, now: float) -> None:
        """What the ring saw of a path counts only while its probes pass: other failures are found by the probes."""
        path = self.paths.get(path_id)
        if path is None or path.state not in USABLE or path.quiet_s(now) > path.first_miss_s:
            return
        limit = self._config.min_mb_per_s or MIN_MB_PER_S[path.candidate.kind]
        if judge_ring(self._journal, self.peer, path, seen, limit, now):
            self.changed = True
            self.probes.hasten(self.paths.heard, now)
            self._check(now)

    def lagged(self, lag_s: float, now: float) -> None:
        """This loop (or host) stood still: that time counts as silence on no path."""
        self.liveness.forgive(lag_s, now)
        for path in self.paths:
            path.forgive(lag_s, now)
        self._next_check.at_once(now)

    def fault(self, path_id: PathId, *, drop: bool, delay_ms: float, until: float) -> None:
        path = self.paths.get(path_id)
        if path is not None:
            path.set_fault(drop=drop, delay_ms=delay_ms, until=until)

    def pin(self, path_id: PathId, until: float, now: float) -> None:
        """The lower node selects the path for a while; the upper one asks for it."""
        self.selector.pin(path_id, until)
        self._wish = (path_id, until)
        self._check(now)

    # --- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        at = self._next_check.at
        for path in self.paths.present:
            at = min(at, path.next_send)
        return at

    def handle_timer(self, now: float) -> None:
        """Waking up costs more than a datagram or a look: what is nearly due is done in the same turn, and a look
        is put off where datagrams that came meanwhile have moved all deadlines. One datagram at a time: it says how
        long the last echo was held, up to `now`, and making another takes as long as a round trip on a cable.
        """
        lookout = self._next_check
        if now >= lookout.at:
            lookout.put_off(self.selected_path, self.selector.deadline)
            if lookout.at <= now:
                self._check(now)
        due = next((path for path in self.paths.present if path.next_send <= now), None)
        if due is not None:
            self._send(due, now)
            self.probes.hasten((path for path in self.paths.present if path.may_send_at <= now), now)

    def goodbye(self, now: float) -> None:
        for path in self.paths.heard:
            self._send(path, now, goodbye=True)

    def _send(self, path: Path, now: float, goodbye: bool = False) -> None:
        wish = self._wish
        self.probes.send(
            path,
            self.paths,
            selection=self.agreement.register,
            wish=wish[0] if wish is not None and now < wish[1] else None,
            peer_incarnation=self.peer_incarnation,
            peer_state=self.liveness.state,
            peer_since=self.liveness.since,
            now=now,
            goodbye=goodbye,
        )

    # --- judging ------------------------------------------------------------------------------------------------

    def _check(self, now: float) -> None:
        """Judge every silence, settle what follows, and set when to look again."""
        self._overdue = dead_detection.declare_dead(self.paths, self.liveness.audible_since, now)
        if self.liveness.judge(now, dead_detection.suspect_after_s(self.paths), dead_detection.beat_s(self.paths)):
            self._peer_changed(now)
        self._watch_selected(now)
        for path in self.paths:
            if path.ring.expire(now):
                self.changed = True
                change_events.path_may_be_tried(self._journal, self.peer, path, now)
        self._settle(now)
        self.paths.forget_gone(self.selected, now)
        if self.liveness.state is not NodeState.DOWN:
            self.paths.ask_due_routes(now)
        self._next_check.looked(self.selected_path, self.selector.deadline, now)

    def _peer_changed(self, now: float) -> None:
        change_events.peer_changed(self._journal, self.peer, self.liveness)
        if self.liveness.state is NodeState.DOWN:
            for path in self.paths:
                if path.own is not PathState.DEAD:
                    path.silent(now, f"{self.peer.name} is down: {self.liveness.reason}")
        self.changed = True

    def _watch_selected(self, now: float) -> None:
        """The first miss on the path in use: burst, so that the verdict finds witness and measure ready."""
        path = self.selected_path
        if path is None or path.own not in USABLE or self.liveness.state is NodeState.DOWN:
            return
        if 0.0 <= path.quiet_s(now) - path.first_miss_s < ALARM_S:
            self._alarm(now)

    def _alarm(self, now: float) -> None:
        if self.probes.hurry(now):
            self.probes.hasten(self.paths.heard, now)

    def _settle(self, now: float) -> None:
        """Combine both ends' verdicts into states, states into the selection, that into agreement."""
        moved = False
        for path in self.paths:
            before = path.combine(now)
            if before is None:
                continue
            moved = True
            detect_ms = change_events.path_changed(self._journal, self.peer, path, before, now)
            if path is self.selected_path and path.state is not PathState.UP:
                self.verdict_at, self.detect_ms = now, detect_ms
        if self.selects and self.liveness.state is NodeState.UP:
            ratings = [rate_path(path, self.probes, now) for path in self.paths]
            choice = self.selector.decide(self.selected, ratings, now)
            if choice is not None:
                before_path = self.selected
                self.agreement.select(choice.path)
                self._selection_changed(before_path, choice.cause, choice.reason, now)
        elif not self.selects and self.agreement.register is not self._followed:
            self._follow(now)
        self._refresh_agreed(now)
        if moved:
            self.changed = True
            self.probes.hasten(self.paths.heard, now)

    def _follow(self, now: float) -> None:
        """The peer selected. Only the peer knows why; the reason here is what this end can see."""
        before, self._followed = self._followed, self.agreement.register
        left = None if before is None else before.path
        shown = why_left(left, self.selected, [rate_path(path, self.probes, now) for path in self.paths])
        said = f"{self.peer.name} selected it"
        self._selection_changed(left, "peer", f"{said}: {shown}" if shown else said, now)

    def _selection_changed(self, before: PathId | None, cause: str, reason: str, now: float) -> None:
        """The register grew: send it at once, so that both ends agree before the next probe is due."""
        register, path = self.agreement.register, self.selected_path
        assert register is not None
        self.selection_cause = reason
        change_events.selection_changed(
            self._journal,
            self.peer,
            before,
            register.path,
            path,
            seq=register.seq,
            cause=cause,
            reason=reason,
            now=now,
        )
        self.probes.hasten(self.paths.heard, now)
        if path is not None:
            self.paths.ask_route(path, now)
        self.changed = True

    def _refresh_agreed(self, now: float) -> None:
        path = self.selected_path
        agreed = (
            self.agreement.agreed
            and path is not None
            and path.state in USABLE
            and path.eligible
            and self.liveness.state is not NodeState.DOWN
        )
        if agreed is not self.agreed:
            self.agreed = agreed
            self.agreed_since = now
            self.changed = True
            self._journal.decide(now, self.peer.id, "agreed" if agreed else "not agreed", path=self.selected)

    def validate(self) -> None:
        """The invariants of one pair that a single end can see."""
        self.paths.validate()
        register = self.agreement.register
        if register is not None:
            held = (register.incarnation_low, register.incarnation_high)
            assert held == self._incarnations, "a register of other lives"
        if self.agreed:
            path = self.selected_path
            assert path is not None, "agreed on nothing"
            assert path.own in USABLE, f"agreed on a path that is {path.own} here"
            assert path.peer_own in USABLE, f"agreed on a path that is {path.peer_own} at the peer"
            assert path.heard, "agreed on a path that was never heard in these incarnations"
