"""What a node does to itself for a test, and that it is taken back."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exod.diagnostics.self_faults import SelfFaults
from exod.errors import RequestError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
LOOK_S = 0.02
LOOKS = int(WITHIN_S / LOOK_S)


@pytest.fixture
def rank() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]) as process:
        yield process
        process.kill()


async def becomes(process: subprocess.Popen[bytes], *states: str) -> None:
    for _ in range(LOOKS):
        if psutil.Process(process.pid).status() in states:
            return
        await asyncio.sleep(LOOK_S)
    pytest.fail(f"the process is not {states}")


async def test_the_rank_is_killed(rank: subprocess.Popen[bytes]) -> None:
    assert str(rank.pid) in SelfFaults(lambda: rank.pid, print).begin("kill-rank", 1.0)
    assert rank.wait(WITHIN_S) == -signal.SIGKILL


async def test_the_rank_is_stopped_for_a_while(rank: subprocess.Popen[bytes]) -> None:
    SelfFaults(lambda: rank.pid, print).begin("stop-rank", 0.5)
    await becomes(rank, psutil.STATUS_STOPPED)
    await becomes(rank, psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING)


async def test_a_node_without_a_rank_says_so() -> None:
    with pytest.raises(RequestError, match="hosts no rank"):
        SelfFaults(lambda: 0, print).begin("kill-rank", 1.0)


async def test_nothing_more_can_be_opened_for_a_while(tmp_path: Path) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    file = tmp_path / "file"
    file.touch()
    # The limit is one of numbers, so those that are free below the highest could still be taken.
    opened = [os.open(file, os.O_RDONLY)]
    highest = max(map(int, os.listdir("/dev/fd")))
    while opened[-1] < highest:
        opened.append(os.open(file, os.O_RDONLY))
    try:
        SelfFaults(lambda: 0, print).begin("no-descriptors", 0.3)
        with pytest.raises(OSError, match="Too many open files"):
            opened += [os.open(file, os.O_RDONLY) for _ in range(2)]
        for _ in range(LOOKS):
            if resource.getrlimit(resource.RLIMIT_NOFILE) == usual:
                break
            await asyncio.sleep(LOOK_S)
        file.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        for descriptor in opened:
            os.close(descriptor)


async def test_a_deaf_node_drops_what_comes_for_so_long() -> None:
    told: list[float] = []
    SelfFaults(lambda: 0, told.append).begin("deaf", 4.0)
    assert told == [4.0]
