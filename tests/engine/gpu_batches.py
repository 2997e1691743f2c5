"""Tokens a second of 1, 8 and 32 answers at once on a GPU: `python -m tests.engine.gpu_batches [--layers 24 ...]`.

A random Qwen2 in bfloat16, of 0.94 billion parameters as the options are: one rank with all layers, then two ranks
of one machine with half each, on GPUs of their own where there are two, then mlx-lm's own batched cache in this
process. Counted while all answers decode. Prints a line for each; an error where something hangs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from exoengine.protocol import Finished, Loaded, Serving, TokenOut
from tests.engine.driver import Cluster, cluster, request
from tests.engine.gpu import hosts
from tests.engine.models import QWEN2, write_model

COUNTS = (1, 8, 32)
TOKENS = 200
WARM = 16
"""Tokens that each answer has before anything is counted."""
WITHIN_S = 240.0


def prompt(number: int) -> list[int]:
    return [number, *((7 * index + 3) % 250 for index in range(48 + number % 16))]


def rate(ranks: Cluster, count: int, tokens: int = TOKENS) -> float:
    """Tokens a second of all together, from when each has `WARM` until the first one is finished."""
    seen = len(ranks.ranks[0].seen)
    begun = [ranks.begin(request(prompt(number), tokens)).request.request_id for number in range(count)]
    until = time.monotonic() + WITHIN_S
    counted: tuple[float, int] | None = None
    done = False
    while not done:
        assert time.monotonic() < until, ranks.ranks[0].last_said()
        time.sleep(0.002)
        now, told = time.monotonic(), ranks.ranks[0].seen[seen:]
        outs = [said for said in told if isinstance(said, TokenOut)]
        warm = {said.request_id for said in outs if said.index >= WARM}
        if counted is None and len(warm) == count:
            counted = now, len(outs)
        done = any(isinstance(said, Finished) for said in told)
    assert counted is not None, "one was finished before all had begun to decode"
    found = (len(outs) - counted[1]) / (now - counted[0])
    for request_id in begun:
        while not all(any(_ends(said, request_id) for said in rank.seen[:]) for rank in _loaded(ranks)):
            assert time.monotonic() < until, ranks.ranks[0].last_said()
            time.sleep(0.01)
    return found


def _ends(said: object, request_id: str) -> bool:
    return isinstance(said, Finished) and said.request_id == request_id


def _loaded(ranks: Cluster) -> list[Any]:
    return ranks.ranks[: len(ranks.loads)]


def plain_rate(folder: Path, count: int) -> float:
    """mlx-lm's batched cache, the next step built while one is computed."""
    model, _ = load_model(folder)
    own = []
    for number in range(count):
        caches = make_prompt_cache(model)
        model(mx.array([prompt(number)]), cache=caches)
        mx.eval([cache.state for cache in caches])
        own.append(caches)
    together: list[Any] = own[0]
    if count > 1:
        together = [type(layer[0]).merge(list(layer)) for layer in zip(*own, strict=True)]
    tokens = mx.array([[number] for number in range(count)])
    begun = 0.0
    for step in range(TOKENS):
        following = mx.argmax(model(tokens, cache=together)[:, -1:, :], axis=-1)
        mx.async_eval(following)  # type: ignore[no-untyped-call, unused-ignore]
        mx.eval(tokens)
        tokens = following
        if step == WARM:
            begun = time.monotonic()
    mx.eval(tokens)
    return count * (TOKENS - 1 - WARM) / (time.monotonic() - begun)


def shown(name: str, rates: dict[int, float]) -> None:
    single = rates[COUNTS[0]]
    cells = (f"{count}: {rate:8.1f} tokens/s ({rate / single:5.2f} times)" for count, rate in rates.items())
    print(f"{name:22} " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.gpu_batches")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=4864)
    options = parser.parse_args()
    config = {
        **QWEN2, "num_hidden_layers": options.layers, "hidden_size": options.hidden,
        "intermediate_size": options.intermediate, "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": 4,
    }  # fmt: skip
    print(f"{mx.default_device()}, MLX {mx.__version__}", flush=True)
    half = options.layers // 2
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", config, dtype=mx.bfloat16)
        with cluster(Path(place), 2, hosts=hosts()) as ranks:
            for split in ([options.layers], [half, options.layers - half]):
                said = ranks.load(folder, split, serving=Serving(max(COUNTS)))
                assert all(isinstance(one, Loaded) for one in said), said
                ranks.form()
                rate(ranks, 1)  # what is compiled once is compiled
                shown(f"{len(split)} rank(s)", {count: rate(ranks, count) for count in COUNTS})
        plain_rate(folder, 1)
        shown("mlx-lm, one process", {count: plain_rate(folder, count) for count in COUNTS})


if __name__ == "__main__":
    main()
