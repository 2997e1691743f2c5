"""Several answers at once on two ranks: the tokens a second of 2 and of 4 that decode, against those of one.

The model of the section `engine`, half of its layers on each of the lab's two hosts, over `en0`. One answer has one
stage at work at a time; two are two groups and have both; four are two groups of two, each one pass. A round runs
all three in a drawn order, a ratio is taken within each round, and of the rounds' ratios the median. Each rank
needs a core of its own: where other jobs take one the ratio says little.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import mlx.core as mx

from exoengine.protocol import Loaded, Serving
from tests.bench.bench_engine import MODEL, SPLIT
from tests.bench.rows import Row
from tests.engine.driver import cluster
from tests.engine.gpu_batches import rate
from tests.engine.models import write_model
from tests.lab.topology import Lab

COUNTS = (1, 2, 4)
ROUNDS = 7
TOKENS = 64
"""Short turns, so that what else the machine does meets all of them."""
AT_LEAST = 1.7
"""Times one answer's tokens a second. Two stages give twice at most, but for what a pass of several saves."""


def run(rounds: int = ROUNDS) -> list[Row]:
    rates: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place, Lab(2) as lab:
        folder = write_model(Path(place) / "model", MODEL, dtype=mx.bfloat16)
        hosts = [(lab.host(number).argv([]), lab.host(number).address("en0")) for number in (1, 2)]
        with cluster(Path(place), 2, hosts=hosts) as ranks:
            said = ranks.load(folder, SPLIT, serving=Serving(max(COUNTS)))
            assert all(isinstance(one, Loaded) for one in said), said
            ranks.form()
            rate(ranks, max(COUNTS), TOKENS)  # what is compiled once is compiled
            for seed in range(rounds):
                for count in random.Random(seed).sample(COUNTS, len(COUNTS)):
                    rates[count].append(rate(ranks, count, TOKENS))
    rows = [Row(f"tokens/s of {count} at once", statistics.median(rates[count]), "1/s") for count in COUNTS]
    for count in COUNTS[1:]:
        shares = [one / many for one, many in zip(rates[1], rates[count], strict=True)]
        name = f"one's tokens/s as a share of {count}'s"
        rows.append(Row(name, statistics.median(shares), "", 1 / AT_LEAST, tuple(shares)))
    return rows
