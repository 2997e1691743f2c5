"""The engine on a GPU, with fast steps: `python -m tests.engine.gpu [--runs 20] [--layers 24 --hidden 2048]`.

Two ranks of one machine, each on a GPU of its own where there are two, a random Qwen2 in bfloat16. A pipeline in
fast steps answers `runs` times with 200 tokens, then a tensor group does, each with three cuts in one more answer.
Every answer must have the tokens of the first one of its kind, and none may hang. Prints one line for each; exit
code 1 where anything differs, an error where it hangs. For MLX's CUDA build and for a Mac.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from exoengine.protocol import Abort, Aborted, Heartbeat, Loaded, SyncSettings, TokenOut
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.models import QWEN2, write_model

PROMPT = [(7 * index + 3) % 250 for index in range(64)]
TOKENS = 200
CUTS = (50, 100, 150)
WITHIN_S = 120.0
"""An answer takes seconds; a rank that hangs is seen by this."""


def gpus() -> int:
    """How many GPUs this host shows; 0 where MLX computes on the processor."""
    if mx.default_device() != mx.Device(mx.gpu):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return max(1, len(listed.stdout.splitlines()))


def visible(rank: int) -> dict[str, str]:
    """The environment of a process that shall see its rank's GPU alone."""
    return {"CUDA_VISIBLE_DEVICES": str(rank % gpus())} if gpus() else {}


def hosts() -> list[tuple[list[str], str]]:
    return [(["env", *(f"{key}={value}" for key, value in visible(rank).items())], "127.0.0.1") for rank in (0, 1)]


def answer(ranks: Cluster, cuts: tuple[int, ...] = ()) -> tuple[list[int], float]:
    """Its tokens, and the seconds a token took after the first one."""
    asked = request(PROMPT, TOKENS)
    ranks.begin(asked)
    for number, at in enumerate(cuts):
        ranks.ranks[0].expect(TokenOut, where=lambda said, at=at: said.index >= at, within_s=WITHIN_S)
        ranks.ranks[number % 2].send(Abort("the check cuts a link"))
        for rank in ranks.ranks:
            rank.expect(Aborted)
        ranks.form()
    answers = ranks.finish(asked.request_id, WITHIN_S)
    tokens = [one.tokens for one in answers if isinstance(one, Answer)]
    assert len(tokens) == 2, answers
    assert tokens[0] == tokens[1], "the ranks told different tokens"
    first = answers[0]
    assert isinstance(first, Answer)
    assert first.finished is not None
    return tokens[0], first.finished.decode_s / (TOKENS - 1)


def shown(name: str, ranks: Cluster, times: list[float], same: bool) -> bool:
    beat = [said for said in ranks.ranks[1].seen if isinstance(said, Heartbeat)][-1]
    print(
        f"{name}: {len(times)} answers of {TOKENS} tokens, {'equal' if same else 'DIFFERENT'}; a token"
        f" {statistics.median(times) * 1000:.2f} ms (median); {beat.sync_mode} steps, longest wait of a graph"
        f" {beat.longest_gpu_wait_s * 1000:.1f} ms",
        flush=True,
    )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.gpu")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--tensor-runs", type=int, default=3, help="a token takes ten times as long there")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    options = parser.parse_args()
    config = {
        **QWEN2, "num_hidden_layers": options.layers, "hidden_size": options.hidden,
        "intermediate_size": 4 * options.hidden, "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": 4,
    }  # fmt: skip
    print(f"{mx.default_device()}, {gpus()} GPUs, MLX {mx.__version__}, runs {options.runs}", flush=True)
    fast = SyncSettings(sync="fast")
    half = options.layers // 2
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", config, dtype=mx.bfloat16)
        with cluster(Path(place), 2, hosts=hosts()) as ranks:
            fine = True
            for name, runs in (("pipeline", options.runs), ("tensor", options.tensor_runs)):
                said = (
                    ranks.load(folder, [half, options.layers - half], fast)
                    if name == "pipeline"
                    else ranks.load_parts(folder, 2, options.layers, fast)
                )
                assert all(isinstance(one, Loaded) for one in said), said
                ranks.form()
                expected, _ = answer(ranks)
                ran = [answer(ranks) for _ in range(runs)]
                same = all(tokens == expected for tokens, _ in ran)
                fine &= shown(f"{name}, fast", ranks, [took for _, took in ran], same)
                begun = time.monotonic()
                tokens, took = answer(ranks, CUTS)
                fine &= shown(f"{name}, {len(CUTS)} cuts", ranks, [took], tokens == expected)
                print(f"  in {time.monotonic() - begun:.1f} s", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
