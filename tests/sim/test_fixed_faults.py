"""A share of the scenarios whose faults stay; `make sim` runs a tenth of its number of them."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

from tests.sim.fixed_faults import FixedOutcome, run_fixed
from tests.sim.invariants import InvariantBrokenError

SHARE = 24


def attempt(seed: int) -> FixedOutcome | str:
    try:
        return run_fixed(seed)
    except InvariantBrokenError as error:
        return str(error)


def test_whoever_can_serve_serves_and_the_epochs_are_bounded() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(attempt, range(SHARE), chunksize=5))
    stories = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not stories, f"{len(stories)} of {SHARE} broke, the first:\n{stories[0]}"
