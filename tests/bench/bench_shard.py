"""A tensor group beside mlx-lm's own `shard` over MLX's ring, in many short blocks that alternate.

Two ranks of this machine, each on a core of its own where that can be said (Linux): a rank that sleeps might else
be given the other's. Both are loaded once, so that a block takes a second or two: what else the machine does meets
both alike. A ratio is of two blocks that follow each other, in a drawn order.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from exoengine.protocol import Loaded, SyncSettings
from tests.bench.bench_tensor import LAYERS, MODEL, answered, peer_answered, peers
from tests.bench.rows import Row
from tests.engine.driver import cluster
from tests.engine.models import write_model

WIDE = {**MODEL, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
NARROW = {**MODEL, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 16}
"""In float32, in which a processor computes fast: the less there is to compute, the more the sums are of it."""
ROUNDS = 12
SHORT, LONG = 24, 256
STEPS = 33
PREFILLS = 3
"""One round of so many has a prompt of LONG tokens: it takes several times as long as a block of decode."""
TARGET = 0.9

Block = Callable[[int, int, int], tuple[float, float]]
"""Of a prompt's tokens, steps and a seed: the seconds to the first token, and of the others."""


def run(rounds: int = ROUNDS) -> list[Row]:
    return [
        *_of_model("16 layers of 512", WIDE, rounds),
        *_of_model("16 layers of 128", NARROW, rounds),
    ]


def _of_model(name: str, config: dict[str, Any], rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", config, dtype=mx.float32)
        with peers(folder, 2) as theirs, cluster(Path(place), 2) as ours:
            settings = SyncSettings(sync="fast", watchdog_s=20.0, chunk_deadline_s=300.0)
            said = ours.load_parts(folder, 2, LAYERS, settings)
            assert all(isinstance(one, Loaded) for one in said), said
            ours.form()
            for processes in ([peer.pid for peer in theirs], [rank.process.pid for rank in ours.ranks]):
                _alike(processes)
            blocks: dict[str, Block] = {
                "ours": lambda *asked: answered(ours, *asked),
                "theirs": lambda *asked: peer_answered(theirs, *asked),
            }
            return _measured(name, blocks, rounds)


def _alike(processes: Sequence[int]) -> None:
    """A core for each, and of this process's priority: the engine's ranks are sessions of their own, each of which
    Linux gives the same share.
    """
    own = Path("/proc/self/autogroup")
    if not own.exists():
        return
    priority = re.sub(r".*nice ", "", own.read_text().strip())
    for number, process in enumerate(processes):
        Path(f"/proc/{process}/autogroup").write_text(priority)
        for task in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(task.name), {number % (os.cpu_count() or 1)})


def _measured(model: str, blocks: dict[str, Block], rounds: int) -> list[Row]:
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
        *_rows(f"{model}: a token", tokens),
        *_rows(f"{model}: first of {LONG}", firsts),
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
