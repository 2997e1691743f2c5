"""`python -m tests.sim [--joint] [--fixed] --scenarios N [--seed S]`: seeded scenarios on all cores; a failing one
prints its story. `--joint`: of the mesh and the engine together. `--fixed`: with faults that stay.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from tests.sim import fixed_faults
from tests.sim.crowd import gather
from tests.sim.engine import fixed_faults as joint_fixed_faults
from tests.sim.engine import scenarios as joint
from tests.sim.invariants import InvariantBrokenError
from tests.sim.planted import IN_THE_ENGINE, PLANTED, planted
from tests.sim.scenarios import Outcome, calm, run

CHUNK = 8
"""Scenarios a process is given at once: what breaks is told when its chunk has ended, whatever the others do."""

AnyOutcome = Outcome | joint.JointOutcome
AnyFixed = fixed_faults.FixedOutcome | joint_fixed_faults.FixedOutcome


def attempt(seed: int) -> Outcome | str:
    return _told(seed, lambda: run(seed, to_the_end=seed % 500 == 0))


def attempt_joint(seed: int) -> joint.JointOutcome | str:
    return _told(seed, lambda: joint.run(seed))


def attempt_fixed(seed: int) -> fixed_faults.FixedOutcome | str:
    return _told(seed, lambda: fixed_faults.run_fixed(seed))


def attempt_joint_fixed(seed: int) -> joint_fixed_faults.FixedOutcome | str:
    return _told(seed, lambda: joint_fixed_faults.run_fixed(seed))


T = TypeVar("T")


def _told(seed: int, scenario: Callable[[], T]) -> T | str:
    """The outcome, or the story of what broke."""
    try:
        return scenario()
    except InvariantBrokenError as error:
        return str(error)
    except Exception as error:  # a crash of a core is a finding like any other: name its seed
        return f"seed {seed}: {type(error).__name__}: {error}\n{traceback.format_exc()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--joint", action="store_true", help="the mesh and the engine together")
    parser.add_argument("--fixed", action="store_true", help="faults that stay, and who can serve must serve")
    parser.add_argument("--scenarios", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; with --scenarios 1, the one to tell")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--plant", choices=sorted(PLANTED | IN_THE_ENGINE), help="plant this bug and show how it is found"
    )
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
    if arguments.fixed:
        one = attempt_joint_fixed if arguments.joint else attempt_fixed
        return _tell(seeds[0], one) if len(seeds) == 1 else _run_all(one, seeds, arguments.jobs, _fixed_summary)
    if len(seeds) == 1:
        return _tell(seeds[0], attempt_joint if arguments.joint else attempt)
    if arguments.joint:
        return _run_all(attempt_joint, seeds, arguments.jobs, _joint_summary)
    return _run_all(attempt, seeds, arguments.jobs, _summary)


def _several(one: Callable[[int], T | str], seeds: range) -> list[T | str]:
    return [one(seed) for seed in seeds]


def _run_all(
    one: Callable[[int], T | str], seeds: range, jobs: int, summary: Callable[[list[T]], Iterable[str]]
) -> int:
    began = time.monotonic()
    failures: list[str] = []
    good: list[T] = []
    with ProcessPoolExecutor(jobs) as pool:
        chunks = [pool.submit(_several, one, seeds[at : at + CHUNK]) for at in range(0, len(seeds), CHUNK)]
        for outcome in itertools.chain.from_iterable(chunk.result() for chunk in as_completed(chunks)):
            if isinstance(outcome, str):
                failures.append(outcome)
                print(outcome.splitlines()[0], flush=True)
            else:
                good.append(outcome)
    if failures:
        print(f"\nThe first story:\n{failures[0]}")
    print(f"{len(seeds)} scenarios in {time.monotonic() - began:.1f} s, {len(failures)} broken")
    print("\n".join(summary(good)))
    return 1 if failures else 0


def _find_planted(name: str, seed: int) -> int:
    one = attempt_joint if name in IN_THE_ENGINE else attempt
    with planted(name):
        while not isinstance(outcome := one(seed), str):
            seed += 1
    print(outcome)
    return 0


def _tell(seed: int, one: Callable[[int], object]) -> int:
    outcome = one(seed)
    print(outcome)
    return 1 if isinstance(outcome, str) else 0


def _summary(good: list[Outcome]) -> Iterable[str]:
    switches, rejected, faults = Counter[str](), Counter[str](), Counter[str]()
    for outcome in good:
        switches.update(outcome.switches)
        rejected.update(outcome.rejected)
        faults.update(outcome.faults)
    yield (
        f"datagrams {sum(one.datagrams for one in good):,}, agreements {sum(one.agreements for one in good):,}, "
        f"paths declared dead {sum(one.declared_dead for one in good):,}"
    )
    yield f"agreed after peace: {_spread([one.agreed_after_s for one in good])}"
    for name, counter in (("switches", switches), ("rejected", rejected), ("faults", faults)):
        yield _counts(name, counter)


def _joint_summary(good: list[joint.JointOutcome]) -> Iterable[str]:
    ends, faults = Counter[str](), Counter[str]()
    for outcome in good:
        ends.update(outcome.outcomes)
        faults.update(outcome.faults)
    yield (
        f"datagrams {sum(one.datagrams for one in good):,}, groups {sum(one.groups for one in good):,}, "
        f"tokens {sum(one.tokens for one in good):,}, "
        f"{sum(one.simulated_s for one in good) / 3600:.1f} simulated hours"
    )
    yield f"a group stood after peace: {_spread([one.formed_after_s for one in good])}"
    yield _counts("requests", ends)
    yield _counts("faults", faults)


def _fixed_summary(good: list[AnyFixed]) -> Iterable[str]:
    yield f"served with faults that stay: {_spread([one.served_after_s for one in good])}"
    yield f"plans after that at most {max((one.epochs for one in good), default=0)}"


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds) or [0.0]
    return f"p50 {ordered[len(ordered) // 2]:.2f} s, worst {ordered[-1]:.2f} s"


def _counts(name: str, counter: Counter[str]) -> str:
    return f"{name}: {', '.join(f'{key} {count:,}' for key, count in counter.most_common())}"


if __name__ == "__main__":
    sys.exit(main())
