"""A spare worker takes a dead one's place, and never outlives its daemon."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from exod.engine_service import spare_worker
from exod.engine_service.spare_worker import SpareWorker
from exod.engine_service.worker_process import WorkerProcess
from exoengine.protocol import Hello
from tests.engine_service.test_worker_process import STAND_IN, Daemon, a_daemon, is_alive, until

pytestmark = pytest.mark.anyio


def children() -> set[int]:
    """The pids of this process's children that live; other tests' daemons may have some."""
    return {child.pid for child in psutil.Process().children() if is_alive(child.pid)}


async def with_a_spare(daemon: Daemon) -> tuple[int, int]:
    """The pids of the worker and its spare."""
    daemon.worker = WorkerProcess(
        daemon.folder, {}, daemon.heard.append, daemon.ended.append, STAND_IN, keeps_spare=True
    )
    pid = await daemon.start()
    daemon.worker.spare.prepare(0.0)
    await until(lambda: daemon.worker.spare.text == "ready", "a spare is ready")
    spare = daemon.worker.spare.pid
    assert spare is not None
    return pid, spare


async def test_it_takes_the_dead_ones_place_and_another_follows(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid, spare = await with_a_spare(daemon)
        os.kill(pid, 9)
        await until(lambda: daemon.ended, "the end is told")
        assert await daemon.start() == spare
        assert daemon.worker.pid == spare
        assert daemon.worker.spare.pid is None
        daemon.worker.spare.prepare(0.0)
        await until(lambda: daemon.worker.spare.text == "ready", "the next spare is ready")
        await daemon.worker.leave()
        assert not is_alive(spare)


async def test_it_ends_with_a_worker_that_leaves(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        _, spare = await with_a_spare(daemon)
        await daemon.worker.leave()
        assert not is_alive(spare)


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 100])
async def test_one_that_is_being_started_ends_with_it(tmp_path: Path, steps: int) -> None:
    before = children()
    async with a_daemon(tmp_path) as daemon:
        daemon.worker = WorkerProcess(
            tmp_path, {}, daemon.heard.append, daemon.ended.append, STAND_IN, keeps_spare=True
        )
        await daemon.start()
        daemon.worker.spare.prepare(0.0)
        for _ in range(steps):
            await asyncio.sleep(0)
        await daemon.worker.leave()
        assert children() <= before


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 100])
async def test_a_worker_that_is_being_started_ends_too(tmp_path: Path, steps: int) -> None:
    before = children()
    async with a_daemon(tmp_path) as daemon:
        daemon.worker.start(daemon.tasks)
        for _ in range(steps):
            await asyncio.sleep(0)
        await daemon.worker.leave()
        assert children() <= before


async def test_it_ends_by_itself_where_its_daemon_dies_and_the_worker_lives_on(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid, spare = await with_a_spare(daemon)
        daemon.die()
        end = daemon.worker.spare._end
        assert end is not None
        end.close()  # as the kernel does it for a process that ends
        await until(lambda: not is_alive(spare), "the spare ends")
        assert is_alive(pid)


async def test_one_that_went_to_work_is_adopted_by_the_next_daemon(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        pid, spare = await with_a_spare(daemon)
        os.kill(pid, 9)
        await until(lambda: daemon.ended, "the end is told")
        await daemon.start()
        daemon.die()
        async with a_daemon(tmp_path) as later:
            assert await later.start() == spare


async def test_a_daemon_that_adopts_a_rank_with_its_layers_starts_a_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a daemon that was replaced has none for as long as its rank lives, when it needs one."""
    monkeypatch.setattr(SpareWorker.prepare, "__defaults__", (0.0,))
    async with a_daemon(tmp_path) as daemon:
        await daemon.start()
        daemon.wish("load")
        daemon.die()
        async with a_daemon(tmp_path) as later:
            later.worker = WorkerProcess(
                tmp_path, {}, later.heard.append, later.ended.append, STAND_IN, keeps_spare=True
            )
            await later.start()
            await until(lambda: later.worker.spare.text == "ready", "a spare is ready")
            await later.worker.leave()


async def test_without_memory_there_is_none_and_the_status_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_worker, "LEAST_FREE_BYTES", psutil.virtual_memory().total * 2)
    async with a_daemon(tmp_path) as daemon:
        daemon.worker = WorkerProcess(
            tmp_path, {}, daemon.heard.append, daemon.ended.append, STAND_IN, keeps_spare=True
        )
        pid = await daemon.start()
        daemon.worker.spare.prepare(0.0)
        await until(lambda: "left out" in daemon.worker.spare.text, "it says why")
        assert daemon.worker.spare.pid is None
        os.kill(pid, 9)
        await until(lambda: daemon.ended, "the end is told")
        assert isinstance((await daemon.start(), daemon.heard[0])[1], Hello)


async def test_switched_off_none_is_started(tmp_path: Path) -> None:
    async with a_daemon(tmp_path) as daemon:
        await daemon.start()
        daemon.worker.spare.prepare(0.0)
        assert daemon.worker.spare.text == "off: engine.spare"
        assert daemon.worker.spare.pid is None
