"""Is the peer there: suspect before down, down sooner where its connection broke, and back at once when heard."""

from __future__ import annotations

import itertools

import pytest

from exod.core.base.errors import IllegalMoveError
from exod.core.base.journal import Journal
from exod.core.pair.peer_liveness import DOWN_AFTER_BROKEN_S, DOWN_AFTER_S, TRANSITIONS, PeerLiveness, Sign
from exod.model import NodeId, NodeState

SUSPECT_AFTER_S, BEAT_S = 0.4, 0.05
PEER = NodeId("b")


def heard_peer() -> PeerLiveness:
    peer = PeerLiveness(PEER, Journal(), 0.0)
    assert peer.state is NodeState.SUSPECT
    peer.hear(1.0, 0.075)
    assert peer.return_if_heard(1.0, SUSPECT_AFTER_S, 1.0)
    return peer


def test_a_stop_of_two_seconds_makes_a_peer_suspect_at_most() -> None:
    peer = heard_peer()
    states = set()
    for tick in range(0, 200, 5):
        peer.judge(1.0 + tick / 100, SUSPECT_AFTER_S, BEAT_S)
        states.add(peer.state)
    assert states == {NodeState.UP, NodeState.SUSPECT}
    peer.hear(3.1, 0.075)
    assert peer.return_if_heard(3.1, SUSPECT_AFTER_S, 3.1)
    assert peer.state is NodeState.UP


def test_what_waited_here_for_long_brings_nobody_back() -> None:
    peer = heard_peer()
    assert peer.judge(3.0, SUSPECT_AFTER_S, BEAT_S)
    turned_by = []
    for tenth in range(11, 31):
        at = tenth / 10 + 0.05
        peer.hear(at, 0.075)
        if peer.return_if_heard(at, SUSPECT_AFTER_S, 3.0):
            turned_by.append(at)
        assert not peer.judge(3.0, SUSPECT_AFTER_S, BEAT_S), f"turned by what came at {at:g}"
    assert turned_by == [2.65]


def test_silence_for_long_is_down_and_sooner_with_a_broken_connection() -> None:
    for broken, after in ((False, DOWN_AFTER_S), (True, DOWN_AFTER_BROKEN_S)):
        peer = heard_peer()
        peer.connection_broken = broken
        assert peer.judge(1.01 + SUSPECT_AFTER_S, SUSPECT_AFTER_S, BEAT_S)
        assert not peer.judge(1.0 + after - 0.01, SUSPECT_AFTER_S, BEAT_S)
        assert peer.deadline(SUSPECT_AFTER_S, BEAT_S) == pytest.approx(1.0 + after)
        assert peer.judge(1.0 + after, SUSPECT_AFTER_S, BEAT_S)
        assert peer.state is NodeState.DOWN


def test_our_own_lag_is_not_the_peers_silence() -> None:
    peer = heard_peer()
    peer.forgive(5.0, 6.0)
    assert not peer.judge(6.2, SUSPECT_AFTER_S, BEAT_S)


def test_a_goodbye_is_down_at_once_and_a_new_life_is_awaited() -> None:
    peer = heard_peer()
    assert peer.leave(2.0)
    assert peer.state is NodeState.DOWN
    assert not peer.leave(2.0)
    peer.restart(3.0)
    assert peer.state is NodeState.SUSPECT
    assert not peer.left


def test_a_gap_begins_a_new_stretch_of_being_audible() -> None:
    peer = heard_peer()
    peer.hear(1.05, 0.075)
    assert peer.audible_since == 1.0
    peer.hear(1.3, 0.075)
    assert peer.audible_since == 1.3


@pytest.mark.parametrize(("state", "sign"), list(itertools.product(NodeState, Sign)))
def test_every_state_and_sign_is_a_transition_or_an_illegal_move(state: NodeState, sign: Sign) -> None:
    peer = PeerLiveness(PEER, Journal(), 0.0)
    peer.state = state
    after = TRANSITIONS.get((state, sign))
    if after is None:
        with pytest.raises(IllegalMoveError):
            peer._apply(sign, 1.0, "test")
    else:
        peer._apply(sign, 1.0, "test")
        assert peer.state is after


def test_each_change_of_its_state_is_in_the_history_also_that_of_a_new_life() -> None:
    journal = Journal()
    peer = PeerLiveness(PEER, journal, 0.0)
    peer.hear(1.0, 0.075)
    peer.return_if_heard(1.0, SUSPECT_AFTER_S, 1.0)
    peer.leave(2.0)
    peer.restart(3.0)
    told = [(one.at, one.decision, one.inputs["before"]) for one in journal.history()]
    assert told == [
        (1.0, "peer is up", NodeState.SUSPECT),
        (2.0, "peer is down", NodeState.UP),
        (3.0, "peer is suspect", NodeState.DOWN),
    ]
