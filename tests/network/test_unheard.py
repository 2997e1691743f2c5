"""What a node says that hears nobody: a note where it may be alone, a reason where peers are configured."""

from __future__ import annotations

import pytest

from exod.alert_table import is_note
from exod.daemon_api.discovery_state import DiscoveryState, PeerFound
from exod.model import Kind, LocalAddress, NodeId
from exod.network.interface_rules import Verdict
from exod.network.unheard import AFTER_S, UnheardWatch

ME = NodeId("000000000000000a")
CALM = DiscoveryState(("10.77.0.1",), (), "")
BLOCKED = DiscoveryState(("10.77.0.1",), (), "", hears_itself=False)
FOUND = DiscoveryState(("10.77.0.1",), (PeerFound(NodeId("0" * 15 + "b"), "b", ("10.77.0.2",), 1, 1),), "")


def interface(name: str, kind: Kind, *addresses: str, up: bool = True) -> Verdict:
    usable = tuple(LocalAddress(name, kind, one, 24) for one in addresses)
    return Verdict(name, kind, "", up, tuple((one, 24) for one in addresses), usable, "")


def said(
    state: DiscoveryState | None = CALM,
    *,
    after_s: float = AFTER_S,
    peers: object = (),
    expected: tuple[str, ...] = (),
    remembered: tuple[str, ...] = (),
    interfaces: tuple[Verdict, ...] = (),
) -> dict[str, str]:
    times = iter((100.0, 100.0 + after_s))
    discovery = None if state is None else lambda: state
    unheard = UnheardWatch(
        ME, lambda: peers, discovery, expected, lambda: remembered, lambda: interfaces, lambda: next(times)
    )
    return {fact.code: fact.text for fact in unheard.facts()}


def test_one_mac_alone_gets_a_note_that_names_cluster_peers_after_half_a_minute() -> None:
    assert said(after_s=AFTER_S - 1) == {}
    found = said()
    assert list(found) == ["nobody_heard"]
    assert is_note("nobody_heard")
    assert "cluster.peers" in found["nobody_heard"]
    assert "studio2" in said(remembered=("studio2",))["nobody_heard"]


def test_multicast_that_is_blocked_here_is_said_to_be() -> None:
    text = said(BLOCKED)["nobody_heard"]
    assert "does not even hear its own multicast DNS" in text
    assert "UDP port 5353" in text


def test_peers_that_are_configured_and_never_answer_are_a_reason_until_one_does() -> None:
    found = said(expected=("10.0.0.2:52410",))
    assert list(found) == ["peers_unheard"]
    assert not is_note("peers_unheard")
    assert "10.0.0.2:52410" in found["peers_unheard"]
    assert said(expected=("10.0.0.2:52410",), peers={"b": 1}) == {}


@pytest.mark.parametrize("more", [{"peers": {"b": 1}}, {"state": FOUND}, {"state": None}])
def test_whoever_hears_somebody_or_wants_no_multicast_is_told_nothing(more: dict[str, object]) -> None:
    assert said(**more) == {}  # type: ignore[arg-type]


def test_a_cable_without_an_address_is_mentioned_and_a_member_of_a_bridge_is_not() -> None:
    port, bridge = interface("en1", Kind.THUNDERBOLT), interface("bridge0", Kind.THUNDERBOLT, "192.168.4.21")
    assert "en1 is up and has no IPv4 address" in said(after_s=0.0, interfaces=(port,))["no_ipv4"]
    assert said(after_s=0.0, interfaces=(port, bridge)) == {}
    assert said(after_s=0.0, interfaces=(interface("en1", Kind.THUNDERBOLT, up=False),)) == {}
    assert said(after_s=0.0, interfaces=(interface("en0", Kind.ETHERNET),)) == {}
