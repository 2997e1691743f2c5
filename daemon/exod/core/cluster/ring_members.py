"""Which ranks form a ring where not all of them can: the fewest are left out, and it is said why.

The theory. A ring needs an agreed path between neighbours only, so two nodes that cannot hear each other are mostly
just kept apart. Where no order does that, as few ranks as possible are left out: of equally few the ones whose
absence changes least, that is, those that have no rank now, then those with the least memory.

With `engine.nodes = "fewest"` as few nodes as can hold the model host it. Of equally few those in `running` are
kept, so that nothing is loaded again without need; then those with the most memory. The others stand by: the next
plan takes one in where a rank is gone.

A node that says that it cannot serve (its worker does not start, its disk refuses the model) is left out where the
others can hold the model, and where some node knows what that needs.

Decides who is left out, and who stands by; never the order of the others (ring_order.py). Pure functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import msgspec

from exod.core.cluster.ring_order import EXHAUSTIVE, Pair, pair_of
from exod.model import LeftOut, NodeCard, NodeId

STANDS_BY = 'it stands by: engine.nodes is "fewest", and the others hold the model'

NAMED_PAIRS = 3
"""A reason names so many pairs at most."""


def fewest_to_leave_out(
    cards: Mapping[NodeId, NodeCard], pairs: Collection[Pair], running: Sequence[NodeId], coordinator: NodeId
) -> frozenset[NodeId]:
    """The ranks to leave out, so that the others can form a ring. `cards` are those of nodes that host a rank."""
    ranks = tuple(sorted(cards))
    connected = frozenset(pairs)
    if len(ranks) > EXHAUSTIVE:
        return _least_connected(ranks, connected)
    for count in range(len(ranks)):
        fitting = [
            frozenset(dropped)
            for dropped in itertools.combinations(ranks, count)
            if has_ring(tuple(one for one in ranks if one not in dropped), connected)
        ]
        if fitting:
            return min(fitting, key=lambda dropped: _cost(dropped, cards, running, coordinator))
    return frozenset()


def _cost(
    dropped: Collection[NodeId], cards: Mapping[NodeId, NodeCard], running: Sequence[NodeId], coordinator: NodeId
) -> tuple[int, bool, int, list[int]]:
    return (
        sum(one in running for one in dropped),
        coordinator in dropped,
        sum(cards[one].memory_mib for one in dropped),
        sorted(-int(one, 16) for one in dropped),
    )


def _least_connected(ranks: Sequence[NodeId], pairs: frozenset[Pair]) -> frozenset[NodeId]:
    """More ranks than can be tried: the one with the fewest neighbours is left out first."""
    kept = list(ranks)
    while not has_ring(tuple(kept), pairs):
        degree = {one: sum(pair_of(one, other) in pairs for other in kept if other != one) for one in kept}
        kept.remove(min(kept, key=lambda one: (degree[one], -int(one, 16))))
    return frozenset(ranks) - frozenset(kept)


@lru_cache(maxsize=4096)
def has_ring(ranks: tuple[NodeId, ...], pairs: frozenset[Pair]) -> bool:
    """Is there a ring through all of these? Above EXHAUSTIVE ranks only nearest neighbours are tried."""
    if len(ranks) < 2:
        return True
    if len(ranks) == 2:
        return pair_of(*ranks) in pairs
    if len(ranks) > EXHAUSTIVE:
        return _has_greedy_ring(ranks, pairs)
    return _extends((ranks[0],), frozenset(ranks[1:]), pairs)


def _extends(begun: tuple[NodeId, ...], left: frozenset[NodeId], pairs: frozenset[Pair]) -> bool:
    if not left:
        return pair_of(begun[-1], begun[0]) in pairs
    return any(
        pair_of(begun[-1], one) in pairs and _extends((*begun, one), left - {one}, pairs) for one in sorted(left)
    )


def _has_greedy_ring(ranks: tuple[NodeId, ...], pairs: frozenset[Pair]) -> bool:
    ring, left = [ranks[0]], set(ranks[1:])
    while left:
        reachable = sorted(one for one in left if pair_of(ring[-1], one) in pairs)
        if not reachable:
            return False
        ring.append(reachable[0])
        left.discard(reachable[0])
    return pair_of(ring[-1], ring[0]) in pairs


def why_left_out(
    dropped: Collection[NodeId], cards: Mapping[NodeId, NodeCard], pairs: Collection[Pair]
) -> tuple[LeftOut, ...]:
    """For each rank that is left out, the pairs that no ring can have as neighbours."""
    found = []
    for one in sorted(dropped):
        name = cards[one].name
        deaf = [cards[other].name for other in sorted(cards) if other != one and pair_of(one, other) not in pairs]
        apart = [f"{name} and {other} have no agreed path to each other" for other in deaf[:NAMED_PAIRS]]
        more = f" (and {len(deaf) - NAMED_PAIRS} more)" if len(deaf) > NAMED_PAIRS else ""
        found.append(LeftOut(one, name, f"{', '.join(apart) or 'no ring reaches it'}{more}"))
    return tuple(found)


def fit_ranks(willing: Mapping[NodeId, NodeCard], model: str) -> dict[NodeId, NodeCard]:
    """Of those that would host a rank, the ones that can, where they can hold `model`; else all."""
    fit = {one: card for one, card in willing.items() if not card.unfit}
    needs_mib = max((card.found_mib for card in willing.values() if card.found_model == model), default=0)
    holds = 0 < needs_mib <= sum(card.memory_mib for card in fit.values())
    return fit if holds else dict(willing)


def goes_on_without(
    failed: Collection[NodeId], willing: Mapping[NodeId, NodeCard], model: str, *, others_look: bool
) -> bool:
    """Can the others hold `model`, so that the next plan leaves these out? While none has found it, that may be as
    long as `others_look` for it.
    """
    if all(card.found_model != model for card in willing.values()):
        return others_look
    cards = {
        one: msgspec.structs.replace(card, unfit=card.unfit or "its rank failed") if one in failed else card
        for one, card in willing.items()
    }
    return not set(failed) & set(fit_ranks(cards, model))


def why_unfit(willing: Mapping[NodeId, NodeCard], ranks: Collection[NodeId]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(one, willing[one].name, willing[one].unfit) for one in sorted(set(willing) - set(ranks)))


def standing_by(
    cards: Mapping[NodeId, NodeCard], needs_mib: int, pairs: Collection[Pair], running: Sequence[NodeId]
) -> frozenset[NodeId]:
    """Of the nodes that would host a rank, `cards`, those that stand by. None where it is not known what the model
    needs (0), where all together cannot hold it, and among more nodes than can be tried.
    """
    ranks, connected = tuple(sorted(cards)), frozenset(pairs)
    if needs_mib <= 0 or len(ranks) > EXHAUSTIVE:
        return frozenset()
    for count in range(1, len(ranks)):
        holding = [
            chosen
            for chosen in itertools.combinations(ranks, count)
            if sum(cards[one].memory_mib for one in chosen) >= needs_mib and has_ring(chosen, connected)
        ]
        if holding:
            best = min(
                holding,
                key=lambda chosen: (
                    sum(one not in running for one in chosen),
                    -sum(cards[one].memory_mib for one in chosen),
                    chosen,
                ),
            )
            return frozenset(ranks) - frozenset(best)
    return frozenset()


def why_standing_by(standing: Collection[NodeId], cards: Mapping[NodeId, NodeCard]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(one, cards[one].name, STANDS_BY, stands_by=True) for one in sorted(standing))
