"""A rank that waits for its last process's memory: what is left behind, what is not, and what people are told."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.engine.rank.wired_watch import TOLD_AFTER_S, WiredWatch
from exod.core.engine.rank.worker_life import WorkerLife
from tests.core.engine.engine_samples import beat, hello

GIB = 1 << 30


def died(wired_before: int, had: int, wired_after: int) -> WiredWatch:
    watch = WiredWatch()
    watch.observe(wired_before)
    watch.started()
    watch.observe(wired_before + had)
    watch.ended(had, 100.0)
    watch.observe(wired_after)
    return watch


def test_memory_that_stays_wired_blocks_and_is_told_when_it_should_be_free() -> None:
    watch = died(3 * GIB, 40 * GIB, 43 * GIB)
    assert watch.blocks
    assert watch.text(100.0 + TOLD_AFTER_S - 1) == ""
    assert "40.00 GiB more than before it are still wired" in watch.text(100.0 + TOLD_AFTER_S)
    assert "Restart this Mac" in watch.text(200.0)
    watch.observe(4 * GIB)
    assert not watch.blocks
    assert watch.text(300.0) == ""


@pytest.mark.parametrize(
    ("had", "after"),
    [(40 * GIB, 4 * GIB), (40 * GIB, 20 * GIB), (0, 4 * GIB)],
    ids=["freed", "less than half: another program", "it held nothing"],
)
def test_what_others_wire_is_no_leak(had: int, after: int) -> None:
    assert not died(3 * GIB, had, after).blocks


def test_where_the_system_tells_nothing_nothing_waits() -> None:
    watch = WiredWatch()
    watch.started()
    watch.ended(40 * GIB, 100.0)
    assert not watch.blocks
    assert watch.text(1000.0) == ""


def test_a_process_is_not_started_again_while_its_memory_is_wired() -> None:
    life = WorkerLife()
    life.wired.observe(3 * GIB)
    life.started(0.0)
    life.said_hello(hello(), 1.0)
    life.heartbeat = msgspec.structs.replace(beat(), memory_bytes=40 * GIB)
    life.wired.observe(43 * GIB)
    life.killed("it hangs", 10.0)
    life.ended(11.0)
    assert not life.may_start(30.0)
    due = life.next_deadline(wanted=True)
    assert due is not None
    assert 30.0 < due <= 31.0, "it is looked at again, and not in a circle"
    life.wired.observe(4 * GIB)
    assert life.may_start(due)


def test_an_end_that_left_nothing_behind_waits_only_its_pause() -> None:
    life = WorkerLife()
    life.wired.observe(3 * GIB)
    life.started(0.0)
    life.ended(1.0)
    assert life.may_start(2.0)
