"""`python -m tests.sim --scenarios N [--seed S]`: seeded scenarios on all cores; a failing one prints its story."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.sim.crowd import gather
from tests.sim.invariants import InvariantBrokenError
from tests.sim.planted import PLANTED, planted
from tests.sim.scenarios import Outcome, calm, run


def attempt(seed: int) -> Outcome | str:
    try:
        return run(seed, to_the_end=seed % 500 == 0)
    except InvariantBrokenError as error:
        return str(error)
    except Exception as error:  # a crash of the core is a finding like any other: name its seed
        import traceback

        return f"seed {seed}: {type(error).__name__}: {error}\n{traceback.format_exc()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; with --scenarios 1, the one to tell")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plant", choices=sorted(PLANTED), help="plant this bug and show how it is found")
    parser.add_argument(
        "--calm", type=float, metavar="HOURS", help="1%% loss and 4 ms of jitter for so long: no switch"
    )
    parser.add_argument("--lan", type=int, metavar="NODES", help="so many nodes on one LAN: what it costs each")
    arguments = parser.parse_args()
    if arguments.lan is not None:
        print(gather(arguments.lan, arguments.seed).text())
        return 0
    if arguments.calm is not None:
        switches = calm(arguments.calm * 3_600, arguments.seed)
        print(f"{arguments.calm:g} simulated hours, switches by cause: {switches}")
        return 0 if switches == {"first": 1} else 1
    if arguments.plant is not None:
        return _find_planted(arguments.plant, arguments.seed)
    seeds = range(arguments.seed, arguments.seed + arguments.scenarios)
    if len(seeds) == 1:
        return _tell(seeds[0])
    began = time.monotonic()
    failures: list[str] = []
    good: list[Outcome] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(attempt, seeds, chunksize=8):
            if isinstance(outcome, str):
                failures.append(outcome)
                print(outcome.splitlines()[0], flush=True)
            else:
                good.append(outcome)
    if failures:
        print(f"\nThe first story:\n{failures[0]}")
    _summary(good, failures, time.monotonic() - began)
    return 1 if failures else 0


def _find_planted(name: str, seed: int) -> int:
    with planted(name):
        while True:
            outcome = attempt(seed)
            if isinstance(outcome, str):
                print(outcome)
                return 0
            seed += 1


def _tell(seed: int) -> int:
    from tests.sim import scenarios

    world, names, _ = scenarios.build(seed)
    print(f"seed {seed}: {len(world.hosts)} nodes; {', '.join(names)}")
    outcome = attempt(seed)
    print(outcome)
    return 1 if isinstance(outcome, str) else 0


def _summary(good: list[Outcome], failures: list[str], seconds: float) -> None:
    switches, rejected, faults = Counter[str](), Counter[str](), Counter[str]()
    for outcome in good:
        switches.update(outcome.switches)
        rejected.update(outcome.rejected)
        faults.update(outcome.faults)
    print(f"{len(good) + len(failures)} scenarios in {seconds:.1f} s, {len(failures)} broken")
    print(
        f"datagrams {sum(one.datagrams for one in good):,}, agreements {sum(one.agreements for one in good):,}, "
        f"convictions {sum(one.convictions for one in good):,}"
    )
    times = sorted(one.agreed_after_s for one in good)
    if times:
        print(f"agreed after peace: p50 {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s")
    for name, counter in (("switches", switches), ("rejected", rejected), ("faults", faults)):
        print(f"{name}: {', '.join(f'{key} {count:,}' for key, count in counter.most_common())}")


if __name__ == "__main__":
    sys.exit(main())
