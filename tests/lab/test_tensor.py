"""A tensor group of two nodes: an answer that runs over it lives through every fault, as one over a pipeline does.

Both ranks are needed in each step, and a replaced one makes both prefill the sequence again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.reading import can_serve
from tests.lab.test_generation import STARTS_WITHIN_S, assert_whole, coordinator, counting, other
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

FLAPS = 3


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2), config={"engine": {"parallel": "tensor"}})
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _serving(pair: Cluster) -> Iterator[None]:
    found = pair.wait_until(lambda found: all(can_serve(status) for status in found), STARTS_WITHIN_S, "all serve")
    for status in found:
        engine = status["engine"]
        assert engine["parallel"] == "tensor"
        assert [(rank["layers"], rank["parts"]) for rank in engine["ranks"]] == [([0, 8], 2)] * 2
    yield
    pair.heal()


def test_a_cut_cable_costs_no_token(pair: Cluster) -> None:
    stream = counting(coordinator(pair))
    pair.lab.link("bridge0").cut()
    assert_whole(stream)


def test_a_cable_that_becomes_slow_costs_no_token(pair: Cluster) -> None:
    stream = counting(coordinator(pair))
    pair.lab.link("bridge0").set(delay_ms=20)
    assert_whole(stream)


def test_a_cable_that_comes_and_goes_costs_no_token(pair: Cluster) -> None:
    stream, cable = counting(coordinator(pair)), pair.lab.link("bridge0")
    for number in range(2 * FLAPS):
        cable.set(cut=number % 2 == 0)
        stream.wait_for_numbers(len(stream.numbers) + 10, STARTS_WITHIN_S)
    assert_whole(stream)


@pytest.mark.parametrize("beside", [False, True])
def test_a_killed_rank_costs_no_token(pair: Cluster, beside: bool) -> None:
    client = coordinator(pair)
    stream = counting(client)
    assert (client if beside else other(pair, client)).kill_workers(signal.SIGKILL), "there was a rank to kill"
    assert_whole(stream)


def test_a_stopped_rank_costs_no_token(pair: Cluster) -> None:
    client = coordinator(pair)
    stream = counting(client)
    other(pair, client).kill_workers(signal.SIGSTOP)
    assert_whole(stream)


@pytest.mark.parametrize("coordinates", [False, True])
def test_a_killed_daemon_costs_a_client_elsewhere_no_token(pair: Cluster, coordinates: bool) -> None:
    lowest = coordinator(pair)
    killed = lowest if coordinates else other(pair, lowest)
    stream = counting(other(pair, killed))
    killed.kill9()
    killed.start()
    assert_whole(stream)
