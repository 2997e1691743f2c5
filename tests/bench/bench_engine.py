"""The engine against mlx-lm by itself, on two ranks: decode, prefill, time to first token, changes of mode, load.

A model of 31 million parameters with random weights, on the lab's two hosts: over `en0`, which the kernel carries,
and decode also over the emulated cable, whose emulator needs a processor of its own. Each round runs every
contestant once, in a drawn order, so that what else the machine does meets all of them; a ratio is taken within
each round, and of the rounds' ratios the median. MLX's products on a CPU run on one thread whatever the process, so
two ranks have twice what one process has, as far as the machine's cores leave each other alone, which is measured
beside. Weights are bfloat16, in which MLX multiplies many tokens fastest here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import mlx.core as mx

from exoengine.protocol import Loaded, SyncSettings
from tests.bench.engine_peer import prompt
from tests.bench.rows import Row
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import QWEN2, write_model
from tests.lab.topology import Lab

MODEL = {
    **QWEN2, "hidden_size": 384, "num_hidden_layers": 16, "intermediate_size": 1280, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 32768,
}  # fmt: skip
"""Sixteen layers, as small models have. A prefill needs nothing of the last one but its cache, so the fewer there
are the more of the work is the first rank's: with eight, half of the layers are 57% of it.
"""
SPLIT = [8, 8]
ROUNDS = 30
"""One round's ratio is off by a tenth on a machine that others use."""
ROUNDS_A_LIFE = 5
"""Then every contestant gets new processes, so that what one has by chance is drawn again."""
FULL_ROUNDS = 5
"""The first ones also measure what has no target: one process alone, and changes of the mode."""
LONG_ROUNDS = 3
"""The first ones take a long prompt too: half a minute and more for one process, and its ratios differ little."""
SHORT, LONG = 40, 2048
STEPS = 32
"""Short turns: what else the machine does meets the next contestant too."""
PATIENCE_S = 300.0
"""A long prompt takes a slow processor a minute."""
PORTS = {"en0": 11900, "bridge0": 11901}  # mlx-lm's; below those of the tests' clusters
ALTERNATING = SyncSettings(safe_context_tokens=1)
"""With this the workers of this benchmark change the mode at every step, whatever they measure."""

CHANGES_AT_EVERY_STEP = """
from exoengine.generate.sync_mode import SyncChoice, SyncPolicy
choose = SyncPolicy.choose
def chosen(self, kv_tokens):
    usual = choose(self, kv_tokens)
    return SyncChoice(kv_tokens % 2 == 0, "the benchmark") if self.settings.safe_context_tokens == 1 else usual
SyncPolicy.choose = chosen
"""

MODES = {
    "fast": SyncSettings(sync="fast"), "safe": SyncSettings(sync="safe"), "dynamic": SyncSettings(),
    "alternating": ALTERNATING,
}  # fmt: skip

LOAD_ALONE = """
import sys, time
import mlx.core as mx
from exoengine.model.loading import load
from exoengine.protocol import Load, SyncSettings
mx.reset_peak_memory()
begun = time.perf_counter()
model = load(Load(sys.argv[1], 0, 4, SyncSettings()), lambda *_: None)
print(time.perf_counter() - begun, mx.get_peak_memory() / model.weight_bytes)
"""

PRODUCTS = """
import statistics, time
import mlx.core as mx
weights, hidden = (mx.random.normal(shape).astype(mx.bfloat16) for shape in ((1280, 384), (128, 384)))
took, until = [], time.perf_counter() + 5
while time.perf_counter() < until:
    begun = time.perf_counter()
    mx.eval(hidden @ weights.T)
    took.append(time.perf_counter() - begun)
print(statistics.mean(took))
"""

SHARED = "a product beside another / alone"

Times = dict[str, list[float]]


def run(rounds: int = ROUNDS) -> list[Row]:
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as place, Lab(2) as lab:
        folder = write_model(Path(place) / "model", MODEL, dtype=mx.bfloat16)
        for begin in range(1, rounds + 1, ROUNDS_A_LIFE):
            life = range(begin, min(begin + ROUNDS_A_LIFE, rounds + 1))
            with _contestants(folder, Path(place) / f"life{begin}", lab) as contestants:
                for turn in contestants.turns(0):
                    turn()  # to warm up
                for seed in life:
                    turns = contestants.turns(seed)
                    random.Random(seed).shuffle(turns)  # nobody always comes after the same one
                    for turn in turns:
                        for name, value in turn().items():
                            times[name].append(value)
                    if seed <= LONG_ROUNDS:
                        times[SHARED].append(_shared_core())
        load_s, peak = _load(folder)
    return _rows(times, load_s, peak)


Turn = Callable[[], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class _Contestants:
    """Their processes, and what each is asked in a round."""

    folder: Path
    lab: Lab
    alone: list[subprocess.Popen[str]]
    theirs: dict[str, list[subprocess.Popen[str]]]
    ours: Cluster

    def turns(self, seed: int) -> list[Turn]:
        """Of round `seed`; round 0 warms up and has all of them."""
        lengths = (SHORT, LONG) if 0 < seed <= LONG_ROUNDS else (SHORT,)
        en0, cable = _addresses(self.lab, "en0"), _addresses(self.lab, "bridge0")
        turns: list[Turn] = [
            partial(_theirs, "mlx-lm", self.theirs["en0"], lengths, seed),
            partial(_theirs, "mlx-lm, cable", self.theirs["bridge0"], (SHORT,), seed),
        ]
        for mode in MODES if seed <= FULL_ROUNDS else ("fast", "safe"):
            long_too = lengths if mode == "fast" else (SHORT,)
            turns.append(partial(_ours, mode, mode, self.ours, en0, self.folder, long_too, seed))
        for mode in ("fast", "safe"):
            turns.append(partial(_ours, f"{mode}, cable", mode, self.ours, cable, self.folder, (SHORT,), seed))
        if seed <= FULL_ROUNDS:
            turns.append(partial(_theirs, "alone", self.alone, lengths, seed))
        return turns


@contextmanager
def _contestants(folder: Path, place: Path, lab: Lab) -> Iterator[_Contestants]:
    place.mkdir()
    hosts = [(lab.host(number).argv([]), "") for number in (1, 2)]
    with ExitStack() as stack:
        alone = stack.enter_context(_peers(folder, lab, "en0", 1))
        theirs = {link: stack.enter_context(_peers(folder, lab, link, 2)) for link in PORTS}
        ours = stack.enter_context(cluster(place, 2, hosts=hosts, prelude=CHANGES_AT_EVERY_STEP))
        yield _Contestants(folder, lab, alone, theirs, ours)


def _shared_core() -> float:
    """How long a product takes while the other core multiplies too, against alone: 1 where two cores are two. A
    prefill by two ranks keeps both busy, one process one.
    """
    alone_s = _products(1)
    return _products(2) / alone_s


def _products(processes: int) -> float:
    running = [
        subprocess.Popen([sys.executable, "-c", PRODUCTS], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def _rows(times: Times, load_s: float, peak: float) -> list[Row]:
    return [
        *(
            Row(f"{name}, median of {len(values)}", statistics.median(values) * 1000, "ms", samples=tuple(values))
            for name, values in sorted(times.items())
            if name != SHARED
        ),
        _ratio("fast / mlx-lm's pipeline", times, "fast: a token", "mlx-lm: a token", 1.0),
        _ratio("safe / mlx-lm's pipeline", times, "safe: a token", "mlx-lm: a token", 1 / 0.97),
        _ratio("the same over the cable, fast", times, "fast, cable: a token", "mlx-lm, cable: a token", 1.0),
        _ratio("the same over the cable, safe", times, "safe, cable: a token", "mlx-lm, cable: a token", 1 / 0.97),
        _ratio("dynamic / fast", times, "dynamic: a token", "fast: a token"),
        _ratio("another mode at every step / safe", times, "alternating: a token", "safe: a token"),
        _ratio(
            "prefill of 2,048, two ranks / one process",
            times,
            f"fast: first of {LONG}",
            f"alone: first of {LONG}",
            0.58,
        ),
        _ratio(
            "the same, mlx-lm's pipeline / one process",
            times,
            f"mlx-lm: first of {LONG}",
            f"alone: first of {LONG}",
        ),
        Row(SHARED, statistics.median(times[SHARED]), "", samples=tuple(times[SHARED])),
        Row("load of half the model", load_s, "s"),
        Row("peak memory while loading / bytes held", peak, "", 1.1),
    ]


def _ratio(name: str, times: Times, of: str, to: str, target: float | None = None) -> Row:
    # Round by round; some contestants run in the first rounds only.
    ratios = tuple(one / other for one, other in zip(times[of], times[to], strict=False))
    return Row(name, statistics.median(ratios), "", target, ratios)


def _addresses(lab: Lab, link: str) -> list[str]:
    return [lab.host(number).address(link) for number in (1, 2)]


@contextmanager
def _peers(folder: Path, lab: Lab, link: str, size: int) -> Iterator[list[subprocess.Popen[str]]]:
    hostfile = folder.parent / f"{link}{size}.json"
    hostfile.write_text(json.dumps([[f"{address}:{PORTS[link]}"] for address in _addresses(lab, link)]))
    processes = [
        lab.host(rank + 1).popen(
            [sys.executable, "-m", "tests.bench.engine_peer", folder, str(size)],
            env=os.environ | {"MLX_HOSTFILE": str(hostfile), "MLX_RANK": str(rank)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "mlx-lm's pipeline could not be started"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _theirs(name: str, peers: list[subprocess.Popen[str]], lengths: Sequence[int], seed: int) -> dict[str, float]:
    found = {}
    for tokens in lengths:
        steps = STEPS if tokens == SHORT else 1
        for peer in peers:
            assert peer.stdin is not None
            peer.stdin.write(f"{tokens} {steps} {seed}\n")
            peer.stdin.flush()
        slowest_s = [0.0, 0.0]
        for peer in peers:
            assert peer.stdout is not None
            said = map(float, peer.stdout.readline().split())
            slowest_s = [max(pair) for pair in zip(slowest_s, said, strict=True)]
        found[f"{name}: first of {tokens}"] = slowest_s[0]
        if steps > 1:
            found[f"{name}: a token"] = slowest_s[1] / (steps - 1)
    return found


def _ours(
    name: str, mode: str, ranks: Cluster, addresses: list[str], folder: Path, lengths: Sequence[int], seed: int
) -> dict[str, float]:  # fmt: skip
    ranks.addresses = addresses
    assert all(isinstance(said, Loaded) for said in ranks.load(folder, SPLIT, MODES[mode]))
    ranks.form()
    found = {}
    for tokens in lengths:
        steps = STEPS if tokens == SHORT else 1
        asked = request(prompt(tokens, seed), steps)
        ranks.begin(asked)
        slowest_s = [0.0, 0.0]
        for answer in ranks.finish(asked.request_id, PATIENCE_S):
            assert isinstance(answer, Answer), answer
            done = answer.finished
            assert done is not None
            assert done.cached_tokens == 0
            slowest_s = [max(slowest_s[0], done.prefill_s), max(slowest_s[1], done.decode_s)]
        found[f"{name}: first of {tokens}"] = slowest_s[0]
        if steps > 1:
            found[f"{name}: a token"] = slowest_s[1] / (steps - 1)
    return found


def _load(folder: Path) -> tuple[float, float]:
    run = subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, str(folder)], capture_output=True, text=True, check=True
    )
    load_s, peak = map(float, run.stdout.split())
    return load_s, peak
