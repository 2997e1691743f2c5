"""A rank's share of a model under tensor parallelism: every layer, and of its matrices one part of several.

mlx-lm's own `shard` divides a model: it replaces layers by such that add up over a group what each rank computed.
The group that a model is divided with only says who is who; each group that is formed later takes its place
(`regroup`), and a model without one keeps the first, whose operations fail.

Decides: whether a model can be divided so. Evaluates nothing.
"""

from __future__ import annotations

from typing import Any, Final

import mlx.core as mx
from mlx.nn.layers.distributed import sum_gradients

GROUP_NAMES: Final = ("group", "sharding_group")
"""What mlx-lm's layers and MLX's call the group that they were made with."""


class NotDivisibleError(Exception):
    """`str(error)` is part of a line for people."""


def divide(model: Any, group: Any) -> None:
    """Leaves of `model`, which must be loaded lazily, the share of `group.rank()`. Raises NotDivisibleError."""
    if not callable(getattr(model, "shard", None)):
        raise NotDivisibleError("mlx-lm cannot divide its layers among ranks")
    try:
        model.shard(group)
    except (ValueError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise NotDivisibleError(f"its layers cannot be divided by {group.size()}: {said}") from error


def regroup(model: Any, group: Any) -> None:
    """From here on the layers communicate over `group`, of the same rank and size as before."""
    for _, layer in model.named_modules():
        for name in GROUP_NAMES:
            if isinstance(getattr(layer, name, None), mx.distributed.Group):
                setattr(layer, name, group)
    # MLX keeps the last 128 groups that it was asked for, with their connections.
    sum_gradients.cache_clear()
