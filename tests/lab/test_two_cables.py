"""Two cables between two hosts: a tensor group's large messages take both, and losing either costs no token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.node import KINDS, RING_PORTS
from tests.lab.reading import can_serve
from tests.lab.test_generation import STARTS_WITHIN_S, assert_whole, coordinator, counting
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

CABLES = ("bridge0", "en0")
"""The second one is the lab's Ethernet, which these daemons take for a cable."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        config = {"engine": {"parallel": "tensor"}, "mesh": {"kinds": KINDS | {"en0": "thunderbolt"}}}
        cluster = Cluster(lab, (1, 2), config=config)
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _serving(pair: Cluster) -> Iterator[None]:
    pair.wait_until(lambda found: all(can_serve(status) for status in found), STARTS_WITHIN_S, "all serve")
    yield
    pair.heal()


def carriers(pair: Cluster) -> set[str]:
    """The interfaces of the first host on which the ring has connections."""
    host = pair.lab.host(1)
    names = {address.partition("/")[0]: name for name, address in host.addresses.items()}
    return {names[one.local] for one in host.connections(RING_PORTS)}


def test_a_group_has_connections_over_both_cables(pair: Cluster) -> None:
    """One that was formed before the second cable was proven has them from its next formation on."""
    if carriers(pair) != set(CABLES):
        assert pair.node(1).kill_workers(9), "there was a rank to kill"
    pair.wait_until(
        lambda found: all(can_serve(status) for status in found) and carriers(pair) == set(CABLES),
        STARTS_WITHIN_S,
        "the ring has connections over both cables",
    )
    assert any(event["type"] == "engine.cables" for event in pair.node(1).events())


@pytest.mark.parametrize("cable", CABLES)
def test_a_cut_of_either_cable_costs_no_token(pair: Cluster, cable: str) -> None:
    stream = counting(coordinator(pair))
    pair.lab.link(cable).cut()
    assert_whole(stream)
