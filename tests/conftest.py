"""Shared by all tests: what is missing on this machine is a skip with its reason, and under CI a failure."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests (`@pytest.mark.anyio`) run on the loop that the daemon runs on."""
    return "asyncio", {"use_uvloop": True}


def missing(reason: str) -> None:
    """Ends this test: a skip for a person who lacks a part, a failure where CI should have installed it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI installs what the tests meet: see .ci/run)")
    pytest.skip(reason)
