"""One path's state: the table, what moves it, and what it takes to move it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.core.base.config import CoreConfig
from exod.core.base.errors import IllegalMoveError
from exod.core.base.journal import Journal
from exod.core.probe.candidate_paths import candidate_paths
from exod.core.probe.datagram import Datagram, RouteVerdict
from exod.core.probe.path import (
    INIT_SAMPLES,
    NEAR_STREAK,
    RECOVER_HOLD_S,
    SLOW_STREAK,
    TRANSITIONS,
    Evidence,
    Path,
    combined,
)
from exod.core.probe.path_order import Band
from exod.core.probe.replay_window import SequenceWindow
from exod.model import PathState
from tests.core.pair.cards import card

ME, PEER = card(1, "bridge0=10.0.0.1/24"), card(2, "bridge0=10.0.0.2/24")


class Heard:
    """A path with a peer at its other end that answers as fast and as often as the test says."""

    def __init__(self, kind: str = "bridge0") -> None:
        me, peer = card(1, f"{kind}=10.0.0.1/24"), card(2, f"{kind}=10.0.0.2/24")
        self.now = 100.0
        (candidate,) = candidate_paths(me, peer)
        self.journal = Journal()
        self.path = Path(candidate, CoreConfig(), self.journal, SequenceWindow(), 0, self.now)
        self.seq = 0

    def exchange(self, rtt_ms: float, *, lose: bool = False) -> None:
        """One beat: our datagram goes out, the peer's comes back with its echo, unless it is lost."""
        self.now += 0.05
        mine = self.path.next_seq()
        self.path.stamp(mine, self.now - rtt_ms / 1e3)
        self.seq += 1
        if lose or not self.path.window.accept(self.seq):
            return
        self.path.hear(
            Datagram(
                sender=PEER.id,
                destination=ME.id,
                sender_incarnation=1,
                destination_incarnation=1,
                seq=self.seq,
                order=self.seq,
                source_address="10.0.0.2",
                target_address="10.0.0.1",
                interval_ms=50,
                echo_seq=mine,
            ),
            self.now,
        )

    def beats(self, count: int, rtt_ms: float) -> None:
        for _ in range(count):
            self.exchange(rtt_ms)


def test_a_path_is_up_after_enough_round_trips_and_not_before() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES - 1, 0.4)
    assert heard.path.own is PathState.INIT
    heard.beats(1, 0.4)
    assert heard.path.own is PathState.UP


def test_a_slow_path_is_degraded_from_its_first_full_window() -> None:
    heard = Heard("utun4")
    heard.beats(9, 44.0)
    assert heard.path.own is PathState.INIT
    heard.beats(1, 44.0)
    assert heard.path.own is PathState.DEGRADED
    assert heard.path.cause == "floor 44.0 ms is over 5 ms"


def test_one_quick_sample_in_a_streak_keeps_a_path_up() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES, 0.4)
    for _ in range(5):
        heard.beats(SLOW_STREAK - 1, 8.0)
        heard.beats(1, 4.0)
    assert heard.path.own is PathState.UP
    heard.beats(SLOW_STREAK, 8.0)
    assert heard.path.own is PathState.DEGRADED


def test_the_nearer_to_the_limit_the_longer_a_streak_must_be() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES, 0.4)
    heard.beats(NEAR_STREAK - 1, 7.4)
    assert heard.path.own is PathState.UP
    heard.beats(1, 7.4)
    assert heard.path.own is PathState.DEGRADED


def test_degraded_is_left_after_two_seconds_below_the_lower_limit() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES, 0.4)
    heard.beats(SLOW_STREAK, 20.0)
    heard.beats(100, 4.0)
    assert heard.path.own is PathState.DEGRADED, "between the limits it stays"
    began = heard.now
    while heard.path.own is PathState.DEGRADED:
        heard.beats(1, 0.4)
    assert heard.now - began == pytest.approx(RECOVER_HOLD_S, abs=0.15)


def test_lasting_loss_degrades_and_an_outage_that_is_over_does_not() -> None:
    heard = Heard()
    heard.beats(60, 0.4)
    for _ in range(15):
        heard.exchange(0.4, lose=True)
    heard.beats(60, 0.4)
    assert heard.path.own is PathState.UP
    for beat in range(120):
        heard.exchange(0.4, lose=beat % 3 == 0)
    assert heard.path.own is PathState.DEGRADED
    heard.path.combine(heard.now)
    heard.path.peer_own = PathState.UP
    heard.path.combine(heard.now)
    assert heard.path.band is Band.LOSSY


def test_from_dead_the_way_leads_through_new_measurements() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES, 0.4)
    heard.path.apply(Evidence.SILENT, heard.now, "silent")
    heard.beats(1, 0.4)
    assert heard.path.own is PathState.INIT
    assert heard.path.rtt.samples == 1, "old samples are forgotten"
    heard.beats(INIT_SAMPLES - 1, 0.4)
    assert heard.path.own is PathState.UP


def test_a_cable_is_silent_sooner_than_a_radio() -> None:
    assert Heard("bridge0").path.silence_limit_s == pytest.approx(0.2)
    assert Heard("en0").path.silence_limit_s == pytest.approx(0.2)
    assert Heard("en1").path.silence_limit_s == pytest.approx(0.5)
    assert Heard("utun4").path.silence_limit_s == pytest.approx(0.5)


def test_silence_is_judged_by_the_pace_that_was_announced() -> None:
    path = Heard().path
    path.peer_interval_s = 0.25
    assert path.silence_limit_s == pytest.approx(1.0)


def test_a_route_is_right_only_where_it_leaves_from_the_local_address() -> None:
    path = Heard().path
    path.routed("10.0.0.1", 1.0)
    assert path.route is RouteVerdict.RIGHT
    assert not path.eligible, "the other end has its own check"
    path.peer_route = RouteVerdict.RIGHT
    assert path.eligible
    path.routed(None, 2.0)
    assert path.ineligible


@pytest.mark.parametrize(("state", "evidence"), list(itertools.product(PathState, Evidence)))
def test_every_state_and_evidence_is_a_transition_or_an_illegal_move(state: PathState, evidence: Evidence) -> None:
    path = Heard().path
    path.own = state
    after = TRANSITIONS.get((state, evidence))
    if after is None:
        with pytest.raises(IllegalMoveError):
            path.apply(evidence, 1.0, "test")
        assert path.own is state
    else:
        path.apply(evidence, 1.0, "test")
        assert path.own is after


def test_a_change_of_state_is_a_decision_and_an_illegal_one_tells_what_led_there() -> None:
    heard = Heard()
    heard.beats(INIT_SAMPLES, 0.4)
    heard.path.silent(heard.now + 0.2, "silent for 200 ms while en0 was heard")
    decisions = [one.decision for one in heard.journal.history()]
    assert decisions == ["path is up at this end", "path is dead at this end"]
    with pytest.raises(IllegalMoveError) as caught:
        heard.path.silent(heard.now + 0.4, "again")
    assert caught.value.story == heard.journal.history()
    assert "silent for 200 ms while en0 was heard" in str(caught.value)
    assert heard.journal.history()[-1].inputs["before"] is PathState.UP


@given(st.sampled_from(PathState), st.sampled_from(PathState))
def test_both_ends_call_a_path_alike(one: PathState, other: PathState) -> None:
    assert combined(one, other) is combined(other, one)
    assert (combined(one, other) is PathState.UP) is (one is other is PathState.UP)
    if PathState.DEAD in (one, other):
        assert combined(one, other) is PathState.DEAD


def test_a_path_that_begins_again_says_so_in_the_history() -> None:
    heard = Heard()
    for _ in range(INIT_SAMPLES + 1):
        heard.exchange(0.4)
    before = heard.path.own
    assert before is not PathState.INIT
    heard.path.restart(SequenceWindow(), heard.now)
    newest = heard.journal.history()[-1]
    assert (newest.decision, newest.subject, newest.inputs["before"]) == (
        "path begins again",
        heard.path.candidate.path,
        before,
    )
    heard.path.restart(SequenceWindow(), heard.now)
    assert heard.journal.history()[-1] is newest, "nothing changed"
