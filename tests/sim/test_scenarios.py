"""A share of the scenarios in every test run; `make sim` runs 10,000."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

from tests.sim.__main__ import attempt
from tests.sim.scenarios import Outcome, run

SHARE = 200
"""A quarter of a minute of two cores; planted bugs are found within the first dozen."""


def test_some_hundred_scenarios_break_no_invariant() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(attempt, range(1, SHARE + 1), chunksize=25))
    stories = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not stories, f"{len(stories)} of {SHARE} broke, the first:\n{stories[0]}"
    good = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    # A simulation in which little happens would prove little.
    assert sum(outcome.declared_dead for outcome in good) > SHARE / 10
    assert sum(outcome.switches.get("upgrade", 0) for outcome in good) > SHARE / 10
    assert {fault for outcome in good for fault in outcome.faults} >= {
        "cut",
        "stall",
        "crash",
        "partition",
        "sleep",
    }


def test_a_seed_repeats_itself() -> None:
    assert run(7) == run(7)
