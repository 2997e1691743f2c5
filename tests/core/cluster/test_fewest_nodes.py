"""As few nodes as hold a model host it, those that do so already first; the others stand by."""

from __future__ import annotations

import itertools

import msgspec

from exod.core.cluster.ring_members import standing_by, why_standing_by
from exod.core.cluster.ring_order import Pair
from exod.model import NodeCard, NodeId
from tests.core.pair.cards import card

NODES = [NodeId(f"{place:016x}") for place in (1, 2, 3)]
ALL: set[Pair] = set(itertools.combinations(NODES, 2))


def cards(*memory_mib: int) -> dict[NodeId, NodeCard]:
    return {
        node: msgspec.structs.replace(card(place + 1), id=node, memory_mib=mib)
        for place, (node, mib) in enumerate(zip(NODES, memory_mib, strict=True))
    }


def test_the_largest_node_is_enough_for_a_small_model() -> None:
    assert standing_by(cards(10, 30, 20), 25, ALL, ()) == {NODES[0], NODES[2]}


def test_two_hold_what_one_cannot() -> None:
    assert standing_by(cards(10, 30, 20), 45, ALL, ()) == {NODES[0]}


def test_who_holds_it_already_keeps_it() -> None:
    assert standing_by(cards(30, 30, 30), 20, ALL, (NODES[2],)) == {NODES[0], NODES[1]}
    assert standing_by(cards(20, 20, 40), 35, ALL, (NODES[0], NODES[1])) == {NODES[0], NODES[1]}


def test_a_node_that_is_gone_is_replaced_by_one_that_stood_by() -> None:
    left = {node: one for node, one in cards(20, 20, 20).items() if node != NODES[0]}
    assert standing_by(left, 35, {(NODES[1], NODES[2])}, (NODES[0], NODES[1])) == frozenset()


def test_nodes_without_a_path_between_them_are_no_pair() -> None:
    assert standing_by(cards(20, 20, 20), 35, {(NODES[0], NODES[2])}, ()) == {NODES[1]}


def test_nobody_stands_by_for_what_is_not_known_or_too_large() -> None:
    assert standing_by(cards(20, 20, 20), 0, ALL, ()) == frozenset()
    assert standing_by(cards(20, 20, 20), 61, ALL, ()) == frozenset()


def test_it_is_said_who_stands_by_and_that_it_is_no_fault() -> None:
    (one,) = why_standing_by({NODES[1]}, cards(1, 2, 3))
    assert one.stands_by
    assert "engine.nodes" in one.reason
