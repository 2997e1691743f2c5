"""Shared by all tests: what is missing on this machine is a skip with its reason, and under CI a failure."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from hypothesis import HealthCheck, settings

# Hypothesis's own limits are of time (200 ms an example): on a busy machine they fail what is right.
settings.register_profile("exod", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exod")

if sys.platform == "darwin":
    # Its own temporary folders have long names, and the path of a UNIX socket may have 104 bytes.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests (`@pytest.mark.anyio`) run on the loop that the daemon runs on."""
    return "asyncio", {"use_uvloop": True}


def missing(reason: str) -> None:
    """Ends this test: a skip for a person who lacks a part, a failure where CI should have installed it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI installs what the tests meet: see .ci/run)")
    pytest.skip(reason)


@pytest.fixture
def second_loopback() -> None:
    """For a test with two addresses on loopback: Linux has all of 127.0.0.0/8, macOS 127.0.0.1 alone."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            pytest.skip("needs 127.0.0.2: on macOS lo0 has 127.0.0.1 alone")
