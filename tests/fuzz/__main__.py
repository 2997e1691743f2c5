"""`python -m tests.fuzz --inputs N [--seed S] [--target NAME]`: mutated inputs to everything that reads strangers'
bytes, on all cores. A finding prints the bytes; the same seed makes them again.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from random import Random
from typing import Final

import msgspec
import structlog

from tests.fuzz import targets
from tests.fuzz.mutate import mutated

LONGEST_S: Final = 0.05
"""Of processor time for one input: the event loop is held no longer (issue: 50 ms)."""

MOST_MEMORY_BYTES: Final = 192 * 1024 * 1024
"""By which a process may have grown after all its inputs."""

SHOWN: Final = 5
BATCH: Final = 2_000


class Result(msgspec.Struct):
    name: str
    inputs: int = 0
    findings: list[str] = msgspec.field(default_factory=list)
    worst_s: float = 0.0
    grown_bytes: int = 0


def attempt(name: str, seed: int, inputs: int) -> Result:
    target = next(one for one in targets.all_targets() if one.name == name)
    random, result = Random(f"{seed} {name}"), Result(name)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        for good in target.seeds:
            _one(target, good, result)
        before = targets.memory_bytes()
        for _ in range(inputs):
            _one(target, mutated(target.seeds, random), result)
        result.grown_bytes = targets.memory_bytes() - before
    finally:
        structlog.reset_defaults()
    return result


def _one(target: targets.Target, data: bytes, result: Result) -> None:
    result.inputs += 1
    begun = time.process_time()
    try:
        target.run(data)
    except target.allowed:
        pass
    except BaseException as error:
        if len(result.findings) < SHOWN:
            result.findings.append(f"{type(error).__name__}: {str(error)[:200]} from {data[:400]!r}")
    took_s = time.process_time() - begun
    if took_s > LONGEST_S:
        took_s = min(took_s, _again(target, data))  # once more: the first may have collected garbage
    result.worst_s = max(result.worst_s, took_s)
    if took_s > LONGEST_S and len(result.findings) < SHOWN:
        result.findings.append(f"{took_s:.3f} s for {data[:400]!r}")


def _again(target: targets.Target, data: bytes) -> float:
    begun = time.process_time()
    with contextlib.suppress(BaseException):  # it was noted the first time
        target.run(data)
    return time.process_time() - begun


def run(inputs: int, seed: int, only: str, jobs: int) -> list[Result]:
    """One result a target."""
    wanted = [one for one in targets.all_targets() if only in one.name]
    share = inputs / sum(one.weight for one in wanted)
    results = {one.name: Result(one.name) for one in wanted}
    with ProcessPoolExecutor(jobs) as pool:
        batches = []
        for one in wanted:
            left, number = round(share * one.weight), 0
            while left > 0:
                batches.append(pool.submit(attempt, one.name, seed * 1_000_000 + number, min(BATCH, left)))
                left, number = left - BATCH, number + 1
        for batch in batches:
            part = batch.result()
            whole = results[part.name]
            whole.inputs += part.inputs
            whole.findings += part.findings
            whole.worst_s = max(whole.worst_s, part.worst_s)
            whole.grown_bytes = max(whole.grown_bytes, part.grown_bytes)
    for whole in results.values():
        if whole.grown_bytes > MOST_MEMORY_BYTES:
            whole.findings.append(f"memory grew by {whole.grown_bytes >> 20} MiB")
    return list(results.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    begun = time.monotonic()
    results = run(arguments.inputs, arguments.seed, arguments.target, arguments.jobs)
    print(f"{'target':26s} {'inputs':>9s} {'worst':>9s} {'memory':>9s}")
    for one in results:
        print(f"{one.name:26s} {one.inputs:9d} {1000 * one.worst_s:6.1f} ms {one.grown_bytes >> 20:5d} MiB")
    for one in results:
        for finding in one.findings[:SHOWN]:
            print(f"FOUND {one.name}: {finding}")
    total, found = sum(one.inputs for one in results), sum(len(one.findings) for one in results)
    print(f"{total} inputs in {time.monotonic() - begun:.0f} s, {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
