"""Which model the cluster hosts, and whether it admits requests: one will for all nodes.

The theory. What a person asks by command (load, unload, drain) is one record with a time; every node keeps the
newest that it has seen, in its card and on its disk, so it outlives any coordinator. Without one the configurations
count: the coordinator's, or that of the lowest node that names a model; where none does, what is hosted goes on,
because the node that named it may only be away. Where no node names a model the demo model runs.

Decides nothing about plans. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from exod.model import ClusterWish, NodeCard

DEMO_MODEL = "embedded:count"


def is_repository(model: str) -> bool:
    """Is it a hub's OWNER/NAME? What else a model may be, embedded or a folder, is never looked for there."""
    return "/" in model and not model.startswith(("/", ".", "~"))


def newest(one: ClusterWish | None, other: ClusterWish | None) -> ClusterWish | None:
    """A total order: of two commands of one moment both nodes keep the same."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda wish: (wish.at, wish.by, wish.model or "", wish.draining))


def hosted_model(coordinator: NodeCard, cards: Iterable[NodeCard]) -> str:
    """The model of a plan with these members; empty where a person unloaded it."""
    members = sorted(cards, key=lambda card: (card.id != coordinator.id, card.id))
    wish: ClusterWish | None = None
    for card in members:
        wish = newest(wish, card.wish)
    if wish is not None and wish.model is not None:
        return wish.model
    named = [card.model for card in members] + [card.hosted for card in members]
    return next((model for model in named if model), DEMO_MODEL)
