"""Ranks over RDMA, played by a stand-in that behaves as MLX's JACCL: nothing in the process ends what it waits for.

So the daemons end the processes, the answer goes on over TCP with new ones, and RDMA is taken again once it is
proven. The text of the answer is the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.reading import can_serve
from tests.lab.test_generation import STARTS_WITHIN_S, assert_whole, coordinator, counting, other
from tests.lab.told import of_type
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PROVEN_WITHIN_S = 90.0
"""The pause after a fault, and two processes that import MLX."""


WAYS = ("tensor", "pipeline") if os.environ.get("EXOD_RDMA_WAYS") == "both" else ("tensor",)
"""Both by hand: each takes a minute and a half."""


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Lab(2) as lab:
        config = {
            "engine": {"parallel": request.param, "transport": "rdma"},
            "debug": {"enabled": True, "rdma_stand_in": True},
        }
        cluster = Cluster(lab, (1, 2), config=config)
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _over_rdma(pair: Cluster) -> Iterator[None]:
    until(pair, "rdma")
    yield
    pair.heal()


def until(pair: Cluster, transport: str) -> list[Any]:
    def is_so(found: list[Any]) -> bool:
        return all(can_serve(status) and status["engine"]["transport"] == transport for status in found)

    return pair.wait_until(is_so, STARTS_WITHIN_S + PROVEN_WITHIN_S, f"all serve over {transport}")


def pids(pair: Cluster) -> set[int]:
    return {rank["pid"] for status in until(pair, "rdma") for rank in status["engine"]["ranks"]}


def test_no_rank_hears_sigterm(pair: Cluster) -> None:
    """Nothing but SIGKILL ends it, as over JACCL: what the tests below see is no worker that ends by itself."""
    before = pids(pair)
    stream = counting(coordinator(pair))
    for node in pair.nodes:
        node.kill_workers(signal.SIGTERM)
    assert_whole(stream)
    assert pids(pair) == before


def test_a_cut_cable_replaces_the_ranks_and_costs_no_token(pair: Cluster) -> None:
    before = pids(pair)
    stream = counting(coordinator(pair))
    pair.lab.link("bridge0").cut()
    assert_whole(stream)
    over_tcp = until(pair, "tcp")
    assert not before & {rank["pid"] for status in over_tcp for rank in status["engine"]["ranks"]}
    assert all("ranks run over TCP" in status["engine"]["transport_reason"] for status in over_tcp), over_tcp
    assert "ranks run over TCP" in " ".join(pair.node(2).exoctl("engine", "status").stdout.split())
    pair.heal()
    until(pair, "rdma")
    for node in pair.nodes:
        assert "ranks communicate over RDMA" in node.exoctl("engine", "status").stdout
    told = {one["transport"] for node in pair.nodes for one in of_type(node.events(), "engine.transport")}
    assert told == {"rdma", "tcp"}


def test_a_killed_rank_ends_all_and_costs_no_token(pair: Cluster) -> None:
    before = pids(pair)
    client = coordinator(pair)
    stream = counting(client)
    assert other(pair, client).kill_workers(signal.SIGKILL), "there was a rank to kill"
    assert_whole(stream)
    assert not before & pids(pair)
