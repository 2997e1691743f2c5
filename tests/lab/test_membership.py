"""The cluster key changes while three hosts answer: no answer notices, a node that was away catches up, and a node
that is removed is out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node, wait_for
from tests.lab.reading import can_serve
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

LAST = 900
STARTED_AT = 100
STARTS_WITHIN_S = 60.0
LOADED_WITHIN_S = 120.0
ENDS_WITHIN_S = 180.0
CATCHES_UP_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with Lab(3) as lab:
        cluster = Cluster(lab)
        cluster.start()
        cluster.wait_until(lambda found: all(can_serve(one) for one in found), LOADED_WITHIN_S, "all can serve")
        yield cluster


def counting(node: Node) -> ChatStream:
    stream = node.stream_chat(count_prompt(1, LAST))
    stream.wait_for_numbers(STARTED_AT, STARTS_WITHIN_S)
    assert len(stream.numbers) < LAST, "the count was over before the key changed"
    return stream


def assert_whole(stream: ChatStream) -> None:
    assert numbers(stream.result(ENDS_WITHIN_S)) == list(range(1, LAST + 1)), stream.story()


def fingerprint(node: Node) -> str:
    return str(json.loads(node.exoctl("cluster", "show", "--json").stdout).get("key_fingerprint"))


def test_a_rotation_during_an_answer_costs_no_token_and_no_plan(three: Cluster) -> None:
    first, second, third = three.nodes
    before, epoch = fingerprint(first), first.status()["mesh"]["epoch"]
    stream = counting(second)
    said = first.exoctl("cluster", "rotate").stdout
    assert "studio2, studio3 took it over" in said
    assert_whole(stream)
    after = {fingerprint(node) for node in three.nodes}
    assert len(after) == 1
    assert after != {before}
    assert third.status()["mesh"]["epoch"] == epoch
    assert_whole(counting(third))


def test_a_member_that_was_away_takes_the_new_key_over_when_it_returns(three: Cluster) -> None:
    first, second, third = three.nodes
    third.kill9()
    said = second.exoctl("cluster", "rotate").stdout
    assert "away: studio3" in said
    assert fingerprint(first) == fingerprint(second)
    third.start()
    wait_for(lambda: fingerprint(third) == fingerprint(first), CATCHES_UP_WITHIN_S, "studio3 has the new key")
    three.wait_until(
        lambda found: all(can_serve(one) and one["cluster"]["size"] == 3 for one in found),
        LOADED_WITHIN_S,
        "all three serve again",
    )


def test_a_node_is_removed_during_an_answer_which_goes_on_without_it(three: Cluster) -> None:
    first, second, third = three.nodes
    stream = counting(second)
    said = first.exoctl("cluster", "remove", "studio3").stdout
    assert "studio3 was removed" in said
    assert_whole(stream)
    assert fingerprint(first) == fingerprint(second) != fingerprint(third)
    for node in (first, second):
        shown = node.status()
        assert [one["name"] for one in shown["nodes"] if one["name"] == "studio3"] == []
        assert len(shown["mesh"]["ring"]) == 2
    assert [one for one in third.events() if one["type"] == "cluster.refused"]
