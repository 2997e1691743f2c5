"""One will for the whole cluster: commands before configurations, the demo only where nobody wishes anything."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.base.cluster_wish import DEMO_MODEL, hosted_model, newest
from exod.model import ClusterWish, NodeCard
from tests.core.pair.cards import card


def node(number: int, **changes: object) -> NodeCard:
    return msgspec.structs.replace(card(number), **{"model": "", **changes})


LOADED = ClusterWish(100.0, "studio2", "/models/loaded")


@pytest.mark.parametrize(
    ("members", "model"),
    [
        ([node(1), node(2)], DEMO_MODEL),
        ([node(1), node(2, model="/models/real")], "/models/real"),
        ([node(1, model="/models/one"), node(2, model="/models/two")], "/models/one"),
        ([node(1), node(2, wish=LOADED)], "/models/loaded"),
        ([node(1, model="/models/one"), node(2, wish=LOADED)], "/models/loaded"),
        ([node(1, wish=ClusterWish(50.0, "studio1", "/models/old")), node(2, wish=LOADED)], "/models/loaded"),
        ([node(1, wish=ClusterWish(200.0, "studio1", "")), node(2, wish=LOADED)], ""),
        ([node(1, wish=ClusterWish(200.0, "studio1", None, draining=True)), node(2, model="/m")], "/m"),
        ([node(1), node(2, hosted="/models/of-one-who-is-away")], "/models/of-one-who-is-away"),
        ([node(1, hosted=DEMO_MODEL), node(2, model="/models/real")], "/models/real"),
    ],
)
def test_what_is_hosted(members: list[NodeCard], model: str) -> None:
    assert hosted_model(members[0], members) == model
    assert hosted_model(members[0], members[::-1]) == model, "whatever the order"


def test_of_two_commands_of_one_moment_both_nodes_keep_the_same() -> None:
    one, other = ClusterWish(100.0, "studio1", "a"), ClusterWish(100.0, "studio2", "b")
    assert newest(one, other) == newest(other, one)
    assert newest(None, one) == newest(one, None) == one
