"""Ring order, edges and hash, held against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exod.core.cluster.ring_order import (
    Pair,
    PairEdge,
    build_plan,
    content,
    pair_of,
    plan_hash,
    ring_order,
    ring_pairs,
)
from exod.model import (
    ContextSettings,
    Edge,
    Epoch,
    Kind,
    LeftOut,
    Member,
    MeshPlan,
    NodeId,
    ParallelChoice,
    path_id,
)
from tests.core.pair.cards import card

EPOCH = Epoch(3, 1_000)


def node(place: int) -> NodeId:
    return NodeId(f"{place:016x}")


def edge(
    low: int, high: int, kind: Kind = Kind.THUNDERBOLT, cost_ms: float = 0.5, in_band: bool = True
) -> PairEdge:
    here, there = f"10.{low}.{high}.1", f"10.{low}.{high}.2"
    return PairEdge(path_id(here, there), "bridge0", here, "bridge0", there, kind, in_band, cost_ms)


@st.composite
def meshes(draw: st.DrawFn, most: int = 6) -> tuple[list[NodeId], dict[Pair, PairEdge]]:
    count = draw(st.integers(1, most))
    edges = {}
    for low, high in itertools.combinations(range(1, count + 1), 2):
        if draw(st.integers(0, 9)):
            edges[node(low), node(high)] = edge(
                low,
                high,
                draw(st.sampled_from([Kind.THUNDERBOLT, Kind.ETHERNET, Kind.VPN])),
                draw(st.sampled_from([0.5, 1.0, 44.0])),
                draw(st.booleans()),
            )
    return [node(place) for place in range(1, count + 1)], edges


def weight(ring: tuple[NodeId, ...], edges: dict[Pair, PairEdge]) -> tuple[bool, int, float]:
    used = [edges[pair] for pair in ring_pairs(ring)]
    return (
        any(not one.in_band for one in used),
        sum(one.kind is not Kind.THUNDERBOLT for one in used),
        sum(one.cost_ms for one in used),
    )


@given(meshes())
def test_no_order_is_better_than_the_one_that_is_found(mesh: tuple[list[NodeId], dict[Pair, PairEdge]]) -> None:
    ranks, edges = mesh
    possible = [ring for ring in itertools.permutations(ranks) if all(pair in edges for pair in ring_pairs(ring))]
    found = ring_order(ranks, edges)
    if not possible:
        assert found is None
        return
    assert found is not None
    assert sorted(found) == ranks
    assert weight(found, edges) == pytest.approx(min(weight(ring, edges) for ring in possible))
    assert found == ring_order(list(reversed(ranks)), dict(reversed(list(edges.items())))), "the same on every node"


@given(meshes(), st.randoms(use_true_random=False))
def test_a_running_order_is_kept_while_all_its_edges_exist(
    mesh: tuple[list[NodeId], dict[Pair, PairEdge]], rng: object
) -> None:
    ranks, edges = mesh
    running = list(ranks)
    rng.shuffle(running)  # type: ignore[attr-defined]
    found = ring_order(ranks, edges, running)
    if all(pair in edges for pair in ring_pairs(running)):
        assert found == tuple(running)


def test_eight_nodes_are_ordered_exhaustively_and_more_greedily() -> None:
    for count in (8, 12):
        ranks = [node(place) for place in range(1, count + 1)]
        edges = {(one, other): edge(1, 2) for one, other in itertools.combinations(ranks, 2)}
        found = ring_order(ranks, edges)
        assert found is not None
        assert sorted(found) == ranks


def two_node_plan() -> MeshPlan:
    cards = [card(1), card(2, ring_port=52_421)]
    plan = build_plan(EPOCH, cards[0], cards, {(node(1), node(2)): edge(1, 2)})
    assert plan is not None
    return plan


def test_two_ranks_use_one_path_both_ways() -> None:
    there, back = two_node_plan().edges
    assert (there.source_address, there.target_address, there.target_port) == ("10.1.2.1", "10.1.2.2", 52_421)
    assert (back.source_address, back.target_address, back.target_port) == ("10.1.2.2", "10.1.2.1", 52_420)
    assert there.path == back.path


def test_every_edge_names_its_pairs_two_addresses() -> None:
    cards = [card(place) for place in range(1, 5)]
    edges = {(node(low), node(high)): edge(low, high) for low, high in itertools.combinations(range(1, 5), 2)}
    plan = build_plan(EPOCH, cards[0], cards, edges)
    assert plan is not None
    assert [one.source for one in plan.edges] == list(plan.ring)
    for one in plan.edges:
        assert ends(one) == set(edges[pair_of(one.source, one.target)].path.split("-"))


def ends(one: Edge) -> set[str]:
    return {one.source_address, one.target_address}


def test_a_member_without_an_engine_is_no_rank() -> None:
    cards = [card(1), card(2, engine=False)]
    plan = build_plan(EPOCH, cards[0], cards, {})
    assert plan is not None
    assert plan.ring == (node(1),)
    assert len(plan.members) == 2
    assert plan.edges == ()


def test_the_hash_covers_everything_and_nothing_by_accident() -> None:
    plan = two_node_plan()
    assert plan.hash == plan_hash(plan)
    assert plan_hash(msgspec.json.decode(msgspec.json.encode(plan), type=MeshPlan)) == plan.hash
    for changed in (
        {"epoch": Epoch(4, 1_000)},
        {"model": "other"},
        {"ring": plan.ring[::-1]},
        {"edges": plan.edges[::-1]},
        {"memory_mib": (1, 2)},
        {"split": "even"},
        {"context": ContextSettings(kv_bits=4)},
        {"left_out": (LeftOut(node(3), "studio3", "no path"),)},
    ):
        assert plan_hash(msgspec.structs.replace(plan, **changed)) != plan.hash
    assert content(msgspec.structs.replace(plan, epoch=Epoch(9, 9), hash="x")) == content(plan)


def test_a_plan_that_an_earlier_daemon_understands_has_the_hash_that_it_makes() -> None:
    """While a cluster is upgraded old and new daemons must agree. The digest was made before `left_out` came."""
    one, other = node(1), node(2)
    crossing = Edge(
        one,
        other,
        path_id("10.0.0.1", "10.0.0.2"),
        "bridge0",
        "10.0.0.1",
        "bridge0",
        "10.0.0.2",
        52420,
        Kind.THUNDERBOLT,
    )
    members = (Member(one, 1_700_000_000_000), Member(other, 1_700_000_000_001))
    plan = MeshPlan(
        Epoch(7, 1_700_000_000_000),
        one,
        members,
        (one, other),
        (crossing,),
        "embedded:count",
        "memory",
        (1024, 2048),
        "",
    )
    assert plan_hash(plan) == "2447d3909a0c10d8701bb3863bbaaaf7"


@given(meshes())
def test_a_tensor_group_has_an_edge_between_each_two_ranks_that_have_a_path(
    mesh: tuple[list[NodeId], dict[Pair, PairEdge]],
) -> None:
    nodes, edges = mesh
    cards = [msgspec.structs.replace(card(int(one, 16)), id=one, parallel="tensor") for one in nodes]
    plan = build_plan(EPOCH, cards[0], cards, edges)
    around = build_plan(EPOCH, msgspec.structs.replace(cards[0], parallel="auto"), cards, edges)
    if plan is None or around is None:
        assert plan is around is None
        return
    ring = plan.ring
    assert plan.edges[: len(around.edges)] == around.edges
    across = plan.edges[len(around.edges) :]
    assert all(ring.index(edge.source) < ring.index(edge.target) for edge in across)
    pairs = [pair_of(edge.source, edge.target) for edge in (*around.edges, *across)]
    possible = {pair_of(one, other) for one, other in itertools.combinations(ring, 2)} & set(edges)
    assert set(pairs) == (possible if len(ring) > 1 else set())
    assert len(across) == len(possible) - len(ring_pairs(ring))


def chosen(number: int, way: str, model: str, *ranks: NodeId) -> ParallelChoice:
    return ParallelChoice(number, way, model, tuple(sorted(ranks)))


def planned(*choices: ParallelChoice | None, wish: str = "auto", apart: Sequence[Pair] = ()) -> str:
    """What the plan says of nodes whose cards have these choices; all but those `apart` reach each other."""
    nodes = [node(place) for place in range(len(choices))]
    pairs = {pair: edge(*pair) for pair in itertools.combinations(nodes, 2) if pair not in apart}
    cards = [
        msgspec.structs.replace(card(place), id=one, parallel=wish, choice=choice, model="m")
        for place, (one, choice) in enumerate(zip(nodes, choices, strict=True))
    ]
    plan = build_plan(EPOCH, cards[0], cards, pairs)
    assert plan is not None
    return plan.parallel


def test_what_was_chosen_for_the_model_on_these_ranks_is_in_the_plan_whoever_remembers_it() -> None:
    ranks = [node(place) for place in range(3)]
    choice = chosen(1, "tensor", "m", *ranks)
    assert planned(choice, None, None) == planned(None, None, choice) == "tensor"
    assert planned(choice, chosen(2, "pipeline", "m", *ranks), None) == "auto"


def test_ranks_that_do_not_all_reach_each_other_stay_a_pipeline() -> None:
    ranks = [node(place) for place in range(4)]
    choice = chosen(1, "tensor", "m", *ranks)
    assert planned(choice, None, None, None) == "tensor"
    assert planned(choice, None, None, None, apart=[(ranks[0], ranks[2])]) == "auto"


def test_a_choice_for_other_ranks_or_another_model_or_against_a_wish_is_none() -> None:
    ranks = [node(place) for place in range(3)]
    assert planned(chosen(1, "tensor", "m", *ranks[:2]), None, None) == "auto"
    assert planned(chosen(1, "tensor", "other", *ranks), None, None) == "auto"
    assert planned(chosen(1, "tensor", "m", *ranks), None, None, wish="pipeline") == "pipeline"
