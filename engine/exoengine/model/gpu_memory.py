"""What MLX says of the GPU's memory on this machine, and what this process wires of it. For the MLX thread."""

from __future__ import annotations

import mlx.core as mx


def recommended_bytes() -> int:
    """What a process should use at most; 0 where MLX has no Metal. A person's `iogpu.wired_limit_mb` is in it."""
    if not mx.metal.is_available():
        return 0
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


def wire(limit: int) -> int:
    """Wires up to `limit` bytes from now on, and returns how many: 0 where there is nothing to wire, or MLX refuses
    the limit and goes on without one.
    """
    if limit <= 0:
        return 0
    try:
        mx.set_wired_limit(limit)
    except (RuntimeError, ValueError):
        return 0
    return limit
