"""Candidate paths: both ends find the same ones, and only those that can be one subnet's or a named route's."""

from __future__ import annotations

import ipaddress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from exod.core.probe.candidate_paths import candidate_paths
from exod.core.probe.datagram import MAX_PATHS
from exod.model import Kind, LocalAddress, NodeCard, NodeId
from tests.core.pair.cards import card

addresses = st.builds(
    LocalAddress,
    interface=st.sampled_from(["bridge0", "en0", "en1", "utun4", "lo0"]),
    kind=st.sampled_from(Kind),
    address=st.builds(
        lambda net, host: f"{net}.{host}",
        st.sampled_from(["10.0.0", "10.0.1", "192.168.1", "169.254.7", "127.0.0", "100.64.0", "0.0.0", "224.0.0"]),
        st.integers(0, 6),
    ),
    prefix=st.sampled_from([8, 16, 24, 30, 32]),
)
cards = st.lists(addresses, max_size=8).map(tuple)
routes = st.lists(st.builds(lambda host: f"10.0.1.{host}", st.integers(0, 6)), max_size=3).map(tuple)


def nodes(mine: tuple[LocalAddress, ...], theirs: tuple[LocalAddress, ...]) -> tuple[NodeCard, NodeCard]:
    one, other = card(1), card(2)
    return msgspec.structs.replace(one, addresses=mine), msgspec.structs.replace(other, addresses=theirs)


@given(cards, cards, routes)
def test_both_ends_find_the_same_paths_in_the_same_order(
    mine: tuple[LocalAddress, ...], theirs: tuple[LocalAddress, ...], named: tuple[str, ...]
) -> None:
    one, other = nodes(mine, theirs)
    one = msgspec.structs.replace(one, pair_routes=named)
    here, there = candidate_paths(one, other), candidate_paths(other, one)
    assert [candidate.path for candidate in here] == [candidate.path for candidate in there]
    assert [(candidate.kind, candidate.routed) for candidate in here] == [
        (candidate.kind, candidate.routed) for candidate in there
    ]
    for mine_, theirs_ in zip(here, there, strict=True):
        assert (mine_.local.address, mine_.remote.address) == (theirs_.remote.address, theirs_.local.address)
    assert len(here) <= MAX_PATHS
    assert len({candidate.path for candidate in here}) == len(here)


@given(cards, cards)
def test_a_path_lies_in_one_subnet_of_both_ends(
    mine: tuple[LocalAddress, ...], theirs: tuple[LocalAddress, ...]
) -> None:
    for candidate in candidate_paths(*nodes(mine, theirs)):
        local, remote = candidate.local, candidate.remote
        if candidate.routed:
            assert (local.kind, remote.kind) == (Kind.VPN, Kind.VPN), "only an overlay spans subnets unasked"
            continue
        if not ipaddress.IPv4Address(local.address).is_loopback:
            assert ipaddress.IPv4Address(remote.address) in local.network
            assert ipaddress.IPv4Address(local.address) in remote.network
            assert local.address != remote.address
        assert not ipaddress.IPv4Address(local.address).is_unspecified
        assert not ipaddress.IPv4Address(local.address).is_multicast


def test_a_path_is_no_better_than_its_worse_end() -> None:
    (path,) = candidate_paths(card(1, "bridge0=10.0.0.1/24"), card(2, "xx0=10.0.0.2/24"))
    assert path.kind is Kind.OTHER


def test_private_bridges_that_both_hosts_number_alike_are_no_path() -> None:
    docker = "xx0=172.17.0.1/16"
    assert candidate_paths(card(1, docker), card(2, docker)) == ()


def test_two_nodes_of_one_host_meet_on_loopback_by_their_ports() -> None:
    one, other = card(1, "lo0=127.0.0.1/8"), card(2, "lo0=127.0.0.1/8")
    assert candidate_paths(one, other) == ()
    (path,) = candidate_paths(one, msgspec.structs.replace(other, mesh_port=52510))
    assert path.path == "127.0.0.1-127.0.0.1"


def test_a_static_peer_behind_a_router_is_a_candidate_at_both_ends() -> None:
    one = card(1, "en0=192.168.1.5/24", pair_routes=("10.9.0.7",))
    other = card(2, "en0=10.9.0.7/24")
    (here,), (there,) = candidate_paths(one, other), candidate_paths(other, one)
    assert here.routed
    assert there.routed
    assert here.path == there.path == "192.168.1.5-10.9.0.7"


def test_an_address_on_two_interfaces_counts_once_with_the_better_kind() -> None:
    one = card(1, "en0=10.0.0.1/24", "bridge0=10.0.0.1/24")
    (path,) = candidate_paths(one, card(2, "bridge0=10.0.0.2/24"))
    assert path.local.interface == "bridge0"


def test_more_paths_than_a_datagram_reports_are_cut_by_kind() -> None:
    ports = [f"bridge0=169.254.1.{place}/16" for place in range(1, 6)]
    others = [f"bridge0=169.254.2.{place}/16" for place in range(1, 6)]
    one, other = card(1, *ports, "en0=10.0.0.1/24"), card(2, *others, "en0=10.0.0.2/24")
    found = candidate_paths(one, other)
    assert len(found) == MAX_PATHS
    assert {candidate.kind for candidate in found} == {Kind.THUNDERBOLT}


def test_a_node_of_another_id_names_the_path_alike() -> None:
    low, high = card(1, "en0=10.0.0.9/24"), card(2, "en0=10.0.0.1/24")
    assert low.id < high.id == NodeId("0000000000000002")
    assert candidate_paths(high, low)[0].path == "10.0.0.9-10.0.0.1"
