"""Four nodes and a model of two heads: two stages, each a tensor group of two. An answer lives through faults."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.reading import can_serve
from tests.lab.test_generation import assert_whole, counting
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

STARTS_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def four() -> Iterator[Cluster]:
    with Lab(4) as lab:
        cluster = Cluster(lab, (1, 2, 3, 4), config={"engine": {"parallel": "tensor"}})
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _serving(four: Cluster) -> Iterator[None]:
    def stands(found: list[object]) -> bool:
        return all(can_serve(status) and len(status["engine"]["ranks"]) == 4 for status in found)  # type: ignore[arg-type, index]

    for status in four.wait_until(stands, STARTS_WITHIN_S, "all four serve"):  # type: ignore[arg-type]
        shares = [(rank["layers"], rank["parts"]) for rank in status["engine"]["ranks"]]
        assert shares == [([0, 4], 2), ([0, 4], 2), ([4, 8], 2), ([4, 8], 2)]
    yield
    four.heal()


def test_a_killed_rank_costs_no_token(four: Cluster) -> None:
    stream = counting(four.nodes[0])
    assert four.nodes[2].kill_workers(signal.SIGKILL), "there was a rank to kill"
    assert_whole(stream)
