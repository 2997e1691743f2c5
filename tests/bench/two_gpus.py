"""Two GPUs of one host, a rank on each: `python -m tests.bench.two_gpus [--small] [--json FILE] [--only NAME ...]`.

For a random Qwen2 of 0.9 and one of 7 billion parameters in bfloat16 it prints, and writes as JSON after each
part: whether the tokens of two ranks (fast, safe, tensor) are those of one process, also over a cut; the time of a
token and of a prefill, beside mlx-lm's own pipeline and `shard` over MLX's ring; tokens a second of 1 to 32 clients
on one rank and on two, and the worst gap of a running answer beside a long prefill; and what `auto` predicts of
each way. With one GPU both ranks share it; without any they run on the processor (with `--small`). A part that
fails says so, and the next one begins, with new ranks. Nothing is asserted: the table is to be read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import msgspec

from exod.core.engine.parallel_forecast import forecasts
from exoengine.model_files.model_folder import inspect
from exoengine.protocol import Abort, Aborted, Loaded, Serving, SyncSettings, TokenOut
from tests.core.engine.engine_samples import A, B, a_plan, status
from tests.engine.driver import Answer, Cluster, cluster, request
from tests.engine.gpu import gpus, hosts, visible
from tests.engine.gpu_batches import plain_rate, rate
from tests.engine.models import QWEN2, write_model

TOKENS: Final = 128
PROMPT: Final = [(7 * index + 3) % 250 for index in range(64)]
CUT_AT: Final = 20
PREFILLS: Final = (2_048, 16_384)
CLIENTS: Final = (1, 2, 4, 8, 16, 32)
COLLECTIVE_TOKENS: Final = 48
"""Of an answer of a tensor group: MLX's CUDA build takes a tenth of a second for each there."""
PASSES: Final = 3
"""Of a prefill; the last one counts. On CUDA the first use of each shape costs up to a tenth of a second, and the
sizes of chunks follow what the last ones took: the third pass meets nothing new."""
WITHIN_S: Final = 120.0
"""A part takes seconds; one that hangs is given up by then."""

MODELS: Final[dict[str, dict[str, int]]] = {
    "0.9 billion": {"layers": 24, "hidden": 2048, "intermediate": 4864, "heads": 32, "kv": 4},
    "7 billion": {"layers": 28, "hidden": 4096, "intermediate": 16384, "heads": 32, "kv": 4},
}
SMALL: Final = {"small": {"layers": 4, "hidden": 128, "intermediate": 256, "heads": 4, "kv": 2}}
SMALL_PREFILLS: Final = (128, 512)

WAYS: Final = ("alone", "pipeline, fast", "pipeline, safe", "tensor, fast")

ALONE: Final = ("batched", "mlx_lm")
"""Parts for which no rank of ours may hold memory or threads beside."""

Found = dict[str, Any]


class Bench:
    """One model: its folder, and ranks that hold it as each way wants."""

    def __init__(
        self, folder: Path, layers: int, prefills: tuple[int, ...], clients: list[int], found: Found
    ) -> None:
        self.folder, self.layers, self.prefills, self.found = folder, layers, prefills, found
        self.counts = clients
        self.expected: list[int] = []

    def hold(self, ranks: Cluster, way: str, sequences: int = 1) -> list[Loaded]:
        sync = SyncSettings(sync="safe" if way.endswith("safe") else "fast", step_deadline_s=30.0)
        serving, half = Serving(sequences), self.layers // 2
        if way == "alone":
            said = ranks.load(self.folder, [self.layers], sync, serving=serving)
        elif way.startswith("tensor"):
            said = ranks.load_parts(self.folder, 2, self.layers, sync, serving=serving)
        else:
            said = ranks.load(self.folder, [half, self.layers - half], sync, serving=serving)
        held = [one for one in said if isinstance(one, Loaded)]
        assert len(held) == len(said), said
        return held

    # --- the parts ------------------------------------------------------------------------------------------

    def tokens_and_times(self, ranks: Cluster, way: str) -> None:
        """Equal tokens, a token's time, a cut in mid-answer, and prefills."""
        self.hold(ranks, way)
        ranks.form()
        answer(ranks, PROMPT, length_of(way))
        tokens, token_s, _ = answer(ranks, PROMPT, length_of(way))
        self.expected = self.expected or tokens
        self._say(way, "tokens", same(self.expected, tokens))
        self._say(way, "ms a token", round(token_s * 1000, 3))
        if way != "alone":
            self._say(way, "tokens over a cut", same(self.expected, cut_answer(ranks)))
        for length in self.prefills:
            for seed in range(PASSES):
                _, _, prefill_s = answer(ranks, [((3 + seed) * at + length) % 250 for at in range(length)], 2)
            self._say(way, f"s to prefill {length}", round(prefill_s, 4))

    def forecast(self, ranks: Cluster, way: str) -> None:
        """What `auto` would predict of each way, from what the ranks measured when they formed."""
        if way == "alone":
            return
        held = self.hold(ranks, way)
        formed = ranks.form()
        statuses = [
            status(node, layers=one.layers, parts=one.parts, costs=one.step_costs, edges=group.edge_costs)
            for node, one, group in zip((A, B), held, formed, strict=True)
        ]
        plan = msgspec.structs.replace(a_plan(A, B), memory_mib=(1 << 20, 1 << 20))
        for one in forecasts(plan, inspect(self.folder), statuses):
            self._say(f"predicted while {way} runs", f"{one.way}: ms a token", round(one.token_s * 1000, 3))

    def clients(self, ranks: Cluster, way: str) -> None:
        """Tokens a second of many at once, and the gap beside a long prefill."""
        self.hold(ranks, way, max(self.counts) + 1)
        ranks.form()
        rate(ranks, 1, length_of(way))
        for count in self.counts:
            self._say(way, f"tokens/s of {count}", round(rate(ranks, count, length_of(way)), 1))
        self._say(way, f"ms: worst gap beside a prefill of {self.prefills[-1]}", self._worst_gap(ranks))

    def batched(self, _: Cluster, way: str) -> None:
        """mlx-lm's batched cache in this process."""
        plain_rate(self.folder, 1)
        for count in self.counts:
            self._say(way, f"tokens/s of {count}", round(plain_rate(self.folder, count), 1))

    def _worst_gap(self, ranks: Cluster) -> float:
        running, length = request(PROMPT, 400), self.prefills[-1]
        ranks.begin(running)
        ranks.ranks[0].expect(
            TokenOut,
            where=lambda said: said.request_id == running.request_id and said.index >= 20,
            within_s=WITHIN_S,
        )
        times: list[float] = []
        long = request([(3 * at + length) % 250 for at in range(length)], 1)
        ranks.begin(long)
        until, seen = time.monotonic() + WITHIN_S, len(ranks.ranks[0].seen)
        while time.monotonic() < until:
            told = ranks.ranks[0].seen[seen:]
            seen += len(told)
            times += [time.monotonic() for said in told if getattr(said, "request_id", "") == running.request_id]
            if any(isinstance(said, TokenOut) and said.request_id == long.request_id for said in told):
                break
            time.sleep(0.0005)
        ranks.finish(running.request_id, WITHIN_S)
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return round(max(gaps, default=0.0) * 1000, 1)

    def mlx_lm(self, _: Cluster, way: str) -> None:
        """mlx-lm alone, its pipeline, and its shard over MLX's ring."""
        mode = way.removeprefix("mlx-lm ")
        alone = mode == "alone"
        with peers(self.folder, 1 if alone else 2, "" if alone else mode) as processes:
            ask(processes, 64, COLLECTIVE_TOKENS, 0)
            rest_s = ask(processes, 64, COLLECTIVE_TOKENS, 1)[1]
            self._say(way, "ms a token", round(rest_s / (COLLECTIVE_TOKENS - 1) * 1000, 3))
            for length in self.prefills:
                for seed in range(PASSES):
                    first_s = ask(processes, length, 1, 2 + seed)[0]
                self._say(way, f"s to prefill {length}", round(first_s, 4))

    def _say(self, way: str, what: str, figure: object) -> None:
        self.found.setdefault(way, {})[what] = figure
        print(f"  {way:34} {what:44} {figure}", flush=True)


def length_of(way: str) -> int:
    return COLLECTIVE_TOKENS if way.startswith("tensor") else TOKENS


def answer(ranks: Cluster, prompt: list[int], tokens: int) -> tuple[list[int], float, float]:
    """Its tokens, the seconds of a token after the first, and those of the prefill."""
    asked = request(prompt, tokens)
    ranks.begin(asked)
    first = ranks.finish(asked.request_id, WITHIN_S)[0]
    assert isinstance(first, Answer), first
    assert first.finished is not None
    return first.tokens, first.finished.decode_s / max(1, len(first.tokens) - 1), first.finished.prefill_s


def wait_for(ranks: Cluster, request_id: str, index: int) -> None:
    """Until a request's token `index` is here."""
    ranks.ranks[0].expect(
        TokenOut, where=lambda said: said.request_id == request_id and said.index >= index, within_s=WITHIN_S
    )


def cut_answer(ranks: Cluster) -> list[int]:
    asked = request(PROMPT, COLLECTIVE_TOKENS)
    ranks.begin(asked)
    wait_for(ranks, asked.request_id, CUT_AT)
    ranks.ranks[1].send(Abort("the bench cuts a link"))
    for rank in ranks.ranks[: len(ranks.loads)]:
        rank.expect(Aborted, within_s=WITHIN_S)
    ranks.form()
    first = ranks.finish(asked.request_id, WITHIN_S)[0]
    assert isinstance(first, Answer), first
    return first.tokens


def same(expected: list[int], tokens: list[int]) -> str:
    if tokens == expected[: len(tokens)]:
        return "equal"
    at = next((at for at, pair in enumerate(zip(expected, tokens, strict=False)) if pair[0] != pair[1]), -1)
    return f"DIFFERENT from token {at} on"


@contextmanager
def peers(folder: Path, size: int, mode: str) -> Iterator[list[subprocess.Popen[str]]]:
    hosts = folder.parent / f"hosts-{mode or 'alone'}.json"
    base = 23_000 + os.getpid() % 4_000
    hosts.write_text(json.dumps([[f"127.0.0.1:{base + place}"] for place in range(size)]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.engine_peer", str(folder), str(size), *([mode] if mode else [])],
            env=os.environ | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(place)} | visible(place),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for place in range(size)
    ]  # fmt: skip
    stop = f"sleep {WITHIN_S:.0f}; kill -9 {' '.join(str(process.pid) for process in processes)} 2>/dev/null"
    guard = subprocess.Popen(["sh", "-c", stop], start_new_session=True)
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "mlx-lm could not be started"
        yield processes
    finally:
        guard.kill()
        for process in processes:
            process.kill()
            process.wait()


def ask(processes: list[subprocess.Popen[str]], tokens: int, steps: int, seed: int) -> tuple[float, float]:
    """Seconds to the first token and for the others, of the slowest. AssertionError where one has ended."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{tokens} {steps} {seed}\n")
        process.stdin.flush()
    slowest = [0.0, 0.0]
    for process in processes:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        assert len(said) == 2, "mlx-lm ended, or hung and was ended"
        slowest = [max(pair) for pair in zip(slowest, map(float, said), strict=True)]
    return slowest[0], slowest[1]


def written(place: Path, name: str, sizes: dict[str, int]) -> Path:
    folder = place / name.replace(" ", "-")
    if (folder / "config.json").exists():
        return folder
    config = {
        **QWEN2,
        "num_hidden_layers": sizes["layers"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "max_position_embeddings": 32_768,
    }
    return write_model(folder, config, dtype=mx.bfloat16)


class Ranks:
    """Two worker processes, kept from part to part: on CUDA the first steps of one take half a minute. After a part
    that failed there are new ones: what it left behind is not the next one's trouble.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._open = ExitStack()
        self._ranks: Cluster | None = None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def get(self) -> Cluster:
        if self._ranks is None:
            self._ranks = self._open.enter_context(cluster(self._place, 2, hosts=hosts()))
        return self._ranks

    def end(self) -> None:
        self._ranks = None
        self._open.close()


def tried(part: Callable[[Cluster, str], None], way: str, ranks: Ranks, found: Found) -> None:
    begun = time.monotonic()
    try:
        part(ranks.get(), way)
    except Exception as error:  # the next part may still be measured
        traceback.print_exc(limit=4)
        found.setdefault("failed", {})[f"{part.__name__}, {way}"] = f"{type(error).__name__}: {error}"[:500]
        ranks.end()
    found.setdefault("seconds", {})[f"{part.__name__}, {way}"] = round(time.monotonic() - begun, 1)


def parts(bench: Bench, ways: Sequence[str]) -> list[tuple[Callable[[Cluster, str], None], Sequence[str]]]:
    theirs = ("mlx-lm alone", "mlx-lm pipeline", "mlx-lm shard")
    return [
        (bench.tokens_and_times, ways), (bench.forecast, ways), (bench.clients, ways),
        (bench.batched, ("mlx-lm, batched",)), (bench.mlx_lm, theirs),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.two_gpus")
    parser.add_argument("--small", action="store_true", help="a model that a processor can run")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--only", nargs="*", default=[], help="of tokens_and_times forecast clients batched mlx_lm")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS, help="of those of ours")
    parser.add_argument("--clients", nargs="*", type=int, default=CLIENTS)
    parser.add_argument("--model", default="", help="one of the models alone")
    parser.add_argument("--models", type=Path, help="a folder where the random models stay for the next run")
    options = parser.parse_args()
    models = SMALL if options.small else MODELS
    found: Found = {"device": str(mx.default_device()), "gpus": gpus(), "mlx": metadata.version("mlx")}
    print(f"{found['device']}, {found['gpus']} GPUs, MLX {found['mlx']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in models.items():
            if options.model in ("", name):
                print(name, flush=True)
                _of_model(name, sizes, options, Path(folder), found)


def _of_model(name: str, sizes: dict[str, int], options: argparse.Namespace, place: Path, found: Found) -> None:
    bench = Bench(
        written(options.models or place, name, sizes),
        sizes["layers"],
        SMALL_PREFILLS if options.small else PREFILLS,
        list(options.clients),
        found.setdefault(name, {}),
    )
    with Ranks(place) as ranks:
        for part, ways in parts(bench, options.ways):
            if options.only and part.__name__ not in options.only:
                continue
            for way in ways:
                if part.__name__ in ALONE:
                    ranks.end()
                tried(part, way, ranks, bench.found)
                if options.json is not None:
                    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
