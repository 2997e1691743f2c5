"""A share of the joint scenarios in every test run; `make sim` runs 10,000."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.sim.__main__ import attempt_joint
from tests.sim.engine.scenarios import JointOutcome, run

SHARE = 100
"""A quarter of a minute of two cores; planted bugs are found within the first dozen."""


def test_mesh_and_engine_break_no_invariant_together() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(attempt_joint, range(1, SHARE + 1), chunksize=10))
    stories = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert not stories, f"{len(stories)} of {SHARE} broke, the first:\n{stories[0]}"
    good = [outcome for outcome in outcomes if isinstance(outcome, JointOutcome)]
    # A simulation in which little happens would prove little.
    assert sum(outcome.groups for outcome in good) > 2 * SHARE
    assert sum(outcome.tokens for outcome in good) > 50 * SHARE
    assert sum(outcome.most_at_once > 2 for outcome in good) > SHARE / 4, "several requests at once"
    ends = sum((Counter(outcome.outcomes) for outcome in good), Counter[str]())
    assert ends["length"] > 4 * SHARE
    assert ends.keys() >= {"length", "cancelled", "lost", "client_too_slow", "queue_full"}
    assert {fault for outcome in good for fault in outcome.faults} >= {
        "worker_crash",
        "worker_stop",
        "daemon_leaves",
        "lossy_messages",
        "want_model",
        "cut",
        "partition",
        "sleep",
        "crash_all",
    }


def test_a_joint_seed_repeats_itself() -> None:
    assert run(7) == run(7)


def test_what_another_side_ended_is_not_cancelled_again_and_again() -> None:
    """A node that slept in a partition: the coordinator told its ranks to end two requests, the origin of both
    answered each with a cancel, and each cancel had both told again.
    """
    run(705235)
