"""Which key is in force and who is given it: the decisions alone, without a connection."""

from __future__ import annotations

import pytest

from exod.core.membership.membership import (
    MAX_INVITATIONS,
    MAX_RETIRED,
    RETIRED_S,
    AdmitGuest,
    AdoptKey,
    ClusterKey,
    Commands,
    Membership,
    MembershipRecord,
    OfferKey,
    RefusePeer,
    RemoveAgain,
    SaveRecord,
)
from exod.model import MAX_COUNTER, NodeId

A, B, C = NodeId("a" * 16), NodeId("b" * 16), NodeId("c" * 16)
PINS = {A: "a" * 64, B: "b" * 64, C: "c" * 64}
FIRST, SECOND, THIRD, OTHER = b"1" * 32, b"2" * 32, b"3" * 32, b"9" * 32
NOW = 1_000_000.0


def member(node: NodeId) -> Membership:
    """One of three that know each other and hold the first key."""
    pins = {peer: pin for peer, pin in PINS.items() if peer != node}
    return Membership(node, MembershipRecord(ClusterKey(0, FIRST, "a"), pins=pins))


def gives(giver: Membership, taker: Membership, now: float = NOW) -> Commands:
    """`giver` sends its key to `taker`."""
    node = giver._me
    return taker.offered(node, PINS[node], giver.current, dict(giver.record.removed), now)


def refusals(commands: Commands) -> list[str]:
    return [one.text for one in commands if isinstance(one, RefusePeer)]


def test_a_rotation_reaches_every_member_and_retires_the_old_key() -> None:
    a, b, c = member(A), member(B), member(C)
    assert a.rotate(SECOND, "studio1", (), NOW) == [AdoptKey(ClusterKey(1, SECOND, "studio1"), ())]
    assert gives(a, b) == [AdoptKey(ClusterKey(1, SECOND, "studio1"), ())]
    assert gives(b, c) == [AdoptKey(ClusterKey(1, SECOND, "studio1"), ())]
    assert [key.key for key in c.retired(NOW)] == [FIRST]
    assert c.holders == {B}
    assert a.away() == {B, C}
    a.holds(B)
    assert gives(c, a) == []
    assert a.away() == frozenset()


def test_a_member_that_was_away_is_given_the_key_for_a_week_by_its_old_one_and_its_pin() -> None:
    a = member(A)
    a.rotate(SECOND, "studio1", (), NOW)
    a.rotate(THIRD, "studio1", (), NOW + 60)
    assert a.asks(B, PINS[B], FIRST, NOW + RETIRED_S - 1) == [OfferKey(B)]
    assert a.asks(B, PINS[B], SECOND, NOW + RETIRED_S + 1) == [OfferKey(B)]
    assert refusals(a.asks(B, PINS[B], FIRST, NOW + RETIRED_S + 1)) == [
        "its key was retired too long ago: invite it anew"
    ]


def test_the_old_key_alone_is_no_proof() -> None:
    a = member(A)
    a.rotate(SECOND, "studio1", (), NOW)
    assert refusals(a.asks(B, "d" * 64, FIRST, NOW))
    assert refusals(a.asks(NodeId("d" * 16), "d" * 64, FIRST, NOW))


def test_a_removed_node_is_given_no_key_by_anybody_though_it_has_the_old_one() -> None:
    a, b = member(A), member(B)
    commands = a.rotate(SECOND, "studio1", (C,), NOW)
    assert commands == [AdoptKey(ClusterKey(1, SECOND, "studio1"), (C,))]
    assert gives(a, b) == [AdoptKey(ClusterKey(1, SECOND, "studio1"), (C,))]
    for one in (a, b):
        assert refusals(one.asks(C, PINS[C], FIRST, NOW)) == ["it was removed from the cluster"]
        assert C not in one.away()
    b.rotate(THIRD, "studio2", (), NOW)
    assert refusals(b.asks(C, PINS[C], FIRST, NOW)) == ["it was removed from the cluster"]


def test_a_removed_node_that_was_invited_again_is_a_member_like_others() -> None:
    a = member(A)
    a.rotate(SECOND, "studio1", (C,), NOW)
    assert a.greeted(C, PINS[C], 0, SECOND) == [SaveRecord()]
    a.rotate(THIRD, "studio1", (), NOW)
    assert a.asks(C, PINS[C], SECOND, NOW) == [OfferKey(C)]


def test_a_key_is_taken_only_from_a_node_that_is_known() -> None:
    b = member(B)
    commands = b.offered(A, "d" * 64, ClusterKey(9, OTHER, "evil"), {}, NOW)
    assert refusals(commands)
    assert b.current.key == FIRST


def test_of_two_rotations_at_once_one_wins_everywhere() -> None:
    a, b, c = member(A), member(B), member(C)
    a.rotate(SECOND, "studio1", (), NOW)
    b.rotate(THIRD, "studio2", (), NOW)
    assert gives(a, c)
    assert gives(b, c)
    assert gives(b, a)
    assert gives(a, b) == []
    assert {one.current.key for one in (a, b, c)} == {THIRD}


def test_an_older_offer_is_answered_with_the_newer_key() -> None:
    a, b = member(A), member(B)
    a.rotate(SECOND, "studio1", (), NOW)
    assert gives(b, a) == [OfferKey(B)]


def test_a_removal_that_lost_against_another_rotation_is_repeated() -> None:
    """The other one did not know of the removal, and has given its key to the removed node."""
    a, b = member(A), member(B)
    a.rotate(SECOND, "studio1", (C,), NOW)
    b.rotate(THIRD, "studio2", (), NOW)
    assert gives(b, a) == [AdoptKey(ClusterKey(1, THIRD, "studio2"), ()), RemoveAgain((C,))]
    a.rotate(OTHER, "studio1", (C,), NOW)
    assert gives(a, b) == [AdoptKey(ClusterKey(2, OTHER, "studio1"), (C,))]
    assert refusals(b.asks(C, PINS[C], THIRD, NOW)) == ["it was removed from the cluster"]


def test_the_first_node_key_that_a_node_shows_is_the_one_it_is_known_by() -> None:
    a = Membership(A, MembershipRecord(ClusterKey(0, FIRST, "a")))
    assert a.greeted(B, PINS[B], 0, FIRST) == [SaveRecord()]
    assert a.greeted(B, PINS[B], 0, FIRST) == []
    assert refusals(a.greeted(B, "d" * 64, 0, FIRST))
    assert a.record.pins == {B: PINS[B]}
    assert a.forget(B) == [SaveRecord()]
    assert a.greeted(B, "d" * 64, 0, FIRST) == [SaveRecord()]


def test_a_node_that_joined_late_learns_the_number_of_its_key() -> None:
    a = member(A)
    assert a.greeted(B, PINS[B], 7, FIRST) == [SaveRecord()]
    a.rotate(SECOND, "studio1", (), NOW)
    assert a.current.number == 8


def test_what_a_retired_connection_says_of_numbers_counts_for_nothing() -> None:
    a = member(A)
    a.rotate(SECOND, "studio1", (), NOW)
    assert a.greeted(B, PINS[B], 99, FIRST) == []
    assert a.current.number == 1


def test_nobody_can_claim_a_number_after_which_no_key_could_be_made() -> None:
    """Else a member could make sure that it is never removed."""
    a = member(A)
    assert a.greeted(B, PINS[B], MAX_COUNTER, FIRST) == []
    assert refusals(a.offered(B, PINS[B], ClusterKey(MAX_COUNTER, OTHER, "evil"), {}, NOW))
    assert a.current == ClusterKey(0, FIRST, "a")


def test_an_invitation_for_one_is_for_the_first_who_redeems_it() -> None:
    a = member(A)
    secret = b"s" * 16
    assert a.invite(secret, 600, True, NOW) == [SaveRecord()]
    assert isinstance(a.redeemed(C, secret, PINS[C], NOW)[-1], AdmitGuest)
    assert isinstance(a.redeemed(C, secret, PINS[C], NOW + 5)[-1], AdmitGuest)  # its connection broke
    assert refusals(a.redeemed(B, secret, PINS[B], NOW + 5)) == [
        "the invitation was for one node, and another has used it"
    ]


@pytest.mark.parametrize("once", [True, False])
def test_an_invitation_ends_with_its_time_and_with_a_rotation(once: bool) -> None:
    a = member(A)
    secret = b"s" * 16
    a.invite(secret, 600, once, NOW)
    assert refusals(a.redeemed(C, secret, PINS[C], NOW + 601))
    assert not refusals(a.redeemed(C, secret, PINS[C], NOW + 599))
    a.rotate(SECOND, "studio1", (), NOW)
    assert refusals(a.redeemed(C, secret, PINS[C], NOW))


def test_what_is_kept_has_bounds() -> None:
    a = member(A)
    for number in range(MAX_INVITATIONS + 5):
        a.invite(bytes([number]) * 16, 600, False, NOW)
    assert len(a.record.invitations) == MAX_INVITATIONS
    for number in range(MAX_RETIRED + 5):
        a.rotate(bytes([number]) * 32, "studio1", (NodeId(f"{number:016x}"),), NOW)
    assert len(a.record.retired) == MAX_RETIRED
    assert len(a.record.removed) <= MAX_RETIRED
