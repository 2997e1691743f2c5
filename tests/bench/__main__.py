"""`make bench`: the figures that are promised, measured on this machine, each beside its target.

    python -m tests.bench [SECTION ...] [--rounds N] [--minutes M] [--model MODEL]

Without a section it runs them all. A table goes to standard output, and each section's figures as JSON to
tests/bench/results/SECTION.json, with the load average: on a busy machine times say more about the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from tests.bench.rows import Row, document, table
from tests.lab.netns import missing_capability

RESULTS = Path(__file__).parent / "results"

Section = Callable[[argparse.Namespace], list[Row]]


def _section(module: str, *options: str) -> Section:
    """A section is the `run` of a module, imported when it is its turn; `options` are handed to it by name."""

    def run(arguments: argparse.Namespace) -> list[Row]:
        chosen = {name: getattr(arguments, name) for name in options if getattr(arguments, name) is not None}
        return [row if isinstance(row, Row) else Row(*row) for row in import_module(module).run(**chosen)]

    return run


SECTIONS: dict[str, Section] = {
    "status": _section("tests.bench.bench_status"),
    "context": _section("tests.bench.bench_context", "tokens"),
    "engine": _section("tests.bench.bench_engine", "rounds"),
    "concurrency": _section("tests.bench.bench_concurrency", "rounds"),
    "serving": _section("tests.bench.bench_serving", "rounds"),
    "gaps": _section("tests.bench.bench_gaps"),
    "polling": _section("tests.bench.bench_polling"),
    "floor": _section("tests.bench.bench_floor"),
    "idle": _section("tests.bench.bench_idle", "minutes", "model"),
    "links": _section("tests.bench.bench_links", "rounds"),
    "page": _section("tests.bench.bench_page"),
    "mqtt": _section("tests.bench.bench_mqtt", "minutes"),
    "transfer": _section("tests.bench.bench_transfer"),
    "tensor": _section("tests.bench.bench_tensor", "rounds"),
    "shard": _section("tests.bench.bench_shard", "rounds"),
    "recovery": _section("tests.bench.bench_recovery", "rounds"),
    "liveness": _section("tests.bench.bench_liveness"),
}
NEEDS_A_LAB = SECTIONS.keys() - {"status", "context", "tensor", "shard"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "--rounds",
        type=int,
        help="faults of each sort in `links` (30), cuts in `recovery` (20), rounds of `engine` (30) and of"
        " `concurrency` (7)",
    )
    parser.add_argument("--minutes", type=float, help="how long `idle` watches (5)")
    parser.add_argument("--tokens", type=int, help="the longer context in `context` (200,000)")
    parser.add_argument("--model", help="what the engine holds in `idle` (the embedded demo model)")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in arguments.sections or SECTIONS:
        if name in NEEDS_A_LAB and (missing := missing_capability()):
            print(f"{name}: left out, {missing}", file=sys.stderr)
            continue
        _run(name, arguments)
    return 0


def _run(name: str, arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    rows = SECTIONS[name](arguments)
    took_s = time.monotonic() - began
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{name}: {took_s:.0f} s, load average {load}\n{table(rows)}\n", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document(name, rows, took_s), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
