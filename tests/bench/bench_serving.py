"""Serving over HTTP on two hosts of the lab, and mlx_lm.server with its own batching beside it on the same model.

Two daemons with half of the model's layers each, over `en0`, and one process of mlx_lm.server, which has all layers
and can use one core. A round asks both, in a drawn order: tokens a second of 1, 2 and 4 streams at once; the
longest gap of a running answer while a prompt of 2,000 tokens comes in, against the time of one of its chunks; and
the time to the first token of a second turn, after another client's, against that of the first. Ratios are taken
within a round, and of the rounds' the median.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from tests.bench.completions import Completion, prompt
from tests.bench.rows import Row
from tests.engine.models import QWEN2, write_model
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, wait_for
from tests.lab.reading import can_serve
from tests.lab.topology import Host, Lab

MODEL = {
    **QWEN2, "hidden_size": 320, "num_hidden_layers": 12, "intermediate_size": 1024, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 8192,
}  # fmt: skip
"""15 million parameters: a prompt of 2,000 tokens takes one core ten seconds."""
COUNTS = (1, 2, 4)
ROUNDS = 3
TOKENS, WARM = 56, 8
SHORT, LONG = 24, 2000
BESIDE_TOKENS = 400
"""More than come while the long prompt does."""
STARTS_WITHIN_S = 120.0
THEIR_PORT = 8090

AT_LEAST = 1.7
GAP_CHUNKS = 2.0
SECOND_TURN = 0.15

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Server:
    """Where one of the two listens, and what it calls the model."""

    name: str
    host: Host
    port: int
    model: str
    cluster: Cluster | None = None

    def ask(self, text: str, tokens: int) -> Completion:
        return Completion(self.host, self.port, self.model, text, tokens)

    def chunks(self) -> float:
        """How many passes of prompts its first rank has run."""
        assert self.cluster is not None
        text = self.cluster.nodes[0].request("GET", "/metrics").body.decode()
        passes = [line for line in text.splitlines() if 'kind="prefill"' in line and "passes" in line]
        return max(float(line.rpartition(" ")[2]) for line in passes)


def run(rounds: int = ROUNDS) -> list[Row]:
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as place, Lab(2) as lab:
        folder = write_model(Path(place) / "letters", MODEL, dtype=mx.bfloat16)
        lab.link("bridge0").cut()  # the emulated cable is a process, which would take from the ranks' cores
        with _ours(lab, folder) as ours, _theirs(lab, folder) as theirs:
            _progress("both serve")
            for server in (ours, theirs):
                _rate(server, max(COUNTS), 0)  # what is compiled once is compiled
            for seed in range(1, rounds + 1):
                for server in random.Random(seed).sample((ours, theirs), 2):
                    _round(server, seed, times)
    return [*_rows("exod", times, judged=True), *_rows("mlx_lm.server", times, judged=False)]


def _round(server: Server, seed: int, times: Times) -> None:
    for count in random.Random(seed).sample(COUNTS, len(COUNTS)):
        times[f"{server.name}: {count}"].append(_rate(server, count, seed))
        _progress(f"round {seed}, {server.name}: {count} at once")
    _beside_a_long_prompt(server, seed, times)
    _progress(f"round {seed}, {server.name}: beside a long prompt")
    _second_turn(server, seed, times)
    _progress(f"round {seed}, {server.name}: second turn")


def _progress(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} serving: {what}", file=sys.stderr, flush=True)


def _rate(server: Server, count: int, seed: int) -> float:
    """Tokens a second of all together, from when each has some until the first one has all."""
    asked = [server.ask(prompt(SHORT, 31 * seed + number), TOKENS) for number in range(count)]
    done = [one.wait() for one in asked]
    begin = max(one.came[WARM] for one in done)
    end = min(one.came[-1] for one in done)
    assert end > begin, "one was finished before all had begun to decode"
    return sum(begin < at <= end for one in done for at in one.came) / (end - begin)


def _beside_a_long_prompt(server: Server, seed: int, times: Times) -> None:
    running = server.ask(prompt(SHORT, 400 + seed), BESIDE_TOKENS)
    running.wait_for_tokens(2 * WARM)
    calm_s = statistics.median(
        after - before for before, after in zip(running.came, running.came[1:], strict=False)
    )
    before = server.chunks() if server.cluster is not None else 0.0
    long = server.ask(prompt(LONG, seed), 1).wait()
    assert not running.finished, "the running answer was over before the prompt was in"
    gap_s = running.worst_gap_s(long.asked, long.came[0])
    running.wait()
    times[f"{server.name}: calm gap"].append(calm_s)
    times[f"{server.name}: gap"].append(gap_s)
    times[f"{server.name}: first of the long one"].append(long.first_s)
    if server.cluster is not None:
        chunks = server.chunks() - before
        times[f"{server.name}: chunk"].append(long.first_s / chunks)
        times[f"{server.name}: chunks"].append(chunks)


def _second_turn(server: Server, seed: int, times: Times) -> None:
    beginning = prompt(LONG, 1000 + seed)
    first = server.ask(beginning, 16).wait()
    server.ask(prompt(SHORT, 500 + seed), 16).wait()
    second = server.ask(f"{beginning}{first.text}{prompt(SHORT, 600 + seed)}", 16).wait()
    times[f"{server.name}: first turn"].append(first.first_s)
    times[f"{server.name}: second turn"].append(second.first_s)


def _rows(name: str, times: Times, judged: bool) -> list[Row]:
    def row(text: str, key: str, unit: str) -> Row:
        values = times[f"{name}: {key}"]
        return Row(f"{name}: {text}", statistics.median(values), unit, samples=tuple(values))

    def ratio(text: str, of: str, to: str, target: float) -> Row:
        pairs = zip(times[f"{name}: {of}"], times[f"{name}: {to}"], strict=True)
        shares = tuple(one / other for one, other in pairs)
        return Row(f"{name}: {text}", statistics.median(shares), "", target if judged else None, shares)

    rows = [row(f"tokens/s of {count} at once", str(count), "1/s") for count in COUNTS]
    for count in COUNTS[1:]:
        rows.append(ratio(f"one's tokens/s as a share of {count}'s", "1", str(count), 1 / AT_LEAST))
    rows += [
        row("a token beside nothing", "calm gap", "s"),
        row(f"longest gap beside a prompt of {LONG:,}", "gap", "s"),
        row("that prompt's first token", "first of the long one", "s"),
    ]
    if judged:
        rows += [
            row("chunks of that prompt", "chunks", ""),
            row("a chunk's time", "chunk", "s"),
            ratio("the longest gap in chunk times", "gap", "chunk", GAP_CHUNKS),
        ]
    return [
        *rows,
        row("first turn's first token", "first turn", "s"),
        row("second turn's first token", "second turn", "s"),
        ratio("second turn / first turn", "second turn", "first turn", SECOND_TURN),
    ]


@contextmanager
def _ours(lab: Lab, folder: Path) -> Iterator[Server]:
    engine = {"model": str(folder), "max_concurrent": max(COUNTS)}
    cluster = Cluster(lab, (1, 2), config={"engine": engine, "mqtt": {"broker": "off"}})
    cluster.start()
    try:
        statuses = cluster.wait_until(
            lambda found: all(can_serve(one) for one in found), STARTS_WITHIN_S, "both nodes can serve"
        )
        coordinator = statuses[0]["mesh"]["coordinator"]
        cluster.nodes.sort(key=lambda node: node.status()["node"]["id"] != coordinator)
        yield Server("exod", cluster.nodes[0].host, API_PORT, "default", cluster)
    finally:
        cluster.kill9()


@contextmanager
def _theirs(lab: Lab, folder: Path) -> Iterator[Server]:
    host = lab.host(1)
    argv = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(THEIR_PORT)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (folder.parent / "mlx_lm.server.log").open("wb") as log:
        process = host.popen([*argv, "--log-level", "WARNING"], stdout=log, stderr=log, env=offline)
    server = Server("mlx_lm.server", host, THEIR_PORT, str(folder))
    try:
        wait_for(lambda: _answers(server), STARTS_WITHIN_S, "mlx_lm.server answers", every_s=1.0)
        yield server
    finally:
        process.kill()
        process.wait()


def _answers(server: Server) -> bool:
    asked = server.ask(prompt(SHORT, 0), 2)
    while not asked.finished:
        time.sleep(0.05)
    return bool(asked.came)
