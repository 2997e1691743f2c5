"""The pair's register under every loss, doubling and reordering: it only grows, and both ends hold the same."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exod.core.base.errors import IllegalMoveError
from exod.core.pair.pair_agreement import PairAgreement
from exod.model import PathId, Selection

PATHS = [PathId(f"10.0.{place}.1-10.0.{place}.2") for place in range(3)]


def test_only_the_lower_node_selects() -> None:
    with pytest.raises(IllegalMoveError, match="only the lower node"):
        PairAgreement(selects=False, incarnation_low=1, incarnation_high=1).select(PATHS[0])


def test_a_selection_is_agreed_when_it_came_back() -> None:
    low = PairAgreement(selects=True, incarnation_low=1, incarnation_high=2)
    high = PairAgreement(selects=False, incarnation_low=1, incarnation_high=2)
    selection = low.select(PATHS[0])
    assert not low.agreed
    assert high.observe(selection)
    assert high.agreed
    assert low.observe(high.register)
    assert low.agreed


def test_a_selection_of_other_lives_changes_nothing() -> None:
    high = PairAgreement(selects=False, incarnation_low=5, incarnation_high=5)
    assert not high.observe(Selection(4, 5, 9, PATHS[0]))
    assert not high.observe(Selection(5, 6, 9, PATHS[0]))
    assert not high.observe(None)
    assert high.register is None


def test_the_upper_node_cannot_invent_a_selection() -> None:
    low = PairAgreement(selects=True, incarnation_low=1, incarnation_high=1)
    assert not low.observe(Selection(1, 1, 1, PATHS[0]))
    low.select(PATHS[0])
    assert not low.observe(Selection(1, 1, 2, PATHS[1]))
    assert not low.agreed


class PairOverABadNetwork(RuleBasedStateMachine):
    """Two registers, and a pool of everything that was ever said."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = [1, 1]
        self.pool: list[tuple[bool, Selection | None]] = []
        self._begin()

    def _begin(self) -> None:
        low, high = self.lives
        self.ends = (
            PairAgreement(selects=True, incarnation_low=low, incarnation_high=high),
            PairAgreement(selects=False, incarnation_low=low, incarnation_high=high),
        )
        self.seen = [0, 0]

    @rule(path=st.sampled_from(PATHS) | st.none())
    def select(self, path: PathId | None) -> None:
        self.ends[0].select(path)

    @rule(low=st.booleans())
    def say(self, low: bool) -> None:
        self.pool.append((not low, self.ends[0 if low else 1].register))

    @rule(data=st.data())
    def hear_anything_ever_said(self, data: st.DataObject) -> None:
        if self.pool:
            to_low, selection = data.draw(st.sampled_from(self.pool))
            self.ends[0 if to_low else 1].observe(selection)

    @rule(low=st.booleans())
    def restart(self, low: bool) -> None:
        self.lives[0 if low else 1] += 1
        self._begin()

    @invariant()
    def registers_only_grow(self) -> None:
        for place, end in enumerate(self.ends):
            seq = 0 if end.register is None else end.register.seq
            assert seq >= self.seen[place]
            self.seen[place] = seq

    @invariant()
    def agreed_ends_name_one_path(self) -> None:
        low, high = self.ends
        if low.register is not None:
            assert [low.register.incarnation_low, low.register.incarnation_high] == self.lives
        if low.agreed:
            assert high.register == low.register
        if high.register is not None and low.register is not None and high.register.seq == low.register.seq:
            assert high.register == low.register


TestPairOverABadNetwork = PairOverABadNetwork.TestCase
TestPairOverABadNetwork.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
