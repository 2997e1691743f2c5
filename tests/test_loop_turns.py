"""How the work of many clients is divided over the turns of the loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from exod.daemon_api.loop_turns import LoopTurns

pytestmark = pytest.mark.anyio

PIECE_S = 0.004


def busy() -> None:
    until = time.monotonic() + PIECE_S
    while time.monotonic() < until:
        pass


async def test_a_burst_of_work_is_done_over_several_turns_in_its_order() -> None:
    turns, done = LoopTurns(budget_s=2.5 * PIECE_S), list[int]()

    def piece(number: int) -> None:
        busy()
        done.append(number)

    for number in range(10):
        turns.run(lambda number=number: piece(number))  # type: ignore[misc]
    assert len(done) <= 3
    most = 0
    while len(done) < 10:
        before = len(done)
        await asyncio.sleep(0)
        most = max(most, len(done) - before)
    assert 0 < most <= 3
    assert done == list(range(10))


async def test_requests_begin_a_few_at_each_turn() -> None:
    turns, begun = LoopTurns(budget_s=0.010), list[int]()

    async def request(number: int) -> None:
        await turns.wait(0.004)
        begun.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(request(number))
        most = 0
        while len(begun) < 20:
            before = len(begun)
            await asyncio.sleep(0)
            most = max(most, len(begun) - before)
    assert 0 < most <= 3
    assert begun == list(range(20))


async def test_a_single_request_waits_for_nothing() -> None:
    turns = LoopTurns()
    waiting = turns.wait()
    with pytest.raises(StopIteration):
        waiting.send(None)


async def test_whoever_leaves_while_it_waits_takes_no_turn() -> None:
    turns = LoopTurns(budget_s=0.001)
    turns.run(busy)
    leaving = asyncio.create_task(turns.wait())
    staying = asyncio.create_task(turns.wait())
    await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(5):
        await staying


async def test_work_that_fails_stops_no_other() -> None:
    turns, done = LoopTurns(budget_s=0.001), list[str]()

    def failing() -> None:
        raise ValueError("broken")

    turns.run(busy)
    turns.run(failing)
    turns.run(lambda: done.append("after"))
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert done == ["after"]
