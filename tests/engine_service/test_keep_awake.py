"""A Mac is kept awake while its rank works and a minute longer, by a child that never outlives its cause."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from exod.core.engine.awake import LINGER_S, Awake
from exod.engine_service import keep_awake as shell


def test_it_is_held_while_there_is_work_and_a_minute_longer() -> None:
    awake = Awake()
    assert awake.held_for(7, False, 0.0) is None
    assert awake.held_for(7, True, 1.0) == 7
    assert awake.held_for(7, False, 1.0 + LINGER_S - 0.1) == 7
    assert awake.held_for(7, False, 1.0 + LINGER_S) is None
    assert awake.held_for(7, False, 2.0 + LINGER_S) is None


def test_work_in_the_last_minute_begins_another() -> None:
    awake = Awake()
    awake.held_for(7, True, 0.0)
    awake.held_for(7, True, 50.0)
    assert awake.held_for(7, False, 100.0) == 7


def test_a_worker_that_is_gone_holds_nothing_and_its_successor_is_held() -> None:
    awake = Awake()
    awake.held_for(7, True, 0.0)
    assert awake.held_for(None, False, 1.0) is None
    assert awake.held_for(8, False, 2.0) == 8


def children(pid: int) -> list[str]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            found += [word for word in child.cmdline()[-1:] if word == str(pid)]
    return found


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a process of the system's tells nobody
        await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_the_child_is_there_with_the_work_and_ends_with_the_daemon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shell, "LOOK_INTERVAL_S", 0.01)
    command = (sys.executable, "-c", "import time; time.sleep(300)")
    state: list[tuple[int | None, bool]] = [(4_000_001, False)]
    keeping = asyncio.create_task(shell.keep_awake("darwin", lambda: state[0], command))
    try:
        async with asyncio.timeout(60):
            await asyncio.sleep(0.1)
            assert children(4_000_001) == []
            state[0] = (4_000_001, True)
            await until(lambda: bool(children(4_000_001)))
            state[0] = (None, False)
            await until(lambda: not children(4_000_001))
            state[0] = (4_000_002, True)
            await until(lambda: bool(children(4_000_002)))
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
    assert children(4_000_002) == []


@pytest.mark.anyio
async def test_elsewhere_nothing_is_started_and_a_mac_without_the_tool_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await shell.keep_awake("linux", lambda: (1, True), ("/no/such/tool",))
    monkeypatch.setattr(shell, "LOOK_INTERVAL_S", 0.01)
    keeping = asyncio.create_task(shell.keep_awake("darwin", lambda: (1, True), ("/no/such/tool",)))
    await asyncio.sleep(0.1)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait([keeping])
