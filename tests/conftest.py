"""Shared by all tests: what is missing on this machine is a skip with its reason, and under CI a failure."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Hypothesis's own limits are of time (200 ms an example): on a busy machine they fail what is right.
settings.register_profile("exod", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exod")

if sys.platform == "darwin":
    # Its own temporary folders have long names, and the path of a UNIX socket may have 104 bytes.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")

WITH_RANKS = ("engine/generate/", "engine/model/", "engine/process/", "engine/ring/")
"""With several workers, all of them one worker's: two groups of ranks at once fill all cores."""
ALONE = (
    *("attack/", "bench/", "lab/", "sim/"),
    *("test_cluster_membership.py", "test_little_memory.py", "test_single_node.py"),
)
"""The same one's, when all the rest is done: they use all cores, or what they see depends on how long it takes."""
TESTS = Path(__file__).parent.name
TURN = os.open(__file__, os.O_RDONLY)  # its lock: what runs alone waits for the others


def is_in(places: tuple[str, ...], path: str) -> bool:
    """`path` as test ids have it, from the root of the project."""
    return path.startswith(tuple(f"{TESTS}/{place}" for place in places))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files, in turns (`make test`)."""
    from xdist.scheduler import LoadFileScheduling

    class Turns(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            is_the_one = node is self.nodes[0]
            beside = [file for file in self.workqueue if not is_in((*WITH_RANKS, *ALONE), file)]
            ranks = [file for file in self.workqueue if is_in(WITH_RANKS, file)]
            choice = [*ranks, *beside, *self.workqueue] if is_the_one else beside
            if choice:
                self.workqueue.move_to_end(choice[0], last=False)
                super()._assign_work_unit(node)
            else:
                node.shutdown()

    return Turns(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The wait for a turn is no part of a test's own deadline."""
    if hasattr(item.config, "workerinput"):
        fcntl.flock(TURN, fcntl.LOCK_EX if is_in(ALONE, item.nodeid) else fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            fcntl.flock(TURN, fcntl.LOCK_UN)


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
