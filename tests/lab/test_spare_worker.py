"""A killed rank is replaced by the spare of its node, and no spare outlives its daemon."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node, wait_for
from tests.lab.reading import Status
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

LAST = 900
WITHIN_S = 90.0


@pytest.fixture
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        yield Cluster(lab, (1, 2), config={"engine": {"spare": "auto"}})


def have_spares(statuses: list[Status]) -> bool:
    return all(status["engine"]["spare"] == "ready" for status in statuses)


def spares(node: Node) -> set[int]:
    """Processes of this node that wait, by their command lines."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "--spare" in line and str(node.data_dir) in " ".join(line):
            found.add(process.pid)
    return found


def test_the_spare_takes_over_in_mid_answer_and_ends_with_its_daemon(pair: Cluster) -> None:
    pair.start()
    pair.wait_ready("thunderbolt", WITHIN_S)
    pair.wait_until(have_spares, WITHIN_S, "each node has a spare")
    client, victim = pair.nodes
    (spare,) = spares(victim)
    stream = client.stream_chat(count_prompt(1, LAST))
    stream.wait_for_numbers(60, WITHIN_S)
    victim.kill_workers()
    assert numbers(stream.result(WITHIN_S)) == list(range(1, LAST + 1))
    print(f"longest gap {max(stream.gaps_s()):.2f} s")
    assert victim.worker_pids() == [spare]
    pair.wait_until(have_spares, WITHIN_S, "another spare follows")
    (after,) = spares(victim) - {spare}
    victim.kill9()
    wait_for(lambda: not psutil.pid_exists(after), WITHIN_S, "the spare of a dead daemon ends")
    assert psutil.pid_exists(spare), "its worker lives on"
    victim.start()
    pair.wait_ready("thunderbolt", WITHIN_S)
    assert victim.worker_pids() == [spare]
