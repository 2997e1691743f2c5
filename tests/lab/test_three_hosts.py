"""Three hosts with a cable for each pair: one plan, every pair on its own cable, a chat through all three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.reading import Status, layers_cover, link_to, pair_uses, selected_path
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

LOADED_WITHIN_S = 120.0
NOTICED_WITHIN_S = 20.0
NAMES = ("studio1", "studio2", "studio3")
# (this host, the other): the interface that this host's cable to the other is plugged into.
CABLES = {
    ("studio1", "studio2"): "bridge0",
    ("studio1", "studio3"): "bridge1",
    ("studio2", "studio1"): "bridge0",
    ("studio2", "studio3"): "bridge1",
    ("studio3", "studio1"): "bridge0",
    ("studio3", "studio2"): "bridge1",
}


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with Lab(3) as lab:
        cluster = Cluster(lab)
        cluster.start()
        yield cluster


@pytest.fixture(autouse=True)
def _healed(three: Cluster) -> Iterator[None]:
    yield
    three.heal()


def test_one_plan_with_every_pair_on_its_own_cable(three: Cluster) -> None:
    statuses = three.wait_ready("thunderbolt", LOADED_WITHIN_S)
    for status in statuses:
        me = status["node"]["name"]
        for peer in set(NAMES) - {me}:
            path = selected_path(status, peer)
            assert path is not None
            assert path["interface"] == CABLES[me, peer]
        assert status["cluster"]["size"] == 3
        assert sorted(status["mesh"]["ring"]) == sorted(node["id"] for node in status["nodes"])
        assert_edges_follow_the_cables(status)
    assert len({str(status["mesh"]["coordinator"]) for status in statuses}) == 1
    assert [status["mesh"]["edges"] for status in statuses] == [statuses[0]["mesh"]["edges"]] * 3


def assert_edges_follow_the_cables(status: Status) -> None:
    """Three edges that make the ring, each named by the interface of the end it leaves from."""
    names = {node["id"]: node["name"] for node in status["nodes"]}
    ring, edges = status["mesh"]["ring"], status["mesh"]["edges"]
    assert {(edge["from"], edge["to"]) for edge in edges} == set(zip(ring, ring[1:] + ring[:1], strict=True))
    for edge in edges:
        assert edge["kind"] == "thunderbolt"
        assert edge["interface"] == CABLES[names[edge["from"]], names[edge["to"]]]
        assert edge["address"].startswith("192.168.")


def test_a_chat_goes_through_all_three_whoever_is_asked(three: Cluster) -> None:
    statuses = three.wait_ready("thunderbolt", LOADED_WITHIN_S)
    for status in statuses:
        assert layers_cover(status)
        assert len({rank["node"] for rank in status["engine"]["ranks"]}) == 3
    for node in three.nodes:
        assert numbers(node.chat(count_prompt(3, 30))) == list(range(3, 31))


def test_one_cut_cable_moves_one_pair_alone(three: Cluster) -> None:
    three.wait_ready("thunderbolt", LOADED_WITHIN_S)
    three.lab.cable(1, 3).cut()

    def only_that_pair_moved(statuses: list[Status]) -> bool:
        moved = {frozenset(("studio1", "studio3"))}
        return all(
            pair_uses(status, peer, "ethernet" if frozenset((me, peer)) in moved else "thunderbolt")
            for status in statuses
            for me in [status["node"]["name"]]
            for peer in set(NAMES) - {me}
        )

    three.wait_until(only_that_pair_moved, NOTICED_WITHIN_S, "the pair 1-3 on Ethernet, the others on cables")
    statuses = three.wait_until(
        lambda found: (
            len({status["mesh"]["plan"] for status in found}) == 1
            and all(status["mesh"]["state"] == "agreed" for status in found)
            and all(status["engine"]["state"] == "ready" for status in found)
        ),
        LOADED_WITHIN_S,
        "one plan again, and the model on it",
    )
    kinds = sorted(edge["kind"] for edge in statuses[0]["mesh"]["edges"])
    assert kinds == ["ethernet", "thunderbolt", "thunderbolt"]
    assert numbers(three.node(2).chat(count_prompt(3, 30))) == list(range(3, 31))
    link = link_to(statuses[0], "studio3")
    assert link is not None
    assert link["agreed"]
