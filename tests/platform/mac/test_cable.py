"""The cable as it comes out of the box, on a network that answers as XNU does: bound and unbound, out and in."""

from __future__ import annotations

import pytest

from exod.core.base.config import CoreConfig
from exod.core.base.journal import Journal
from exod.core.probe.candidate_paths import candidate_paths
from exod.core.probe.datagram import RouteVerdict
from exod.core.probe.path import Path
from exod.core.probe.replay_window import SequenceWindow
from exod.model import Kind, LocalAddress
from tests.core.pair.cards import card
from tests.platform.mac.fake_network import EADDRNOTAVAIL, EHOSTUNREACH, ENETDOWN, FakeNetwork

CABLE = LocalAddress("bridge0", Kind.THUNDERBOLT, "169.254.10.1", 16)
ETHERNET = LocalAddress("en0", Kind.ETHERNET, "169.254.20.1", 16)
PEER = "169.254.10.2"


@pytest.fixture
def network() -> FakeNetwork:
    return FakeNetwork((CABLE, ETHERNET))


def path_to_the_peer() -> Path:
    (candidate,) = candidate_paths(card(1, "bridge0=169.254.10.1/16"), card(2, f"bridge0={PEER}/16"))
    return Path(candidate, CoreConfig(), Journal(), SequenceWindow(0), 0, 0.0)


def test_an_unbound_socket_leaves_by_ethernet_and_a_bound_one_by_the_cable(
    network: FakeNetwork,
) -> None:
    path = path_to_the_peer()
    assert network.unbound_source(PEER) == ETHERNET.address
    path.routed(network.unbound_source(PEER), 1.0)
    assert path.route is RouteVerdict.WRONG, "what was asked before sockets were bound"
    path.routed(network.bound_source(path.ends.interface, path.ends.local), 2.0)
    assert path.route is RouteVerdict.RIGHT


def test_a_cable_that_is_out_and_an_address_that_changed_refuse_bound_sockets(network: FakeNetwork) -> None:
    path = path_to_the_peer()
    network.unplugged = {"bridge0"}
    assert network.send("bridge0", CABLE.address, PEER) == ENETDOWN
    path.routed(network.bound_source("bridge0", CABLE.address), 1.0)
    assert path.route is RouteVerdict.WRONG
    network.unplugged.clear()
    network.addresses = (LocalAddress("bridge0", Kind.THUNDERBOLT, "169.254.77.7", 16), ETHERNET)
    assert network.send("bridge0", CABLE.address, PEER) == EADDRNOTAVAIL
    assert network.bound_source("bridge0", "169.254.77.7") == "169.254.77.7"


def test_a_denied_cable_refuses_as_if_there_were_no_route(network: FakeNetwork) -> None:
    network.deny("bridge0")
    assert network.send("bridge0", CABLE.address, PEER) == EHOSTUNREACH
    assert network.send("en0", ETHERNET.address, "169.254.20.2") == 0
