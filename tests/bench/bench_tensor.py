"""Tensor parallelism against mlx-lm's own over MLX's ring, on two ranks of this machine, and a collective's cost.

A model with random weights, in float32 (a processor computes bfloat16 slowly), over loopback. As in bench_engine.py
each round runs every contestant once in a drawn order, a ratio is taken within each round, and of those the median.
Pipeline and one process alone stand beside it, fast and safe (layer by layer) steps too. Each keeps its ranks from
the first round to the last.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import msgspec

from exod.core.engine.parallel_forecast import forecasts
from exoengine.model_files.model_folder import inspect
from exoengine.native.build import build, cache_in
from exoengine.protocol import Abort, Aborted, Formed, Loaded, SyncSettings, TokenOut
from tests.bench.engine_peer import prompt
from tests.bench.rows import Row, percentile
from tests.core.engine.engine_samples import A, B, a_plan, status
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import QWEN2, write_model
from tests.engine.native.ranks import run as run_ranks

LAYERS = 16
MODEL = {
    **QWEN2, "hidden_size": 1024, "num_hidden_layers": LAYERS, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
}  # fmt: skip
ROUNDS = 9
CUTS = 20
SHORT, LONG = 8, 128
"""Tokens of a prompt. 128 take 10 s a contestant here."""
STEPS = 16
PREFILLS = 3
"""One round of so many has a prompt of LONG tokens, of the contestants that a ratio of it compares."""
PATIENCE_S = 300.0
"""Of an answer, and of a chunk of its prompt: at a load of 15 on two cores one of 512 tokens took over a minute."""
COUNTS = {"2 KiB": 512, "4 KiB": 1024, "64 KiB": 16384, "8 MiB": 2 * 1024 * 1024}
"""Elements of float32."""
SMALL_ROUNDS, LARGE_ROUNDS = 300, 20
CABLE_BYTES_PER_S = 125_000_000
"""Slow enough that a machine of two cores keeps up with two of them; the kernel paces each connection."""
TWO_CABLES = 0.6
"""Half, and what blocks and headers cost."""

_ports = itertools.count(11920)

RING_COST = """
import json, statistics, sys, time
import mlx.core as mx
group = mx.distributed.init(strict=True, backend="ring")
took = []
for count, rounds in json.loads(sys.argv[1]):
    x = mx.ones((count,))
    mx.eval(x)
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        mx.eval(mx.distributed.all_sum(x, group=group, stream=mx.cpu))
        times.append(time.perf_counter() - begun)
    took.append(statistics.median(times))
print(json.dumps(took))
"""

SHARD, FAST = "mlx-lm's shard", "tensor, fast"

Times = dict[str, list[float]]
Asked = Callable[[int, int, int], tuple[float, float]]
"""Of a prompt's tokens, steps and a seed: the seconds to the first token, and of the others."""


@dataclass(frozen=True)
class Ranks:
    """Two ranks of the engine that hold the model in one way, and what they said when they were asked to."""

    cluster: Cluster
    loaded: list[Loaded]
    formed: list[Formed]


def run(rounds: int = ROUNDS) -> list[Row]:
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", MODEL, dtype=mx.float32)
        with ExitStack() as stack:
            theirs = stack.enter_context(peers(folder, 2))
            alone = stack.enter_context(peers(folder, 1))
            fast = stack.enter_context(_ranks(Path(place), folder, "fast", True))
            safe = stack.enter_context(_ranks(Path(place), folder, "safe", True))
            pipeline = stack.enter_context(_ranks(Path(place), folder, "fast", False))
            asked: dict[str, Asked] = {
                SHARD: partial(peer_answered, theirs),
                "alone": partial(peer_answered, alone),
                FAST: partial(answered, fast.cluster),
                "tensor, safe": partial(answered, safe.cluster),
                "pipeline, fast": partial(answered, pipeline.cluster),
            }
            _measure(asked, rounds, times)
            predicted = [_predicted(fast, folder, "tensor"), _predicted(pipeline, folder, "pipeline")]
            gaps = _cuts(fast.cluster)
        native, ring, cables = _native_cost(Path(place)), _ring_cost(), _cables_cost(Path(place))
    return [*_rows(times, gaps, native, ring), *_cable_rows(cables), *_errors(predicted, times)]


def _measure(asked: dict[str, Asked], rounds: int, times: Times) -> None:
    for seed in range(rounds + 1):  # the first round warms up
        for name in random.Random(seed).sample(list(asked), len(asked)):
            token_s = asked[name](SHORT, STEPS, seed)[1] / (STEPS - 1)
            times[f"{name}: a token"] += [token_s] if seed else []
        for name in random.Random(seed).sample([SHARD, FAST], 2) if seed % PREFILLS == 0 else ():
            first_s = asked[name](LONG, 1, seed)[0]
            times[f"{name}: first of {LONG}"] += [first_s] if seed else []


def _rows(times: Times, gaps: list[float], native: list[float], ring: list[float]) -> list[Row]:
    token, first = "a token", f"first of {LONG}"
    return [
        *(
            Row(f"{name}, median of {len(values)}", statistics.median(values) * 1000, "ms", samples=tuple(values))
            for name, values in sorted(times.items())
        ),
        _ratio("tensor, fast / mlx-lm's shard", times, f"tensor, fast: {token}", f"mlx-lm's shard: {token}", 0.9),
        _ratio("tensor, safe / tensor, fast", times, f"tensor, safe: {token}", f"tensor, fast: {token}"),
        _ratio(f"prefill of {LONG}, the same", times, f"tensor, fast: {first}", f"mlx-lm's shard: {first}"),
        _ratio("tensor, fast / pipeline, fast", times, f"tensor, fast: {token}", f"pipeline, fast: {token}"),
        _ratio("tensor, fast / one process", times, f"tensor, fast: {token}", f"alone: {token}"),
        Row(f"gap at a cut, p99 of {len(gaps)}", percentile(gaps, 99) * 1000, "ms", 500.0, tuple(gaps)),
        *(
            Row(f"all_sum of {name}, native", here * 1e6, "µs")
            for name, here in zip(COUNTS, native, strict=True)
        ),
        *(
            Row(f"all_sum of {name}, MLX's ring", there * 1e6, "µs")
            for name, there in zip(COUNTS, ring, strict=True)
        ),
    ]  # fmt: skip


def _ratio(name: str, times: Times, of: str, to: str, target: float | None = None) -> Row:
    ratios = tuple(one / other for one, other in zip(times[of], times[to], strict=True))
    return Row(name, statistics.median(ratios), "", target, ratios)


def _hostfile(place: Path, size: int) -> Path:
    file = place / f"hosts{size}.json"
    file.write_text(json.dumps([[f"127.0.0.1:{next(_ports)}"] for _ in range(size)]))
    return file


@contextmanager
def peers(folder: Path, size: int) -> Iterator[list[subprocess.Popen[str]]]:
    hosts = _hostfile(folder.parent, size)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.engine_peer", str(folder), str(size), "shard"],
            env=os.environ | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "mlx-lm could not be started"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def peer_answered(
    processes: list[subprocess.Popen[str]], tokens: int, steps: int, seed: int
) -> tuple[float, float]:
    """Seconds to mlx-lm's first token and of the others, of the slowest rank."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{tokens} {steps} {seed}\n")
        process.stdin.flush()
    first_s, rest_s = 0.0, 0.0
    for process in processes:
        assert process.stdout is not None
        one_s, other_s = map(float, process.stdout.readline().split())
        first_s, rest_s = max(first_s, one_s), max(rest_s, other_s)
    return first_s, rest_s


def answered(ranks: Cluster, tokens: int, steps: int, seed: int) -> tuple[float, float]:
    """The same of the engine's ranks."""
    asked = request(prompt(tokens, seed), steps)
    ranks.begin(asked)
    first_s, rest_s = 0.0, 0.0
    for answer in ranks.finish(asked.request_id, PATIENCE_S):
        assert isinstance(answer, Answer), answer
        assert answer.finished is not None
        first_s, rest_s = max(first_s, answer.finished.prefill_s), max(rest_s, answer.finished.decode_s)
    return first_s, rest_s


def _predicted(ranks: Ranks, folder: Path, way: str) -> tuple[str, float]:
    """Seconds of a token, as the daemons would predict it of this way from what was measured at load."""
    statuses = [
        status(node, layers=one.layers, parts=one.parts, costs=one.step_costs, edges=group.edge_costs)
        for node, one, group in zip((A, B), ranks.loaded, ranks.formed, strict=True)
    ]
    plan = msgspec.structs.replace(a_plan(A, B), memory_mib=(1 << 20, 1 << 20))
    ways: dict[str, float] = {one.way: one.token_s for one in forecasts(plan, inspect(folder), statuses)}
    return way, ways[way]


def _errors(predicted: list[tuple[str, float]], times: Times) -> list[Row]:
    """How far each prediction is from the median that was measured."""
    medians = {name: statistics.median(times[f"{name}, fast: a token"]) for name, _ in predicted}
    return [Row(f"{name}: predicted / measured", token_s / medians[name], "") for name, token_s in predicted]


@contextmanager
def _ranks(place: Path, folder: Path, sync: str, is_tensor: bool) -> Iterator[Ranks]:
    own = place / f"{sync}-{is_tensor}"
    own.mkdir()
    settings = SyncSettings(sync=sync, watchdog_s=20.0, chunk_deadline_s=PATIENCE_S)  # type: ignore[arg-type]
    with cluster(own, 2) as ranks:
        said = (
            ranks.load_parts(folder, 2, LAYERS, settings)
            if is_tensor
            else ranks.load(folder, [LAYERS // 2, LAYERS // 2], settings)
        )
        loaded = [one for one in said if isinstance(one, Loaded)]
        assert len(loaded) == len(said), said
        yield Ranks(ranks, loaded, ranks.form())


def _cuts(ranks: Cluster) -> list[float]:
    """From the abort of a group to the first token of the next, which is formed at once, without a daemon."""
    ranks.begin(request(prompt(SHORT, 0), 100_000))
    gaps = []
    for cut in range(CUTS):
        ranks.ranks[0].expect(TokenOut, where=lambda said, cut=cut: said.index >= 4 * (cut + 1))
        begun = time.monotonic()
        ranks.ranks[cut % 2].send(Abort("the benchmark cuts a link"))
        for one in ranks.ranks:
            one.expect(Aborted)
        ranks.form()
        ranks.ranks[0].expect(TokenOut)
        gaps.append(time.monotonic() - begun)
    return gaps


def _native_cost(place: Path) -> list[float]:
    module = Path(build(cache_in(place)).file)
    counts = list(COUNTS.values())
    small = run_ranks(module, 2, "cost", counts=counts[:-1], spin_us=50, rounds=SMALL_ROUNDS)
    large = run_ranks(module, 2, "cost", counts=counts[-1:], spin_us=50, rounds=LARGE_ROUNDS)
    return [max(pair) for pair in zip(*(one + other for one, other in zip(small, large, strict=True)), strict=True)]


def _cables_cost(place: Path) -> tuple[float, float]:
    """Seconds of an all_sum of 8 MiB over one connection and over two, each as slow as CABLE_BYTES_PER_S."""
    module, counts = Path(build(cache_in(place)).file), [COUNTS["8 MiB"]]
    one, two = (
        run_ranks(
            module, 2, "cost", lanes=lanes, bytes_per_s=CABLE_BYTES_PER_S, counts=counts, spin_us=50,
            rounds=LARGE_ROUNDS,
        )
        for lanes in (1, 2)
    )  # fmt: skip
    return max(one)[0], max(two)[0]


def _cable_rows(cables: tuple[float, float]) -> list[Row]:
    one_s, two_s = cables
    return [
        Row("all_sum of 8 MiB, one cable of 1 Gbit/s", one_s * 1e3, "ms"),
        Row("all_sum of 8 MiB, two such cables", two_s * 1e3, "ms"),
        Row("two cables / one", two_s / one_s, "", TWO_CABLES),
    ]


def _ring_cost() -> list[float]:
    order = json.dumps([*((count, SMALL_ROUNDS) for count in list(COUNTS.values())[:-1]),
                        (list(COUNTS.values())[-1], LARGE_ROUNDS)])  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        hosts = _hostfile(Path(place), 2)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", RING_COST, order], stdout=subprocess.PIPE, text=True,
                env=os.environ | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            )
            for rank in range(2)
        ]  # fmt: skip
        took = [json.loads(one.communicate()[0]) for one in running]
    return [max(pair) for pair in zip(*took, strict=True)]
