"""One path of a pair as this end sees it: what was heard, how fast, and the state that follows.

The theory. Each end judges a path by its own evidence alone (`own`) and tells the other in every datagram; what
counts is the worse of the two (`state`), so both ends call a path alike within one datagram, and a path that works
one way only is dead at both. A path is INIT until enough round trips were measured, UP or DEGRADED by floor and
loss, DEAD by silence, by the loss of its address, or by the other end's verdict; from DEAD the way leads only
through INIT, so nothing old makes a path look well.

Every field of a path is written here and nowhere else; every change of this end's own state is a decision in the
journal.

Decides the state of one path; never which path is used (path_selection.py), and never that silence is proven
(dead_detection.py). Times are monotonic seconds. IllegalMoveError for evidence that the table does not allow.
"""

from __future__ import annotations

from enum import StrEnum

from exod.core.base.config import CoreConfig
from exod.core.base.errors import IllegalMoveError
from exod.core.base.journal import Journal
from exod.core.probe.candidate_paths import Candidate
from exod.core.probe.datagram import Datagram, PathReport, RouteVerdict
from exod.core.probe.path_order import Band
from exod.core.probe.replay_window import SequenceWindow
from exod.core.probe.ring_fitness import RingFitness
from exod.core.probe.rtt import RttEstimator
from exod.model import Kind, PathEnds, PathState
from exod.wrong_route import is_right

INIT_SAMPLES = 5
"""Round trips before a path is called UP: a quarter of a second at the measuring pace."""
SLOW_STREAK = 20
"""Samples above the limit in a row before a path is DEGRADED. A floor of 10 with 4 ms of jitter each way would
cross 5 ms by chance several times a day; 20 do so once in a year. While a streak lasts both ends probe at the burst
pace, so the verdict still falls within 0.6 s of the step."""
NEAR_STREAK = 40
"""The same where the floor is near the limit: where a busy machine adds 1.5 ms, that jitter is above 5 ms three
times of five, and 20 in a row come within hours. A link that is so little too slow can wait 0.6 s more."""
NEAR = 1.5
"""Up to this many times the limit is near it. Of that jitter's round trips an eighth reach so far even then."""
LOSS_DEGRADED = 0.20
"""Of 50 (design, "States, score, switching")."""
LOSS_RECOVERED = 0.10
LOSS_PERSISTS_S = 1.5
"""Loss of the newest 50 and of the newest 20 must stay over the limit this long: 5% at random crosses 20% of 50 now
and then, never for 30 datagrams."""
RECOVER_HOLD_S = 2.0
"""DEGRADED is left after this long below the limit (design, "States, score, switching")."""
STAMPS = 128
"""Send stamps kept: over 2 s at the burst pace, longer than any echo is of use."""

WIRED_MISSES, WIRED_BEAT_S = 4, 0.050
"""DEAD on a cable: 4 × 50 ms of silence (design)."""
RADIO_MISSES, RADIO_BEAT_S = 5, 0.100
"""DEAD on Wi-Fi, a VPN or an unknown medium: they pause for tens of milliseconds in good health."""
_WIRED = frozenset({Kind.THUNDERBOLT, Kind.ETHERNET, Kind.LOOPBACK})


USABLE = (PathState.UP, PathState.DEGRADED)


class Evidence(StrEnum):
    HEARD = "heard"
    MEASURED_FAST = "measured within the limit"
    MEASURED_SLOW = "measured over the limit"
    SLOW = "over the limit"
    LOSSY = "losing datagrams"
    RECOVERED = "below the limit again"
    SILENT = "silent"
    GONE = "address lost"


TRANSITIONS: dict[tuple[PathState, Evidence], PathState] = {
    (PathState.INIT, Evidence.MEASURED_FAST): PathState.UP,
    (PathState.INIT, Evidence.MEASURED_SLOW): PathState.DEGRADED,
    (PathState.INIT, Evidence.SILENT): PathState.DEAD,
    (PathState.INIT, Evidence.GONE): PathState.DEAD,
    (PathState.UP, Evidence.SLOW): PathState.DEGRADED,
    (PathState.UP, Evidence.LOSSY): PathState.DEGRADED,
    (PathState.UP, Evidence.SILENT): PathState.DEAD,
    (PathState.UP, Evidence.GONE): PathState.DEAD,
    (PathState.DEGRADED, Evidence.RECOVERED): PathState.UP,
    (PathState.DEGRADED, Evidence.SILENT): PathState.DEAD,
    (PathState.DEGRADED, Evidence.GONE): PathState.DEAD,
    (PathState.DEAD, Evidence.HEARD): PathState.INIT,
}

_WORSE = {PathState.UP: 0, PathState.DEGRADED: 1, PathState.INIT: 2, PathState.DEAD: 3}


def combined(own: PathState, theirs: PathState) -> PathState:
    """The worse of both ends' verdicts: INIT is worse than DEGRADED, because an unmeasured path carries nothing."""
    return own if _WORSE[own] >= _WORSE[theirs] else theirs


class Path:
    def __init__(
        self,
        candidate: Candidate,
        config: CoreConfig,
        journal: Journal,
        window: SequenceWindow,
        seq: int,
        now: float,
    ) -> None:
        self.candidate = candidate
        self._config = config
        self._journal = journal
        self.window = window
        self.rtt = RttEstimator(config.degraded_ms)
        self.created_at = now

        self.own = PathState.INIT
        self.state = PathState.INIT
        self.state_since = now
        self.cause = "no answer yet"
        self.detect_ms: float | None = None
        """From the last sign of health to the newest bad verdict."""
        self.gone = False

        self.peer_own = PathState.INIT
        self.peer_loss = 0.0
        self.peer_route = RouteVerdict.UNKNOWN

        self.route = RouteVerdict.UNKNOWN
        self._report = PathReport(candidate.path, self.own, self.route, 0)
        self.leaves_from: str | None = None
        self.route_checked_at: float | None = None
        self.route_asked_at: float | None = None
        self.refused_errno: int | None = None

        self.heard = False
        self.last_rx = now
        self.quiet_since = now
        """Silence counts from here: the newest datagram, or later where silence proved nothing."""
        self.peer_interval_s = WIRED_BEAT_S
        self.echo_seq = 0
        self._echo_at = now
        self._newest_echo = 0
        self._lossy_since: float | None = None
        self._well_since: float | None = None

        self.seq = seq
        self._stamps: dict[int, float] = {}
        self.next_send = self.may_send_at = now
        self._announced_s = WIRED_BEAT_S
        self._lingering_s = WIRED_BEAT_S
        self._linger = 0
        """Datagrams still sent at the old pace after a slower one was announced: the other end must know before we
        slow down (the same care as in RFC 5880, 6.8.3)."""

        self.ring = RingFitness()
        self.fault_until = 0.0
        self.fault_drop = False
        self.fault_delay_s = 0.0

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For people: `bridge0 (10.0.1.1)`, by this end's interface and address."""
        local = self.candidate.local
        return f"{local.interface} ({local.address})"

    @property
    def ends(self) -> PathEnds:
        local = self.candidate.local
        return PathEnds(local.interface, local.address, self.candidate.remote.address)

    @property
    def wired(self) -> bool:
        return self.candidate.kind in _WIRED

    @property
    def eligible(self) -> bool:
        return self.route is RouteVerdict.RIGHT and self.peer_route is RouteVerdict.RIGHT

    @property
    def ineligible(self) -> bool:
        return RouteVerdict.WRONG in (self.route, self.peer_route)

    @property
    def recover_ms(self) -> float:
        return self._config.recover_ms

    @property
    def loss(self) -> float:
        """The worse direction."""
        return max(self.window.loss, self.peer_loss)

    @property
    def band(self) -> Band:
        """UP is fast by definition; what a DEGRADED path suffers from decides its band."""
        if self.state is not PathState.DEGRADED:
            return Band.FAST
        return Band.LOSSY if self.loss > LOSS_DEGRADED else Band.SLOW

    @property
    def base_limit_s(self) -> float:
        """The silence limit at the full pace."""
        return WIRED_MISSES * WIRED_BEAT_S if self.wired else RADIO_MISSES * RADIO_BEAT_S

    @property
    def silence_limit_s(self) -> float:
        """Silence after which the path is DEAD, given that the peer was heard elsewhere."""
        if self.wired:
            return WIRED_MISSES * max(WIRED_BEAT_S, self.peer_interval_s)
        return RADIO_MISSES * max(RADIO_BEAT_S, self.peer_interval_s)

    @property
    def first_miss_s(self) -> float:
        """Silence after which a datagram is late: half a beat of grace."""
        return 1.5 * max(WIRED_BEAT_S if self.wired else RADIO_BEAT_S, self.peer_interval_s)

    def quiet_s(self, now: float) -> float:
        return now - self.quiet_since

    # --- its address --------------------------------------------------------------------------------------------

    def follow(self, candidate: Candidate, now: float) -> bool:
        """The candidate of the present cards. Returns whether the path came back, and so begins again."""
        self.candidate = candidate
        if not self.gone:
            return False
        self.gone = False
        self.restart(self.window, now)
        return True

    def lose_address(self, now: float) -> None:
        self.gone = True
        if self.own is not PathState.DEAD:
            self.detect_ms = 0.0
            self.apply(Evidence.GONE, now, "one end lost its address")

    # --- sending ------------------------------------------------------------------------------------------------

    def send_by(self, at: float) -> None:
        """The next datagram leaves at this time at the latest."""
        self.next_send = min(self.next_send, at)

    def schedule(self, at: float, may_send_at: float) -> None:
        """When the next datagram is due, and from when on it may leave together with another that is due."""
        self.next_send, self.may_send_at = at, may_send_at

    def announce(self, interval_s: float, linger: int) -> float:
        """A datagram announces this interval. Returns the one to send at: after a slower one was announced, the
        next `linger` datagrams still leave at the old interval.
        """
        if interval_s > self._announced_s:
            self._linger = linger
        elif interval_s < self._announced_s:
            self._linger = 0
        present = interval_s
        if self._linger:
            self._linger -= 1
            present = min(interval_s, self._lingering_s)
        if self._linger == 0:
            self._lingering_s = interval_s
        self._announced_s = interval_s
        return present

    def refused(self, errno: int) -> None:
        """The system refused a datagram."""
        self.refused_errno = errno

    def set_fault(self, *, drop: bool, delay_ms: float, until: float) -> None:
        """A debug fault of this end."""
        self.fault_until, self.fault_drop, self.fault_delay_s = until, drop, delay_ms / 1e3

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def stamp(self, seq: int, sent_at: float) -> None:
        """Remember when a datagram left; only stamped ones give a round trip."""
        self._stamps[seq] = sent_at
        self._stamps.pop(seq - STAMPS, None)

    def hold_ns(self, now: float) -> int:
        return max(0, int((now - self._echo_at) * 1e9)) if self.echo_seq else 0

    def report(self) -> PathReport:
        own, route, loss_percent = self.own, self.route, round(self.window.loss * 100)
        said, unfit = self._report, self.ring.own_unfit
        same = said.state is own and said.route is route and said.unfit is unfit
        if not same or said.loss_percent != loss_percent:
            said = self._report = PathReport(self.candidate.path, own, route, loss_percent, unfit)
        return said

    # --- evidence -----------------------------------------------------------------------------------------------

    def hear(self, datagram: Datagram, received_at: float) -> None:
        """A fresh datagram of both present incarnations came in on this path."""
        self.heard = True
        self.last_rx = max(self.last_rx, received_at)
        self.quiet_since = max(self.quiet_since, received_at)
        self.peer_interval_s = datagram.interval_ms / 1_000
        self.refused_errno = None
        if datagram.seq > self.echo_seq:
            self.echo_seq = datagram.seq
            self._echo_at = received_at
        if self.own is PathState.DEAD:
            self.rtt.reset()
            self.window.measure_from_here()
            self._lossy_since = self._well_since = None
            self.apply(Evidence.HEARD, received_at, "measuring again")
        if datagram.echo_seq > self._newest_echo:
            self._newest_echo = datagram.echo_seq
            sent_at = self._stamps.pop(datagram.echo_seq, None)
            if sent_at is not None:
                self.rtt.add((received_at - sent_at) * 1e3 - datagram.hold_ns / 1e6, received_at)
                self._judge_rtt(received_at)
        self._judge_loss(received_at)

    def told(self, report: PathReport | None) -> None:
        """The other end's verdict on this path; None where it does not list it."""
        if report is None:
            self.peer_own = PathState.INIT
            self.peer_route = RouteVerdict.UNKNOWN
            self.ring.peer_unfit = False
            return
        self.peer_own = report.state
        self.ring.peer_unfit = report.unfit
        self.peer_route = report.route
        self.peer_loss = report.loss_percent / 100

    def route_asked(self, now: float) -> None:
        self.route_asked_at = now

    def routed(self, leaves_from: str | None, now: float) -> None:
        self.leaves_from = leaves_from
        self.route_checked_at = now
        right = is_right(leaves_from, self.candidate.local.address)
        self.route = RouteVerdict.RIGHT if right else RouteVerdict.WRONG

    def excuse(self) -> None:
        """What was lost while the peer was silent everywhere says nothing about this path."""
        self.window.measure_anew()
        self._lossy_since = None

    def forgive(self, seconds: float, now: float) -> None:
        """Silence that proves nothing about this path does not count."""
        self.quiet_since = min(now, self.quiet_since + seconds)

    def silent(self, now: float, cause: str) -> None:
        """Its silence is proven, by a witness path or because the peer is down."""
        self.detect_ms = (now - self.last_rx) * 1e3
        self.apply(Evidence.SILENT, now, cause)

    def _judge_rtt(self, now: float) -> None:
        rtt, config = self.rtt, self._config
        floor = rtt.floor_ms
        assert floor is not None
        if self.own is PathState.INIT:
            if floor <= config.degraded_ms and rtt.samples >= INIT_SAMPLES:
                self.apply(Evidence.MEASURED_FAST, now, f"floor {floor:.2f} ms")
            elif floor > config.degraded_ms and rtt.full:
                self._slow(Evidence.MEASURED_SLOW, floor, now)
        elif self.own is PathState.UP:
            near = floor < NEAR * config.degraded_ms
            if rtt.slow_streak >= (NEAR_STREAK if near else SLOW_STREAK):
                self._slow(Evidence.SLOW, floor, now)
        elif self.own is PathState.DEGRADED:
            if floor >= config.recover_ms or self.window.recent_loss > LOSS_RECOVERED:
                self._well_since = None
            elif self._well_since is None:
                self._well_since = now
            elif now - self._well_since >= RECOVER_HOLD_S:
                self._lossy_since = self._well_since = None
                self.apply(Evidence.RECOVERED, now, f"floor {floor:.2f} ms again")

    def _slow(self, evidence: Evidence, floor: float, now: float) -> None:
        since = self.rtt.slow_since
        self.detect_ms = None if since is None else (now - since) * 1e3
        self.apply(evidence, now, f"floor {floor:.1f} ms is over {self._config.degraded_ms:g} ms")

    def _judge_loss(self, now: float) -> None:
        if self.own is not PathState.UP:
            return
        loss = self.window.loss
        if loss <= LOSS_DEGRADED or self.window.recent_loss <= LOSS_DEGRADED:
            # An outage that is over is no reason: what was lost must still be being lost.
            self._lossy_since = None
        elif self._lossy_since is None:
            self._lossy_since = now
        elif now - self._lossy_since >= LOSS_PERSISTS_S:
            self.detect_ms = (now - self._lossy_since) * 1e3
            self.apply(Evidence.LOSSY, now, f"loses {loss:.0%} of the datagrams")

    # --- the state ----------------------------------------------------------------------------------------------

    def apply(self, evidence: Evidence, now: float, cause: str) -> None:
        """The one setter of this end's own state."""
        before, name = self.own, self.candidate.path
        after = TRANSITIONS.get((before, evidence))
        if after is None:
            raise IllegalMoveError(
                "no such transition of a path",
                story=self._journal.story(name),
                path=name,
                state=before,
                evidence=evidence,
                cause=cause,
            )
        self.own = after
        self._journal.decide(
            now,
            name,
            f"path is {after} at this end",
            before=before,
            evidence=evidence,
            cause=cause,
            floor_ms=self.rtt.floor_ms,
            loss=self.window.loss,
        )
        self.cause = cause
        if after is PathState.DEGRADED:
            self._well_since = None

    def combine(self, now: float) -> PathState | None:
        """Set `state` from both verdicts. Returns the state that it was, or None where nothing changed."""
        after = combined(self.own, self.peer_own)
        before = self.state
        if after is before:
            return None
        self.state = after
        self.state_since = now
        return before

    def restart(self, window: SequenceWindow, now: float) -> None:
        """An end has a new incarnation: nothing heard or measured before counts, and routes are checked again."""
        if self.own is not PathState.INIT or self.state is not PathState.INIT:
            reason = "an end has a new incarnation, or the path came back"
            self._journal.decide(now, self.candidate.path, "path begins again", before=self.own, reason=reason)
        self.window = window
        window.measure_anew()
        self.rtt.reset()
        self.own = self.peer_own = self.state = PathState.INIT
        self.state_since = self.created_at = now
        self.cause = "no answer yet"
        self.detect_ms = None
        self.peer_loss = 0.0
        self.peer_route = RouteVerdict.UNKNOWN
        self.heard = False
        self.last_rx = self.quiet_since = self._echo_at = now
        self.echo_seq = self._newest_echo = 0
        self._lossy_since = self._well_since = None
        self._stamps.clear()
        self.ring.restart()
        self.next_send = self.may_send_at = now
