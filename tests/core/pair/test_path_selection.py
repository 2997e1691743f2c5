"""The selector: each of the four movers with its patience, and stillness where nothing is gained."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exod.core.base.config import CoreConfig
from exod.core.pair.hold_up import HOLD_UP_MAX_S
from exod.core.pair.path_selection import (
    DWELL_S,
    FIRST_PATIENCE_S,
    VOLUNTARY,
    Cause,
    PathChoice,
    PathSelector,
)
from exod.core.pair.token_bucket import BUCKET, BUCKET_WINDOW_S
from exod.core.probe.path_order import Band, PathRating, grade, order
from exod.model import Kind, PathId, PathState

CABLE, LAN, VPN = (PathId(f"10.0.{place}.1-10.0.{place}.2") for place in range(3))
HOLD_S = CoreConfig().hold_up_s


def rating(path: PathId, **changes: object) -> PathRating:
    kinds = {CABLE: (Kind.THUNDERBOLT, 0.4), LAN: (Kind.ETHERNET, 0.2), VPN: (Kind.VPN, 44.0)}
    kind, cost_ms = kinds[path]
    slow = path == VPN
    made = PathRating(
        path=path,
        name={CABLE: "bridge0", LAN: "en0", VPN: "utun4"}[path],
        state=PathState.DEGRADED if slow else PathState.UP,
        band=Band.SLOW if slow else Band.FAST,
        kind=kind,
        eligible=True,
        undecided=False,
        audible=True,
        fresh=True,
        cost_ms=cost_ms,
    )
    return msgspec.structs.replace(made, **changes)


def dead(path: PathId) -> PathRating:
    return rating(path, state=PathState.DEAD, band=Band.FAST, audible=False)


def slow(path: PathId) -> PathRating:
    return rating(path, state=PathState.DEGRADED, band=Band.SLOW, cost_ms=40.0)


class Pair:
    """A selector with the selection that it made, as a link keeps it."""

    def __init__(self) -> None:
        self.selector = PathSelector(CoreConfig())
        self.current: PathId | None = None

    def decide(self, now: float, *ratings: PathRating) -> PathChoice | None:
        choice = self.selector.decide(self.current, ratings, now)
        if choice is not None:
            self.current = choice.path
        return choice


def settled_on_cable() -> Pair:
    pair = Pair()
    pair.decide(0.0, rating(CABLE), rating(LAN), rating(VPN))
    assert pair.current == CABLE
    return pair


def test_the_cable_wins_although_ethernet_is_quicker() -> None:
    assert order(rating(CABLE)) < order(rating(LAN)) < order(rating(VPN))


def test_the_first_responder_waits_for_the_others() -> None:
    pair = Pair()
    unmeasured = rating(CABLE, state=PathState.INIT, undecided=True)
    assert pair.decide(0.0, unmeasured, rating(VPN)) is None
    assert pair.selector.deadline == FIRST_PATIENCE_S
    choice = pair.decide(0.3, rating(CABLE), rating(VPN))
    assert choice is not None
    assert (choice.path, choice.cause) == (CABLE, Cause.FIRST)


def test_a_candidate_that_never_answers_is_not_waited_for_long() -> None:
    pair = Pair()
    silent = rating(CABLE, state=PathState.INIT, undecided=True)
    assert pair.decide(0.0, silent, rating(VPN)) is None
    choice = pair.decide(FIRST_PATIENCE_S, silent, rating(VPN))
    assert choice is not None
    assert choice.path == VPN


def test_a_dead_path_is_left_at_once() -> None:
    pair = settled_on_cable()
    choice = pair.decide(0.1, dead(CABLE), rating(LAN), rating(VPN))
    assert choice is not None
    assert (choice.path, choice.cause) == (LAN, Cause.DEATH)


def test_of_two_that_went_together_neither_is_taken() -> None:
    pair = settled_on_cable()
    choice = pair.decide(5.0, dead(CABLE), rating(LAN, audible=False), rating(VPN))
    assert choice is not None
    assert choice.path == VPN


def test_a_peer_that_comes_back_is_waited_for_on_the_path_in_use() -> None:
    pair = settled_on_cable()
    assert pair.decide(5.0, dead(CABLE), dead(LAN), dead(VPN)) is None
    measuring = rating(CABLE, state=PathState.INIT, undecided=True)
    assert pair.decide(6.0, measuring, rating(LAN), rating(VPN)) is None, "the first that answers does not win"
    assert pair.decide(6.1, rating(CABLE), rating(LAN), rating(VPN)) is None
    assert pair.current == CABLE
    choice = pair.decide(8.0, dead(CABLE), rating(LAN), rating(VPN))
    assert choice is not None
    assert (choice.cause, choice.reason) == (Cause.DEATH, "bridge0 is dead"), "from here on as ever"


def test_a_peer_that_comes_back_without_its_cable_is_taken_on_the_best_of_the_rest() -> None:
    pair = settled_on_cable()
    assert pair.decide(5.0, dead(CABLE), dead(LAN), dead(VPN)) is None
    measuring = rating(CABLE, state=PathState.INIT, undecided=True)
    assert pair.decide(6.0, measuring, rating(LAN), rating(VPN)) is None
    choice = pair.decide(6.0 + FIRST_PATIENCE_S, measuring, rating(LAN), rating(VPN))
    assert choice is not None
    assert (choice.path, choice.cause) == (LAN, Cause.FIRST)


def test_when_nothing_works_nothing_is_switched() -> None:
    pair = settled_on_cable()
    assert pair.decide(5.0, dead(CABLE), dead(LAN), dead(VPN)) is None


def test_a_slow_cable_is_left_for_a_better_band_only() -> None:
    pair = settled_on_cable()
    assert pair.decide(5.0, slow(CABLE), slow(LAN), rating(VPN)) is None
    assert pair.decide(9.0, slow(CABLE), rating(VPN)) is None
    pair = settled_on_cable()
    pair.decide(4.0, rating(CABLE), rating(LAN))
    choice = pair.decide(5.0, slow(CABLE), rating(LAN))
    assert choice is not None
    assert (choice.path, choice.cause) == (LAN, Cause.DEGRADED)


def test_a_lossy_cable_is_left_for_a_slow_path() -> None:
    pair = settled_on_cable()
    lossy = rating(CABLE, state=PathState.DEGRADED, band=Band.LOSSY)
    pair.decide(4.0, rating(CABLE), rating(VPN))
    choice = pair.decide(5.0, lossy, rating(VPN))
    assert choice is not None
    assert choice.path == VPN


def test_the_target_must_be_measured_afresh() -> None:
    pair = settled_on_cable()
    pair.decide(4.0, rating(CABLE), rating(LAN))
    assert pair.decide(5.0, slow(CABLE), rating(LAN, fresh=False)) is None
    assert pair.selector.deadline is not None
    assert pair.decide(5.1, slow(CABLE), rating(LAN)) is not None


def test_no_voluntary_switch_within_the_dwell() -> None:
    pair = settled_on_cable()
    assert pair.decide(DWELL_S / 2, slow(CABLE), rating(LAN)) is None
    assert pair.selector.deadline == DWELL_S
    assert pair.decide(DWELL_S, slow(CABLE), rating(LAN)) is not None


def test_the_cable_is_taken_back_after_its_hold_up() -> None:
    pair = settled_on_cable()
    pair.decide(5.0, dead(CABLE), rating(LAN))
    assert pair.decide(10.0, rating(CABLE), rating(LAN)) is None
    assert pair.selector.deadline == 10.0 + HOLD_S
    assert pair.decide(10.0 + HOLD_S - 0.01, rating(CABLE), rating(LAN)) is None
    choice = pair.decide(10.0 + HOLD_S, rating(CABLE), rating(LAN))
    assert choice is not None
    assert (choice.path, choice.cause, choice.free) == (CABLE, Cause.UPGRADE, True)


def test_the_hold_up_doubles_with_each_relapse_up_to_its_limit() -> None:
    pair = settled_on_cable()
    now, holds = 5.0, []
    for _ in range(9):
        pair.decide(now, dead(CABLE), rating(LAN))
        now += 1.0
        pair.decide(now, rating(CABLE), rating(LAN))
        holds.append(pair.selector.hold_up_s(CABLE))
        now += 1.0
    assert holds[:4] == [HOLD_S, 2 * HOLD_S, 4 * HOLD_S, 8 * HOLD_S]
    assert max(holds) == HOLD_UP_MAX_S


def test_a_path_that_held_long_has_its_relapses_forgiven() -> None:
    pair = settled_on_cable()
    for now in (5.0, 7.0):
        pair.decide(now, dead(CABLE), rating(LAN))
        pair.decide(now + 1.0, rating(CABLE), rating(LAN))
    assert pair.selector.hold_up_s(CABLE) == 2 * HOLD_S
    pair.decide(100.0, dead(CABLE), rating(LAN))
    assert pair.selector.hold_up_s(CABLE) == HOLD_S


def test_only_three_switches_in_ten_minutes_that_no_death_caused() -> None:
    pair = settled_on_cable()
    switches = 0
    for step in range(500):
        now = 4.0 + step
        cable = slow(CABLE) if step // 10 % 2 else rating(CABLE)
        switches += pair.decide(now, cable, rating(LAN)) is not None
    assert switches == BUCKET


def test_jitter_inside_a_grade_changes_nothing() -> None:
    pair = settled_on_cable()
    for step in range(200):
        assert pair.decide(3.0 + step, rating(CABLE, cost_ms=0.1 + step % 5), rating(LAN)) is None


def test_a_route_that_turned_wrong_is_left_and_none_is_selected_where_nothing_is_eligible() -> None:
    pair = settled_on_cable()
    choice = pair.decide(5.0, rating(CABLE, eligible=False), rating(LAN))
    assert choice is not None
    assert (choice.path, choice.cause) == (LAN, Cause.ROUTE)
    choice = pair.decide(6.0, rating(CABLE, eligible=False), rating(LAN, eligible=False))
    assert choice is not None
    assert choice.path is None


def test_a_pin_holds_and_ends() -> None:
    pair = settled_on_cable()
    pair.selector.pin(VPN, until=20.0)
    choice = pair.decide(5.0, rating(CABLE), rating(LAN), rating(VPN))
    assert choice is not None
    assert (choice.path, choice.cause) == (VPN, Cause.PIN)
    assert pair.decide(19.0, rating(CABLE), rating(LAN), rating(VPN)) is None
    assert pair.decide(30.0, rating(CABLE), rating(LAN), rating(VPN)) is not None


class Selecting(RuleBasedStateMachine):
    """Any history of three paths: the selector keeps its promises in each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pair = Pair()
        self.paths = {path: dead(path) for path in (CABLE, LAN, VPN)}
        self.switched_at = -1e9
        self.spent: list[float] = []

    @rule(
        path=st.sampled_from([CABLE, LAN, VPN]),
        state=st.sampled_from(PathState),
        band=st.sampled_from(Band),
        eligible=st.sampled_from([True, True, True, False]),
        fresh=st.sampled_from([True, True, False]),
    )
    def change(self, path: PathId, state: PathState, band: Band, eligible: bool, fresh: bool) -> None:
        band = band if state is PathState.DEGRADED else Band.FAST
        self.paths[path] = rating(path, state=state, band=band, eligible=eligible, fresh=fresh)
        self._decide()

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0, 3.0, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._decide()

    def _decide(self) -> None:
        before = self.pair.current
        ratings = list(self.paths.values())
        choice = self.pair.decide(self.now, *ratings)
        if choice is None:
            return
        assert choice.path != before
        if choice.path is not None:
            assert self.paths[choice.path].usable, "a path that does not work was selected"
        if choice.cause in VOLUNTARY:
            assert before is not None
            assert choice.path is not None
            assert grade(self.paths[choice.path]) < grade(self.paths[before]), "a switch to a worse path"
            assert self.now - self.switched_at >= DWELL_S
            if not choice.free:
                self.spent = [*(at for at in self.spent if at > self.now - BUCKET_WINDOW_S), self.now]
                assert len(self.spent) <= BUCKET
        self.switched_at = self.now

    @invariant()
    def a_deadline_lies_ahead(self) -> None:
        deadline = self.pair.selector.deadline
        assert deadline is None or deadline > self.now or self.pair.current is None or deadline >= self.now

    def teardown(self) -> None:
        """If one path stays good for long enough, it is selected."""
        self.paths = {path: dead(path) for path in (CABLE, LAN, VPN)} | {CABLE: rating(CABLE)}
        for _ in range(3):
            self._decide()
            self.now += BUCKET_WINDOW_S + HOLD_UP_MAX_S
        self._decide()
        assert self.pair.current == CABLE


TestSelecting = Selecting.TestCase
TestSelecting.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
