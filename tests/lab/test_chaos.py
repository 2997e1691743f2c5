"""A share of the chaos in every run: some drawn faults, and each answer is the undisturbed one.

`make chaos` is the long run, with the faults of the ring and of hosts beside them. The seed is fixed, so that what
fails here fails again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.chaos import run
from tests.lab.faults import LinkFaults, ProcessFaults
from tests.lab.oracle import Verdict

pytestmark = pytest.mark.lab

SEED = 4
FAULTS = 8
MINUTES = 0.5
WITHIN_S = 600  # the last answers may wait for one another and for what was broken last


@pytest.mark.timeout(WITHIN_S)
def test_some_faults_change_no_answer_and_leave_nothing_behind(tmp_path: Path) -> None:
    report = run(SEED, MINUTES, FAULTS, keep_logs=tmp_path, lanes=(LinkFaults, ProcessFaults))
    print("\n".join(report.lines()))
    assert not report.wrong, "\n".join([report.details, *report.lines()])
    assert report.story.verdicts[Verdict.WHOLE] > 0
    assert report.story.sampled > 0
    assert report.faults.count > FAULTS / 2
