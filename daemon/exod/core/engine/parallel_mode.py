"""How the ranks share the model: each some of the layers (pipeline), or of each layer a part (tensor).

Decides that, alike on every node, from the plan and the model. A tensor group adds up what its ranks computed twice
a layer, over an edge between each two of them. Pure.
"""

from __future__ import annotations

import itertools

from exod.model import MeshPlan
from exoengine.model_files.memory_fit import ModelSizes, why_not_divisible


def tensor_parts(plan: MeshPlan, sizes: ModelSizes) -> int:
    """Of how many parts each layer is, one on each rank; 1 in a pipeline. ValueError, with a text for people, where
    `engine.parallel = "tensor"` cannot be.
    """
    ranks = len(plan.ring)
    if plan.parallel != "tensor" or ranks < 2:
        return 1
    if reason := obstacle(plan, sizes):
        raise ValueError(f'engine.parallel = "tensor" cannot be: {reason}; set it to "auto" or "pipeline"')
    return ranks


def obstacle(plan: MeshPlan, sizes: ModelSizes) -> str:
    """Why the plan's ranks cannot be a tensor group, as text; empty where they can, as far as is known."""
    connected = {frozenset((edge.source, edge.target)) for edge in plan.edges}
    for one, other in itertools.combinations(plan.ring, 2):
        if frozenset((one, other)) not in connected:
            return f"there is no path between {one} and {other}"
    return why_not_divisible(plan.model, sizes, len(plan.ring))
