"""How the ranks share the model: each some of the layers (pipeline), or of each layer a part (tensor).

Where the ranks do not divide the model's heads, some of them may: then each stage of a pipeline is a tensor group
of as many as do (four ranks are two stages of two). Decides that, alike on every node, from the plan and the model.
A tensor group adds up what its ranks computed twice a layer, over an edge between each two of them. Pure.
"""

from __future__ import annotations

import itertools

from exod.model import MeshPlan
from exoengine.model_files.memory_fit import ModelSizes, why_not_divisible


def tensor_parts(plan: MeshPlan, sizes: ModelSizes) -> int:
    """Of how many parts each layer is, on as many ranks that follow each other; 1 in a pipeline. ValueError, with a
    text for people, where `engine.parallel = "tensor"` cannot be.
    """
    ranks = len(plan.ring)
    if plan.parallel != "tensor" or ranks < 2:
        return 1
    if reason := obstacle(plan, sizes):
        raise ValueError(f'engine.parallel = "tensor" cannot be: {reason}; set it to "auto" or "pipeline"')
    return most_parts(plan, sizes) or ranks


def most_parts(plan: MeshPlan, sizes: ModelSizes) -> int:
    """The most parts, up to one for each rank, that stages of as many ranks can divide the model in; 0: none."""
    ranks = len(plan.ring)
    divisors = [parts for parts in range(ranks, 1, -1) if ranks % parts == 0]
    found = (parts for parts in divisors if ranks // parts <= sizes.total_layers)
    return next((parts for parts in found if not why_not_divisible(plan.model, sizes, parts)), 0)


def obstacle(plan: MeshPlan, sizes: ModelSizes) -> str:
    """Why the plan's ranks cannot be tensor groups, as text; empty where they can, as far as is known."""
    connected = {frozenset((edge.source, edge.target)) for edge in plan.edges}
    for one, other in itertools.combinations(plan.ring, 2):
        if frozenset((one, other)) not in connected:
            return f"there is no path between {one} and {other}"
    return group_obstacle(plan, sizes)


def group_obstacle(plan: MeshPlan, sizes: ModelSizes) -> str:
    """As `obstacle`, whatever paths there are."""
    return "" if most_parts(plan, sizes) else why_not_divisible(plan.model, sizes, len(plan.ring))
