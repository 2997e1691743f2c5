"""mlx-lm by itself, as the benchmarks compare with: one process alone, or one rank of its own pipeline or, with
`shard`, of its own tensor parallelism.

    MLX_HOSTFILE=… MLX_RANK=… python -m tests.bench.engine_peer FOLDER SIZE [shard]

Waits for a line `PROMPT_TOKENS STEPS SEED` on standard input without using the processor, generates with mlx-lm's
own loop, and answers with the seconds to the first token and the seconds for the others.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

CHUNK_TOKENS = 512
"""As the measurement that the engine's target refers to. mlx-lm's default of 2,048 overlaps nothing here."""


def prompt(tokens: int, seed: int) -> list[int]:
    """Another one for each seed and length from its first token on, so that no cache helps."""
    return [(7 * index + seed + tokens) % 250 for index in range(tokens)]


def main() -> None:
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    model, _ = load_model(folder, lazy=True)
    if size > 1 and sys.argv[3:] == ["shard"]:
        model.shard(mx.distributed.init(strict=True, backend="ring"))
    elif size > 1:
        model.model.pipeline(mx.distributed.init(strict=True, backend="ring"))
    mx.eval(model.parameters())
    print("ready", flush=True)
    for line in sys.stdin:
        tokens, steps, seed = map(int, line.split())
        begun = time.perf_counter()
        first = begun
        wanted = generate_step(
            mx.array(prompt(tokens, seed)), model, max_tokens=steps, prefill_step_size=CHUNK_TOKENS
        )
        for index, _ in enumerate(wanted):
            if index == 0:
                first = time.perf_counter()
        print(first - begun, time.perf_counter() - first, flush=True)


if __name__ == "__main__":
    main()
