"""mlx-lm's own tensor parallelism over MLX's ring, as one rank: what the engine's is compared with.

`python -m tests.engine.plain_shard ORDER` with MLX_HOSTFILE and MLX_RANK; ORDER is JSON: prompt, steps, seed and
model folders. Prints, for each folder a line, the tokens of a greedy and of a sampled answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from exoengine.model.sampling import Sampler
from exoengine.protocol import Sampling
from tests.engine.models import VOCAB


def generated(model: Any, prompt: list[int], steps: int, sampling: Sampling) -> list[int]:
    cache, sampler = make_prompt_cache(model), Sampler(sampling, VOCAB)
    history = list(prompt)
    model(mx.array([history[:-1]]), cache=cache)
    mx.eval([one.state for one in cache])
    for step in range(steps):
        token, _ = sampler.draw(model(mx.array([history[-1:]]), cache=cache)[:, -1, :], history, step)
        history.append(int(token.item()))
    return history[len(prompt) :]


def main() -> None:
    order = json.loads(sys.argv[1])
    mx.set_default_device(mx.cpu)
    group = mx.distributed.init(strict=True, backend="ring")
    for folder in order["folders"]:
        model, _ = load_model(Path(folder), lazy=True)
        model.shard(group)
        mx.eval(model.parameters())
        ways = (Sampling(), Sampling(temperature=1.0, seed=order["seed"]))
        print(json.dumps([generated(model, order["prompt"], order["steps"], one) for one in ways]), flush=True)


if __name__ == "__main__":
    main()
