"""A share of the chaos in every run: a minute of drawn faults, and each answer is the undisturbed one.

`make chaos` is the long run. The seed is fixed, so that what fails here fails again.
"""

from __future__ import annotations

import pytest

from tests.lab.chaos import run

pytestmark = pytest.mark.lab

SEED = 4
MINUTES = 1.0
ALL_FAULTS = 10_000  # time ends it
WITHIN_S = 600  # the last answers may wait for one another and for what was broken last


@pytest.mark.timeout(WITHIN_S)
def test_a_minute_of_faults_changes_no_answer_and_leaves_nothing_behind() -> None:
    story = run(SEED, MINUTES, ALL_FAULTS)
    print("\n".join(story.lines()))
    assert not story.wrong, "\n".join([story.report, *story.lines()])
    assert story.answers > 0
    assert story.faults
