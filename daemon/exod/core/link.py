"""One pair of nodes: its paths, what is heard on them, which one it uses, and whether both ends agree.

The theory. Datagrams of both present incarnations are evidence; everything else changes nothing (invariants 4 and
12). Silence convicts a path only while the peer is heard on another (the alibi), silence of all makes the peer
suspect and moves nothing (8), and the time in which nothing at all was heard counts for no path, so neither our own
stall nor the peer's convicts anyone (9). The lower node's selector chooses; the register carries the choice; agreed
means that both hold it and that the path works here and, by the peer's word, there (3).

Decides the silence of paths and the state of the pair. Leaves to others: a path's own state (path.py), the order
(scoring.py), the choice (selection.py), the register (agreement.py), the datagrams (prober.py). Owned and called by
node.py.
"""

from __future__ import annotations

from exod.core.agreement import PairAgreement
from exod.core.candidates import candidate_paths
from exod.core.config import CoreConfig
from exod.core.events import CheckRoute, LogRejected, RaiseIncarnation
from exod.core.journal import Journal
from exod.core.liveness import PeerLiveness
from exod.core.path import WIRED_BEAT_S, WIRED_MISSES, Evidence, Path
from exod.core.prober import Prober
from exod.core.scoring import Standing
from exod.core.selection import Choice, PathSelector
from exod.core.sequence import SequenceWindow
from exod.core.wire import Datagram, PathReport
from exod.model import NodeCard, NodeState, PathId, PathState

ALIBI_SHARE = 0.7
"""The alibi must come this late in the silence: what was sent before a stall may arrive after it began."""
SLOW_ALARM = 3
"""Samples over the limit in a row on the selected path that make both ends look closer."""
AUDIBLE_BEATS = 1.5
AUDIBLE_IN_BURST_S = 0.12
"""In a burst of this length every live path has delivered, one over a 44 ms VPN too."""
FRESH_S = 1.5
"""A standby at 4 a second has 6 samples in this time; an alarm's burst makes it fresh at once."""
ROUTE_RECHECK_S = 10.0
"""The route table can change without a word; a route check is one socket call."""
ROUTE_ANSWER_S = 2.0
TOMBSTONE_S = 10.0
"""A path whose address went is reported DEAD for so long, then forgotten."""
WINDOWS_KEPT = 64
"""Replay windows of paths that came and went in one incarnation of the peer."""
POKE_S = 0.1
"""A peer that speaks of an incarnation which is not ours gets an answer, at most so often."""
USABLE = (PathState.UP, PathState.DEGRADED)


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
        self.prober = Prober(me, peer, key, journal, seed)
        self.paths: dict[PathId, Path] = {}
        self._by_address: dict[tuple[str, str], Path] = {}
        self._windows: dict[PathId, SequenceWindow] = {}
        self._refused_to = 0
        self.liveness = PeerLiveness(now)
        self.selector = PathSelector(config)
        self.agreement = self._new_agreement()
        self.selection_cause = "no path is measured yet"
        self.detect_ms: float | None = None
        """How long the newest verdict against the selected path took from the last sign of health."""
        self.verdict_at: float | None = None
        self.agreed = False
        self.agreed_since = now
        self.peer_epoch = 0
        self.peer_plan_prefix = ""
        self.peer_reports: dict[PathId, PathReport] = {}
        self.changed = True
        """Something that a plan depends on changed since the flag was last cleared (by node.py)."""
        self._peer_order = 0
        self._last_reports: tuple[PathReport, ...] | None = None
        self._wish: tuple[PathId, float] | None = None
        self._raised = 0
        self._poked_at = -POKE_S
        self._overdue = False
        self._check_at = now
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
        selected = self.selected
        return None if selected is None else self.paths.get(selected)

    def _new_agreement(self) -> PairAgreement:
        low, high = self.me.incarnation, self.peer_incarnation
        if not self.selects:
            low, high = high, low
        return PairAgreement(selects=self.selects, incarnation_low=low, incarnation_high=high)

    # --- cards --------------------------------------------------------------------------------------------------

    def adopt_me(self, card: NodeCard, now: float) -> None:
        """This node's card changed."""
        reborn = card.incarnation != self.me.incarnation
        self.me = self.prober.me = card
        if reborn:
            self._restart(now)
        self._adopt_candidates(now)
        self._check(now)

    def adopt_peer(self, card: NodeCard, now: float) -> None:
        """The peer's card came again. One of an older life changes nothing, and its owner is told."""
        if card.incarnation < self.peer_incarnation:
            self._poke(now)
            return
        self.peer = self.prober.peer = card
        if card.incarnation > self.peer_incarnation:
            self._peer_restarted(card.incarnation, now)
        self._adopt_candidates(now)
        self.prober.hasten(self.paths.values(), now)
        self.changed = True
        self._check(now)

    def _adopt_candidates(self, now: float) -> None:
        found = {candidate.path: candidate for candidate in candidate_paths(self.me, self.peer)}
        for path_id, candidate in found.items():
            path = self.paths.get(path_id)
            if path is None:
                self.paths[path_id] = Path(
                    candidate, self._config, self._window(path_id), self.prober.first_seq(), now
                )
                continue
            path.candidate = candidate
            if path.gone:
                path.gone = False
                path.restart(path.window, now)
                self._last_reports = None
        for path_id, path in list(self.paths.items()):
            if path_id in found or path.gone:
                continue
            path.gone = True
            if path.own is not PathState.DEAD:
                path.detect_ms = 0.0
                path.apply(Evidence.GONE, now, "one end lost its address")
        self._by_address = {
            (path.candidate.local.address, path.candidate.remote.address): path for path in self.paths.values()
        }
        for path in self.paths.values():
            self._ask_route(path, now)
        self.prober.hasten((path for path in self.paths.values() if not path.gone), now)

    def _window(self, path_id: PathId) -> SequenceWindow:
        window = self._windows.get(path_id)
        if window is None:
            if len(self._windows) >= WINDOWS_KEPT:
                # A sender's new paths count on from its highest number, so what is forgotten here stays refused.
                forgotten = next(one for one in self._windows if one not in self.paths)
                self._refused_to = max(self._refused_to, self._windows.pop(forgotten).newest)
            window = self._windows[path_id] = SequenceWindow(self._refused_to)
        return window

    # --- incarnations -------------------------------------------------------------------------------------------

    def _peer_restarted(self, incarnation: int, now: float) -> None:
        self._journal.decide(
            now, self.peer.id, "peer has a new incarnation", old=self.peer_incarnation, new=incarnation
        )
        self.peer_incarnation = incarnation
        self._windows.clear()
        self._refused_to = 0
        self._peer_order = 0
        self.peer_plan_prefix = ""
        self.liveness.restart(now)
        self._restart(now)

    def _restart(self, now: float) -> None:
        """One end's life is new: registers, measurements and states of the old lives are void."""
        for path_id, path in list(self.paths.items()):
            if path.gone:
                del self.paths[path_id]
                continue
            path.restart(self._window(path_id), now)
        self._by_address = {
            key: path for key, path in self._by_address.items() if path.candidate.path in self.paths
        }
        self.selector = PathSelector(self._config)
        self.agreement = self._new_agreement()
        self.selection_cause = "no path is measured yet"
        self.peer_reports = {}
        self._last_reports = None
        self._refresh_agreed(now)
        self.changed = True
        self._check_at = now

    def _poke(self, now: float) -> None:
        """Let the peer see which incarnations are known here."""
        if now - self._poked_at >= POKE_S:
            self._poked_at = now
            self.prober.hasten((path for path in self.paths.values() if not path.gone), now)

    # --- receiving ----------------------------------------------------------------------------------------------

    def receive(self, datagram: Datagram, local: str, remote: str, received_at: float, now: float) -> None:
        """An authentic datagram of the peer, addressed to this node, that came on (local, remote)."""
        if datagram.sender_incarnation < self.peer_incarnation:
            self._reject(remote, "old_incarnation", f"incarnation {datagram.sender_incarnation} is over")
            self._poke(now)
            return
        if datagram.sender_incarnation > self.peer_incarnation:
            self._peer_restarted(datagram.sender_incarnation, now)
        if datagram.destination_incarnation != self.me.incarnation:
            self._meant_for_another_life(datagram.destination_incarnation, now)
            return
        path = self._by_address.get((local, remote))
        if path is None or path.gone or self.liveness.left or (now < path.fault_until and path.fault_drop):
            return
        if not path.window.accept(datagram.seq):
            self._reject(remote, "replay", f"number {datagram.seq} came before, or is too old to tell")
            return
        if datagram.goodbye:
            self.leave(now)
            return
        received_at = min(received_at, now)
        self._end_of_silence(received_at, now)
        before = path.own
        path.hear(datagram, received_at)
        unsettled = path.own is not before or self._overdue
        unsettled |= self.liveness.hear(received_at, now) and self._peer_changed(now)
        unsettled |= self._take_word(datagram, now)
        if datagram.urgent and self.prober.answer_urgent(now):
            self.prober.hasten(self._living(), now)
        if path.rtt.slow_streak >= SLOW_ALARM and path.own is PathState.UP and path is self.selected_path:
            self._alarm(now)
        if unsettled or (self.selector.deadline is not None and now >= self.selector.deadline):
            self._check(now)

    def _meant_for_another_life(self, known: int, now: float) -> None:
        if known > self.me.incarnation and known > self._raised:
            self._raised = known
            self._journal.decide(now, self.me.id, "a higher incarnation of ours is known", seen=known)
            self._journal.command(RaiseIncarnation(known))
        self._poke(now)

    def _take_word(self, datagram: Datagram, now: float) -> bool:
        """The peer's reports, register and wish. Returns whether anything that matters changed."""
        unsettled = False
        if datagram.order > self._peer_order:
            self._peer_order = datagram.order
            self.peer_epoch = max(self.peer_epoch, datagram.epoch_number)
            if datagram.plan_prefix != self.peer_plan_prefix:
                self.peer_plan_prefix = datagram.plan_prefix
                self.changed = True
            if datagram.reports != self._last_reports:
                unsettled = self._take_reports(datagram.reports)
            if datagram.wish is not None and self.selects:
                self.selector.pin(datagram.wish, now + 1.0)
                unsettled |= datagram.wish != self.selected
        before = self.selected
        if self.agreement.observe(datagram.selection):
            unsettled = True
            if not self.selects:
                self._adopted(before, now)
        return unsettled

    def _take_reports(self, reports: tuple[PathReport, ...]) -> bool:
        self._last_reports = reports
        self.peer_reports = {report.path: report for report in reports}
        unsettled = False
        for path_id, path in self.paths.items():
            before = (path.peer_own, path.peer_route)
            path.told(self.peer_reports.get(path_id))
            unsettled |= before != (path.peer_own, path.peer_route)
        return unsettled

    def _end_of_silence(self, received_at: float, now: float) -> None:
        """Time in which the peer was silent everywhere says nothing about any one path."""
        gap = received_at - self.liveness.quiet_since
        if gap >= WIRED_MISSES * self._beat_s():
            for path in self.paths.values():
                path.forgive(gap, now)

    def _reject(self, remote: str, code: str, text: str) -> None:
        self._journal.command(LogRejected(remote, code, text))

    # --- other inputs -------------------------------------------------------------------------------------------

    def leave(self, now: float) -> None:
        if self.liveness.leave(now):
            self._peer_changed(now)
        self._check(now)

    def connected(self, now: float) -> None:
        self.liveness.connection_broken = False
        self.prober.hasten((path for path in self.paths.values() if not path.gone), now)

    def disconnected(self, now: float) -> None:
        self.liveness.connection_broken = True
        self._check(now)

    def sent(self, path_id: PathId, seq: int, sent_at: float | None, now: float) -> None:
        path = self.paths.get(path_id)
        if path is not None and sent_at is not None and now >= path.fault_until:
            path.stamp(seq, sent_at)

    def refused(self, path_id: PathId, errno: int) -> None:
        """The system refused a datagram. Silence will convict the path; the words for it come from here."""
        path = self.paths.get(path_id)
        if path is not None:
            path.refused_errno = errno

    def routed(self, path_id: PathId, leaves_from: str | None, now: float) -> None:
        path = self.paths.get(path_id)
        if path is None:
            return
        before = path.route
        path.routed(leaves_from, now)
        if path.route is not before:
            self._journal.decide(
                now,
                path_id,
                f"route is {path.route.name.lower()}",
                leaves_from=leaves_from,
                expected=path.candidate.local.address,
            )
            self.prober.hasten((path for path in self.paths.values() if not path.gone), now)
            self._check(now)

    def lagged(self, lag_s: float, now: float) -> None:
        """This loop (or host) stood still: that time is nobody's silence."""
        self.liveness.forgive(lag_s, now)
        for path in self.paths.values():
            path.forgive(lag_s, now)
        self._check_at = now

    def fault(self, path_id: PathId, *, drop: bool, delay_ms: float, until: float) -> None:
        path = self.paths.get(path_id)
        if path is not None:
            path.fault_until, path.fault_drop, path.fault_delay_s = until, drop, delay_ms / 1e3

    def pin(self, path_id: PathId, until: float, now: float) -> None:
        """The lower node selects the path for a while; the upper one asks for it."""
        self.selector.pin(path_id, until)
        self._wish = (path_id, until)
        self._check(now)

    # --- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        sending = self.prober.next_send(self.paths.values())
        return self._check_at if sending is None else min(self._check_at, sending)

    def handle_timer(self, now: float) -> None:
        if now >= self._check_at:
            self._check(now)
        for path in self.paths.values():
            if path.next_send <= now and not path.gone:
                self._send(path, now)

    def goodbye(self, now: float) -> None:
        for path in self._living():
            self._send(path, now, goodbye=True)

    def _send(self, path: Path, now: float, goodbye: bool = False) -> None:
        wish = self._wish
        self.prober.send(
            path,
            self.paths.values(),
            selection=self.agreement.register,
            wish=wish[0] if wish is not None and now < wish[1] else None,
            peer_incarnation=self.peer_incarnation,
            peer_state=self.liveness.state,
            peer_since=self.liveness.since,
            now=now,
            goodbye=goodbye,
        )

    def _living(self) -> list[Path]:
        return [path for path in self.paths.values() if path.heard and not path.gone]

    # --- judging ------------------------------------------------------------------------------------------------

    def _check(self, now: float) -> None:
        """Judge every silence, settle what follows, and set when to look again."""
        self._judge_silence(now)
        if self.liveness.judge(now, self._suspect_after_s(), self._beat_s()):
            self._peer_changed(now)
        self._watch_selected(now)
        self._settle(now)
        self._housekeeping(now)
        self._check_at = self._next_check(now)

    def _judge_silence(self, now: float) -> None:
        self._overdue = False
        for path in self.paths.values():
            if not path.heard or path.own is PathState.DEAD:
                continue
            limit = path.silence_limit_s
            if path.quiet_s(now) < limit:
                continue
            alibi = self._alibi(path, limit)
            if alibi is None:
                self._overdue = True  # the next datagram on any path may prove it
                continue
            path.detect_ms = (now - path.last_rx) * 1e3
            path.apply(
                Evidence.SILENT,
                now,
                f"silent for {path.detect_ms:.0f} ms while {alibi.candidate.local.interface} was heard",
            )

    def _alibi(self, silent: Path, limit: float) -> Path | None:
        late_enough = silent.quiet_since + ALIBI_SHARE * limit
        for path in self.paths.values():
            if path is not silent and path.heard and path.last_rx >= late_enough:
                return path
        return None

    def _peer_changed(self, now: float) -> bool:
        state = self.liveness.state
        self._journal.decide(now, self.peer.id, f"peer is {state}", reason=self.liveness.reason)
        self._journal.emit(f"node.{state}", self.peer.id, name=self.peer.name, reason=self.liveness.reason)
        if state is NodeState.DOWN:
            for path in self.paths.values():
                if path.own is not PathState.DEAD:
                    path.detect_ms = (now - path.last_rx) * 1e3
                    path.apply(Evidence.SILENT, now, f"{self.peer.name} is down: {self.liveness.reason}")
        self.changed = True
        return True

    def _watch_selected(self, now: float) -> None:
        """The first miss on the path in use: burst, so that the verdict finds alibi and measure ready."""
        path = self.selected_path
        if path is None or path.own not in USABLE or self.liveness.state is NodeState.DOWN:
            return
        if path.first_miss_s <= path.quiet_s(now) < 2 * path.silence_limit_s:
            self._alarm(now)

    def _alarm(self, now: float) -> None:
        if self.prober.hurry(now):
            self.prober.hasten(self._living(), now)

    def _settle(self, now: float) -> None:
        """Carry this end's and the peer's words into states, states into the selection, that into agreement."""
        moved = False
        for path in self.paths.values():
            before = path.combine(now)
            if before is not None:
                moved = True
                self._announce(path, before, now)
        if self.selects and self.liveness.state is NodeState.UP:
            register = self.agreement.register
            choice = self.selector.decide(self.selected, register is not None, self._standings(now), now)
            if choice is not None:
                self._select(choice, now)
        self._refresh_agreed(now)
        if moved:
            self.changed = True
            self.prober.hasten(self._living(), now)

    def _announce(self, path: Path, before: PathState, now: float) -> None:
        rtt_ms = path.rtt.floor_ms
        own_word = path.own is path.state
        reason = path.cause if own_word else f"{self.peer.name} reports it {path.peer_own}"
        detect_ms = path.detect_ms if own_word else None
        self._journal.decide(
            now,
            path.candidate.path,
            f"path is {path.state}",
            before=before,
            own=path.own,
            peer=path.peer_own,
            rtt_ms=rtt_ms,
            loss=path.loss,
            reason=reason,
            detect_ms=detect_ms,
        )
        if path is self.selected_path and path.state is not PathState.UP:
            self.verdict_at, self.detect_ms = now, detect_ms
        if path.state is not PathState.INIT:
            self._journal.emit(
                f"path.{path.state}",
                path.candidate.path,
                peer=self.peer.id,
                peer_name=self.peer.name,
                interface=path.candidate.local.interface,
                kind=path.candidate.kind,
                rtt_ms=rtt_ms,
                loss=round(path.loss, 3),
                reason=reason,
                detect_ms=detect_ms,
            )

    def _standings(self, now: float) -> list[Standing]:
        return [self.standing(path, now) for path in self.paths.values()]

    def standing(self, path: Path, now: float) -> Standing:
        quiet = now - path.last_rx
        bursting = self.prober.bursting(now) and now - self.prober.burst_since >= AUDIBLE_IN_BURST_S
        age = path.rtt.age_s(now)
        unmeasured = path.state is PathState.INIT and not path.ineligible
        unrouted = path.state in USABLE and not path.eligible and not path.ineligible
        return Standing(
            path=path.candidate.path,
            state=path.state,
            band=path.band,
            kind=path.candidate.kind,
            eligible=path.eligible,
            undecided=unmeasured or unrouted,
            audible=quiet <= (AUDIBLE_IN_BURST_S if bursting else AUDIBLE_BEATS * path.peer_interval_s),
            fresh=age is not None and age <= max(FRESH_S, 2 * path.peer_interval_s),
            cost_ms=path.rtt.cost_ms or 0.0,
        )

    def _select(self, choice: Choice, now: float) -> None:
        before = self.selected
        selection = self.agreement.select(choice.path)
        self.selection_cause = choice.reason
        self._journal.decide(
            now,
            self.peer.id,
            f"selected {choice.path}",
            before=before,
            seq=selection.seq,
            cause=choice.cause,
            reason=choice.reason,
        )
        self._announce_selection(before, choice.path, choice.cause, choice.reason)
        self._spread(now)

    def _adopted(self, before: PathId | None, now: float) -> None:
        register = self.agreement.register
        assert register is not None
        self.selection_cause = f"{self.peer.name} selected it"
        self._journal.decide(now, self.peer.id, f"follows {register.path}", seq=register.seq)
        self._announce_selection(before, register.path, "peer", self.selection_cause)
        self._spread(now)

    def _announce_selection(self, before: PathId | None, after: PathId | None, cause: str, reason: str) -> None:
        path = None if after is None else self.paths.get(after)
        self._journal.emit(
            "link.selected",
            self.peer.id,
            peer_name=self.peer.name,
            **{"from": before, "to": after},
            cause=cause,
            reason=reason,
            interface=None if path is None else path.candidate.local.interface,
            kind=None if path is None else path.candidate.kind,
            rtt_ms=None if path is None else path.rtt.floor_ms,
        )

    def _spread(self, now: float) -> None:
        """A register is agreed as soon as one datagram went each way: do not wait for the next beat."""
        self.prober.hasten(self._living(), now)
        path = self.selected_path
        if path is not None:
            self._ask_route(path, now)
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

    # --- housekeeping -------------------------------------------------------------------------------------------

    def _ask_route(self, path: Path, now: float) -> None:
        if path.gone or (path.route_asked_at is not None and now - path.route_asked_at < WIRED_BEAT_S):
            return
        path.route_asked_at = now
        self._journal.command(CheckRoute(self.peer.id, path.candidate.path, path.candidate.remote.address))

    def _housekeeping(self, now: float) -> None:
        for path_id, path in list(self.paths.items()):
            if path.gone and now - path.state_since > TOMBSTONE_S and path_id != self.selected:
                del self.paths[path_id]
                self._by_address.pop((path.candidate.local.address, path.candidate.remote.address), None)
                continue
            if path.gone or self.liveness.state is NodeState.DOWN:
                continue
            if path.route_asked_at is None or now - path.route_asked_at >= self._route_patience_s(path):
                self._ask_route(path, now)

    def _route_patience_s(self, path: Path) -> float:
        answered = path.route_checked_at is not None and path.route_checked_at >= (path.route_asked_at or 0.0)
        return ROUTE_RECHECK_S if answered else ROUTE_ANSWER_S

    def _beat_s(self) -> float:
        """The fastest pace that the peer announced on a path that is not dead."""
        beats = [
            path.peer_interval_s for path in self.paths.values() if path.heard and path.own is not PathState.DEAD
        ]
        return max(WIRED_BEAT_S, min(beats, default=WIRED_BEAT_S))

    def _suspect_after_s(self) -> float:
        limits = [
            path.silence_limit_s for path in self.paths.values() if path.heard and path.own is not PathState.DEAD
        ]
        return 2 * min(limits, default=WIRED_MISSES * WIRED_BEAT_S)

    def _next_check(self, now: float) -> float:
        times = [now + 1.0]
        for path in self.paths.values():
            if path.heard and path.own is not PathState.DEAD:
                times.append(path.quiet_since + path.silence_limit_s)
        selected = self.selected_path
        if selected is not None and selected.own in USABLE:
            times.append(selected.quiet_since + selected.first_miss_s)
            if selected.quiet_s(now) >= selected.first_miss_s:
                times.append(now + 0.1)
        for time in (self.liveness.deadline(self._suspect_after_s(), self._beat_s()), self.selector.deadline):
            if time is not None:
                times.append(time)
        return min(time for time in times if time > now)

    def validate(self) -> None:
        """The invariants of one pair that a single end can see."""
        if self.agreed:
            path = self.selected_path
            assert path is not None, "agreed on nothing"
            assert path.own in USABLE, f"agreed on a path that is {path.own} here"
            assert path.peer_own in USABLE, f"agreed on a path that is {path.peer_own} at the peer"
            assert path.heard, "agreed on a path that was never heard in these incarnations"
        register = self.agreement.register
        if register is not None:
            low, high = self.me.incarnation, self.peer_incarnation
            if not self.selects:
                low, high = high, low
            assert (register.incarnation_low, register.incarnation_high) == (low, high), "a register of other lives"
        assert len(self._windows) <= WINDOWS_KEPT
