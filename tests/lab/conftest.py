"""Says once for all lab tests whether this machine can hold a lab.

Where it cannot, the tests skip with the reason; under CI=true that reason is a failure, because the pipeline
installs what they need.
"""

from __future__ import annotations

import os

import pytest

from tests.lab.netns import missing_capability


def skip_or_fail(reason: str) -> None:
    """Ends the test: as a failure where CI promised the capability, as a skip elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to run the lab: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _room_for_a_lab() -> None:
    if reason := missing_capability():
        skip_or_fail(reason)
