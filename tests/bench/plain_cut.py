"""The same cut for mlx-lm's own pipeline: two ranks of it on the lab's cable, no supervisor.

Decides how long one waits for a token that may never come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.bench.rows import Row
from tests.lab.node import wait_for
from tests.lab.topology import Lab

STARTS_WITHIN_S = 60.0
STARTED_AT = 100  # tokens, before the cable is cut
WATCHED_S = 30.0
"""How long the cable stays cut. The bound is ours: nothing in the pipeline ends the wait."""
RESUMES_WITHIN_S = 60.0
RING_PORT = 53420


class PlainRank:
    """One process, and its tokens' times as it prints them."""

    def __init__(self, lab: Lab, number: int, hosts: Path) -> None:
        self.times: list[float] = []
        environment = os.environ | {
            "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(number - 1), "EXOD_BENCH_PARENT": str(os.getpid())
        }  # fmt: skip
        self.process = lab.host(number).popen(
            [sys.executable, "-m", "tests.bench.plain_pipeline"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # the last one is cut short by the kill
                self.times.append(float(line.split()[1]))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


def run() -> list[Row]:
    with Lab(2) as lab:
        return _measure(lab)


def _start(lab: Lab, ending: ExitStack) -> list[PlainRank]:
    hosts = lab.folder / "hosts.json"
    hosts.write_text(json.dumps([[f"{lab.host(number).address('bridge0')}:{RING_PORT}"] for number in (1, 2)]))
    ranks = [PlainRank(lab, number, hosts) for number in (1, 2)]
    for rank in ranks:
        ending.callback(rank.end)
    wait_for(lambda: all(len(rank.times) > STARTED_AT for rank in ranks), STARTS_WITHIN_S, "the pipeline generates")
    return ranks


def _measure(lab: Lab) -> list[Row]:
    with ExitStack() as ending:
        return _measure_cut(lab, _start(lab, ending))


def _measure_cut(lab: Lab, ranks: list[PlainRank]) -> list[Row]:
    cable = lab.link("bridge0")
    cable.cut()
    cut = time.monotonic()
    time.sleep(1.0)  # what was on its way has come
    before, cpu = [len(rank.times) for rank in ranks], [rank.cpu_s() for rank in ranks]
    time.sleep(WATCHED_S - 1.0)
    came = sum(len(rank.times) - had for rank, had in zip(ranks, before, strict=True))
    alive = sum(rank.process.poll() is None for rank in ranks)
    burnt = sum(rank.cpu_s() - had for rank, had in zip(ranks, cpu, strict=True)) / (WATCHED_S - 1.0)
    last = max(rank.times[-1] for rank in ranks)
    cable.restore()
    restored = time.monotonic()
    end = restored + RESUMES_WITHIN_S
    while ranks[0].times[-1] < restored and time.monotonic() < end:
        time.sleep(0.05)
    resumed_s = next((at for at in ranks[0].times if at > restored), float("inf")) - restored
    return [
        Row("mlx-lm alone: last token after the cut", last - cut, "s"),
        Row(f"mlx-lm alone: tokens in {WATCHED_S:.0f} s of cut cable", came, ""),
        Row("mlx-lm alone: ranks of 2 that ended", 2 - alive, ""),
        Row("mlx-lm alone: processors burnt while it hung", burnt, ""),
        Row("mlx-lm alone: first token after the cable was put back (inf: none in 60 s)", resumed_s, "s"),
    ]
