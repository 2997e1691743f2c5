"""The event log: bounded, kept over restarts, and never blocked by a slow reader."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import aclosing
from pathlib import Path

import pytest
import structlog

from exod.diagnostics import event_log
from exod.diagnostics.event_log import EVENTS_FILE, EventLog
from exod.model import Event

pytestmark = pytest.mark.anyio


def an_event(number: int, ts: float = 0.0) -> Event:
    return Event(ts, "path.up", f"path{number}", {"rtt_ms": float(number)})


async def read(log: EventLog, since: float | None = None) -> list[str]:
    return [event.subject async for event in log.read(since, follow=False)]


async def test_events_are_stamped_and_read_back_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    before = time.time()
    log.write(an_event(1))
    log.write(an_event(2, ts=before + 100))
    found = [event async for event in log.read(None, follow=False)]
    assert [event.subject for event in found] == ["path1", "path2"]
    assert before - 1 <= found[0].ts <= time.time() + 1
    assert found[1].ts == before + 100
    assert await read(log, since=before + 50) == ["path2"]
    assert log.count == 2


async def test_the_next_life_reads_what_the_last_one_wrote(tmp_path: Path) -> None:
    EventLog(tmp_path).write(an_event(1))
    second = EventLog(tmp_path)
    second.write(an_event(2))
    assert await read(second) == ["path1", "path2"]
    lines = (tmp_path / EVENTS_FILE).read_text().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["path1", "path2"]


async def test_a_torn_line_costs_that_line_only(tmp_path: Path) -> None:
    EventLog(tmp_path).write(an_event(1))
    with (tmp_path / EVENTS_FILE).open("ab") as stream:
        stream.write(b'{"ts": 1, "ty')
    second = EventLog(tmp_path)
    second.write(an_event(2))
    assert await read(second) == ["path1", "path2"]
    assert await read(EventLog(tmp_path)) == ["path1", "path2"]


async def test_a_torn_line_in_a_full_file_costs_no_line_of_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_FILE_BYTES", 100)
    EventLog(tmp_path).write(an_event(1))
    with (tmp_path / EVENTS_FILE).open("ab") as stream:
        stream.write(b'{"ts": 1, "ty' + b"x" * 100)
    EventLog(tmp_path).write(an_event(2))
    assert event_log.kept_events(tmp_path).unreadable == 1
    assert (tmp_path / EVENTS_FILE).read_text().count("\n") == 1


async def test_a_clock_that_is_set_back_hides_no_event_from_who_asks_for_later_ones(tmp_path: Path) -> None:
    """A viewer that comes back names the time of the last event that it saw."""
    log = EventLog(tmp_path)
    for number, ts in enumerate((100_000.0, 100_001.25, 13_600.5, 13_601.0)):
        log.write(an_event(number, ts))
    assert await read(log, since=100_001.25) == ["path2", "path3"]
    assert await read(log, since=13_600.5) == ["path3"]
    assert await read(log, since=100_000.5) == ["path1"]


async def test_memory_and_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_EVENTS", 50)
    monkeypatch.setattr(event_log, "MAX_FILE_BYTES", 2000)
    log = EventLog(tmp_path)
    for number in range(200):
        log.write(an_event(number))
    assert await read(log) == [f"path{number}" for number in range(150, 200)]
    sizes = [os.stat(tmp_path / name).st_size for name in os.listdir(tmp_path)]
    assert len(sizes) == 2
    assert max(sizes) < 2200
    assert (await read(EventLog(tmp_path)))[-1] == "path199"


async def test_a_follower_gets_old_and_new_events_without_a_gap(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write(an_event(1))
    async with aclosing(log.read(None, follow=True)) as stream, asyncio.timeout(20):
        assert (await anext(stream)).subject == "path1"
        log.write(an_event(2))
        log.write(an_event(3))
        assert [(await anext(stream)).subject for _ in range(2)] == ["path2", "path3"]
    assert not log._followers


async def test_a_slow_follower_loses_the_oldest_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_FOLLOWER_BACKLOG", 5)
    log = EventLog(tmp_path)
    async with aclosing(log.read(None, follow=True)) as stream, asyncio.timeout(20):
        log.write(an_event(0))
        assert (await anext(stream)).subject == "path0"
        for number in range(1, 101):
            log.write(an_event(number))
        assert (await anext(stream)).subject == "path96"


async def test_hooks_hear_of_each_event_with_its_stamp(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    heard: list[Event] = []
    log.on_event.append(heard.append)
    log.write(an_event(1))
    assert heard[0].subject == "path1"
    assert heard[0].ts > 0


async def test_a_disk_that_takes_nothing_more_costs_the_file_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "gone")
    with structlog.testing.capture_logs() as logs:
        log.write(an_event(1))
    assert await read(log) == ["path1"]
    assert any(entry["event"] == "event_file_failed" for entry in logs)


async def test_fields_of_an_event_may_be_named_like_the_logs_own(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write(Event(0.0, "alert.raised", "s", {"event": "x", "subject": "y", "level": "z"}))
    assert await read(log) == ["s"]
