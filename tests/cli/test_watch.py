"""`--watch` and colour, as a real terminal sees them."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from exod.errors import ExitCode
from tests.cli.running import DEADLINE_S, Exoctl, served
from tests.sample_reports import vpn_only_status

pytestmark = pytest.mark.anyio


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


async def test_watch_redraws_in_place_and_leaves_the_terminal_as_it_was(exoctl: Exoctl) -> None:
    async with served(exoctl) as daemon, exoctl.terminal("status", "--watch") as terminal:
        await terminal.until("healthy")
        daemon.status_now = vpn_only_status()
        await terminal.until("degraded")
        terminal.type("\x03")
        assert await terminal.ended() == ExitCode.DEGRADED
    shown = terminal.shown
    assert shown.startswith("\x1b[?1049h\x1b[?25l"), "the alternate screen, without a cursor"
    assert "\x1b[?25h\x1b[?1049l" in shown, "and back"
    assert "\x1b[2J" not in shown, "never a blank screen in between"
    assert shown.count("\x1b[?2026l") >= shown.count("\x1b[?2026h") >= 2, "no update is left open"
    assert "degraded" in shown.split("\x1b[?1049l")[1], "the last frame stays to be read"


async def test_watch_cuts_to_a_small_terminal(exoctl: Exoctl) -> None:
    async with served(exoctl), exoctl.terminal("status", "--watch", "--no-color", columns=60, rows=8) as terminal:
        await terminal.until("more lines")
        terminal.type("\x03")
        await terminal.ended()
    frame = terminal.shown.split("\x1b[?2026h\x1b[H")[1].split("\x1b[J")[0]
    lines = frame.split("\x1b[K\r\n")
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 60


async def test_watch_lives_through_a_restart_of_the_daemon(exoctl: Exoctl) -> None:
    async with exoctl.terminal("links", "--watch") as terminal:
        await terminal.until("no exod is running here")
        async with served(exoctl):
            await terminal.until("both ends use")
            terminal.type("\x03")
            assert await terminal.ended() == 0


async def test_watch_with_json_is_a_document_a_line(exoctl: Exoctl) -> None:
    async with served(exoctl):
        process = await exoctl.start("status", "--watch", "--json")
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                assert json.loads(await process.stdout.readline())["schema"] == 1
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


async def test_colour_is_for_terminals_and_can_be_declined(exoctl: Exoctl) -> None:
    async def shown(*arguments: str) -> str:
        async with exoctl.terminal("status", *arguments) as terminal:
            await terminal.ended()
            return terminal.shown

    async with served(exoctl):
        assert "\x1b[32m●" in await shown()
        assert "\x1b[" not in await shown("--no-color")
        exoctl.environment["NO_COLOR"] = "1"
        assert "\x1b[" not in await shown()
