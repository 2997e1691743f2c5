"""A tensor group beside mlx-lm's own `shard` over MLX's ring, in many short blocks that alternate.

Two ranks of this machine, the model of bench_tensor.py. Both are loaded once, so that a block takes a second: what
else the machine does then meets both alike. A ratio is of two blocks that follow each other, in a drawn order.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from exoengine.protocol import Loaded, SyncSettings
from tests.bench.bench_tensor import LAYERS, MODEL, answered, peer_answered, peers
from tests.bench.rows import Row
from tests.engine.driver import cluster
from tests.engine.models import write_model

ROUNDS = 30
SHORT, LONG = 40, 512
STEPS = 16
PREFILLS = 3
"""One round of so many has a prompt of LONG tokens: it takes ten times as long as a block of decode."""
TARGET = 0.9

Block = Callable[[int, int, int], tuple[float, float]]
"""Of a prompt's tokens, steps and a seed: the seconds to the first token, and of the others."""


def run(rounds: int = ROUNDS) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", MODEL, dtype=mx.bfloat16)
        with peers(folder, 2) as theirs, cluster(Path(place), 2) as ours:
            settings = SyncSettings(sync="fast", watchdog_s=20.0, chunk_deadline_s=300.0)
            said = ours.load_parts(folder, 2, LAYERS, settings)
            assert all(isinstance(one, Loaded) for one in said), said
            ours.form()
            blocks: dict[str, Block] = {
                "ours": lambda *asked: answered(ours, *asked),
                "theirs": lambda *asked: peer_answered(theirs, *asked),
            }
            return _measured(blocks, rounds)


def _measured(blocks: dict[str, Block], rounds: int) -> list[Row]:
    tokens: dict[str, list[float]] = {name: [] for name in blocks}
    firsts: dict[str, list[float]] = {name: [] for name in blocks}
    for seed in range(rounds + 1):  # the first round warms up
        order = random.Random(seed).sample(list(blocks), len(blocks))
        for name in order:
            took_s = blocks[name](SHORT, STEPS, seed)[1] / (STEPS - 1)
            tokens[name] += [took_s] if seed else []
        for name in order if seed % PREFILLS == 0 else ():
            first_s = blocks[name](LONG, 1, seed)[0]
            firsts[name] += [first_s] if seed else []
    return [
        *_rows("a token", tokens),
        *_rows(f"first of {LONG}", firsts),
    ]


def _rows(what: str, times: dict[str, list[float]]) -> list[Row]:
    ratios = tuple(one / other for one, other in zip(times["ours"], times["theirs"], strict=True))
    return [
        Row(f"{what}, tensor group", statistics.median(times["ours"]) * 1000, "ms", None, tuple(times["ours"])),
        Row(
            f"{what}, mlx-lm's shard", statistics.median(times["theirs"]) * 1000, "ms", None, tuple(times["theirs"])
        ),
        Row(f"{what}, ratio", statistics.median(ratios), "", TARGET, ratios),
    ]
