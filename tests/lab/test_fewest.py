"""With `engine.nodes = "fewest"` one of two nodes hosts a small model, and the other takes over when it goes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.reading import Status
from tests.lab.test_generation import STARTS_WITHIN_S, assert_whole, counting
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

TAKES_OVER_WITHIN_S = 60.0


def host_of(found: list[Status]) -> Any:
    """The one node that has a rank, where all say so and can serve; else None."""
    engines = [status["engine"] for status in found]
    hosts = {tuple(rank["node"] for rank in engine["ranks"]) for engine in engines}
    serving = all(engine["state"] in ("ready", "generating") for engine in engines)
    return next(iter(hosts))[0] if serving and len(hosts) == 1 and len(next(iter(hosts))) == 1 else None


def test_one_node_serves_for_both_and_is_replaced_when_it_goes() -> None:
    with Lab(2) as lab:
        pair = Cluster(lab, (1, 2), config={"engine": {"nodes": "fewest"}})
        pair.start()
        found = pair.wait_until(host_of, STARTS_WITHIN_S, "one node hosts the model")
        for status in found:
            assert status["health"] == "healthy", status["reasons"]
        hosting = next(
            node for node, status in zip(pair.nodes, found, strict=True) if status["node"]["id"] == host_of(found)
        )
        standing = next(node for node in pair.nodes if node is not hosting)
        stream = counting(standing)
        hosting.kill_workers()
        hosting.kill9()
        assert_whole(stream)
        hosting.start()
        pair.wait_until(host_of, TAKES_OVER_WITHIN_S, "one node hosts the model again")
        assert numbers(hosting.chat(count_prompt(1, 20))) == list(range(1, 21))
