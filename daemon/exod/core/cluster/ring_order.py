"""The ring: which order, over which edges. Pure functions.

The theory. A ring's step waits for its slowest edge, so orders are compared by their worst band first, then by how
many edges are not Thunderbolt, then by cost. The order that is running is kept while every edge of it exists: a new
order moves layers between nodes, which costs far more than a better edge gains, and a person can ask for it
(`exoctl mesh renegotiate`). Two ranks use one path both ways.

Decides the content of a plan; never when to propose one (mesh.py), nor which rank holds which layers
(layer_split.py).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import msgspec

from exod.core.base.cluster_wish import hosted_model
from exod.core.probe.datagram import PLAN_PREFIX_BYTES
from exod.model import KIND_PREFERENCE, Edge, Epoch, Kind, LeftOut, Member, MeshPlan, NodeCard, NodeId, PathId

EXHAUSTIVE = 8
"""Up to this many ranks every order is tried: (8 - 1)! / 2 = 2,520."""

EPOCH_LIMIT = 1 << 53
"""Plans are counted; a number beyond this (the integers of JSON) is not genuine."""

Pair = tuple[NodeId, NodeId]
"""The lower id first."""


class PairEdge(msgspec.Struct, frozen=True):
    """The agreed path of a pair, from both ends."""

    path: PathId
    low_interface: str
    low_address: str
    high_interface: str
    high_address: str
    kind: Kind
    in_band: bool
    cost_ms: float


def pair_of(one: NodeId, other: NodeId) -> Pair:
    return (one, other) if one < other else (other, one)


def ring_pairs(ring: Sequence[NodeId]) -> list[Pair]:
    """The pairs that are neighbours: none for one rank, one for two."""
    if len(ring) < 2:
        return []
    if len(ring) == 2:
        return [pair_of(ring[0], ring[1])]
    return [pair_of(one, ring[(place + 1) % len(ring)]) for place, one in enumerate(ring)]


def ring_order(
    ranks: Sequence[NodeId], edges: Mapping[Pair, PairEdge], running: Sequence[NodeId] = ()
) -> tuple[NodeId, ...] | None:
    """The order of the ring, or None where no ring through all ranks exists.

    `running` is kept if it has the same ranks and every edge of it exists. Orders begin with the lowest id.
    """
    if running and sorted(running) == sorted(ranks) and all(pair in edges for pair in ring_pairs(running)):
        return tuple(running)
    if not ranks:
        return ()
    first, *others = sorted(ranks)
    if len(ranks) <= EXHAUSTIVE:
        return _best_order(first, others, edges)
    return _greedy_order(first, others, edges)


def _best_order(first: NodeId, others: list[NodeId], edges: Mapping[Pair, PairEdge]) -> tuple[NodeId, ...] | None:
    best: tuple[tuple[bool, int, float], tuple[NodeId, ...]] | None = None
    for rest in itertools.permutations(others):
        if len(rest) > 1 and rest[0] > rest[-1]:
            continue  # the same ring the other way round
        ring = (first, *rest)
        weighed = _weigh(ring, edges)
        if weighed is not None and (best is None or (weighed, ring) < best):
            best = (weighed, ring)
    return None if best is None else best[1]


def _weigh(ring: tuple[NodeId, ...], edges: Mapping[Pair, PairEdge]) -> tuple[bool, int, float] | None:
    slow, others, cost = False, 0, 0.0
    for pair in ring_pairs(ring):
        edge = edges.get(pair)
        if edge is None:
            return None
        slow |= not edge.in_band
        others += edge.kind is not Kind.THUNDERBOLT
        cost += edge.cost_ms
    return (slow, others, round(cost, 6))


def _greedy_order(first: NodeId, others: list[NodeId], edges: Mapping[Pair, PairEdge]) -> tuple[NodeId, ...] | None:
    """More ranks than can be tried: nearest neighbour by (band, kind, cost)."""
    ring, left = [first], set(others)
    while left:
        reachable = [one for one in left if pair_of(ring[-1], one) in edges]
        if not reachable:
            return None
        nearest = min(reachable, key=lambda one: (*_edge_weight(edges[pair_of(ring[-1], one)]), one))
        ring.append(nearest)
        left.discard(nearest)
    return tuple(ring) if pair_of(ring[-1], first) in edges else None


def _edge_weight(edge: PairEdge) -> tuple[bool, int, float]:
    return (not edge.in_band, KIND_PREFERENCE[edge.kind], edge.cost_ms)


def build_plan(
    epoch: Epoch,
    coordinator: NodeCard,
    members: Sequence[NodeCard],
    edges: Mapping[Pair, PairEdge],
    running: Sequence[NodeId] = (),
    left_out: tuple[LeftOut, ...] = (),
) -> MeshPlan | None:
    """The plan for these members, or None where their ranks cannot form a ring. Deterministic in its inputs."""
    cards = {card.id: card for card in members}
    without = {one.node for one in left_out}
    ring = ring_order([card.id for card in members if card.engine and card.id not in without], edges, running)
    if ring is None:
        return None
    model = hosted_model(coordinator, members)
    parallel = _parallel(coordinator, members, model, ring, edges)
    plan = MeshPlan(
        epoch=epoch,
        coordinator=coordinator.id,
        members=tuple(sorted(Member(card.id, card.incarnation) for card in members)),
        ring=ring,
        edges=tuple(
            _directed(source, target, cards, edges)
            for source, target in [*_around(ring), *_across(ring, edges, parallel)]
        ),
        model=model,
        split=coordinator.split,
        memory_mib=tuple(cards[one].memory_mib for one in ring),
        context=coordinator.context,
        parallel=parallel,
        left_out=left_out,
        hash="",
    )
    return msgspec.structs.replace(plan, hash=plan_hash(plan))


def _parallel(
    coordinator: NodeCard,
    members: Sequence[NodeCard],
    model: str,
    ring: tuple[NodeId, ...],
    edges: Mapping[Pair, PairEdge],
) -> str:
    """The coordinator's wish; `tensor` where that is `auto`, and it was chosen for this model on these ranks, which
    all reach each other.
    """
    choices = [card.choice for card in members if card.choice is not None]
    ranks = tuple(sorted(ring))
    newest = max((one for one in choices if (one.model, one.ranks) == (model, ranks)), default=None)
    if coordinator.parallel != "auto" or newest is None or newest.way != "tensor":
        return coordinator.parallel
    return "tensor" if all(pair in edges for pair in itertools.combinations(ranks, 2)) else "auto"


def _around(ring: tuple[NodeId, ...]) -> list[tuple[NodeId, NodeId]]:
    """From each rank to the next."""
    return [(one, ring[(place + 1) % len(ring)]) for place, one in enumerate(ring)] if len(ring) > 1 else []


def _across(ring: tuple[NodeId, ...], edges: Mapping[Pair, PairEdge], parallel: str) -> list[tuple[NodeId, NodeId]]:
    """Between the ranks that are no neighbours, where a tensor group is wanted and there is a path."""
    if parallel != "tensor":
        return []
    near = set(ring_pairs(ring))
    pairs = [(one, other) for one, other in itertools.combinations(ring, 2) if pair_of(one, other) not in near]
    return [(one, other) for one, other in pairs if pair_of(one, other) in edges]


def _directed(
    source: NodeId, target: NodeId, cards: Mapping[NodeId, NodeCard], edges: Mapping[Pair, PairEdge]
) -> Edge:
    edge = edges[pair_of(source, target)]
    ends = [(edge.low_interface, edge.low_address), (edge.high_interface, edge.high_address)]
    if source > target:
        ends.reverse()
    return Edge(
        source=source,
        target=target,
        path=edge.path,
        source_interface=ends[0][0],
        source_address=ends[0][1],
        target_interface=ends[1][0],
        target_address=ends[1][1],
        target_port=cards[target].ring_port,
        kind=edge.kind,
    )


def plan_hash(plan: MeshPlan) -> str:
    """BLAKE2b-128 over the canonical JSON of everything else (fields in order of definition, no spaces)."""
    return hashlib.blake2b(canonical(plan), digest_size=16).hexdigest()


def is_sound(plan: MeshPlan) -> bool:
    """Is the hash right, and is the epoch a number that counting reaches?"""
    return plan.hash == plan_hash(plan) and 0 < plan.epoch.number < EPOCH_LIMIT


def canonical(plan: MeshPlan) -> bytes:
    """What is hashed. Fields that came later are in it only where they say something: a daemon that does not know
    them makes the same hash of all other plans, so that old and new ones agree while a cluster is upgraded.
    """
    fields = msgspec.to_builtins(msgspec.structs.replace(plan, hash=""), order="deterministic")
    if not plan.left_out:
        del fields["left_out"]
    if plan.parallel == "auto":
        del fields["parallel"]
    return msgspec.json.encode(fields)


def hash_prefix(plan: MeshPlan) -> str:
    return plan.hash[: 2 * PLAN_PREFIX_BYTES]


def content(plan: MeshPlan) -> MeshPlan:
    """The plan without its epoch and without the text on who is left out: two plans of one content need no change
    of the engine.
    """
    return msgspec.structs.replace(plan, epoch=Epoch(0, 0), hash="", left_out=())
