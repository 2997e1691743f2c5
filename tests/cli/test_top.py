"""`exoctl top` in a real terminal: what stands on the screen at two sizes, each key, a cut, hostile names."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from exod.model import Event
from tests.cli.running import EXOCTL, Exoctl, served
from tests.conftest import missing
from tests.fake_daemon import FakeDaemon
from tests.sample_reports import pair_status, vpn_only_status

pytestmark = pytest.mark.anyio
DEADLINE_S = 30.0


class Screen:
    """A terminal of tmux with `exoctl top` in it."""

    def __init__(self, exoctl: Exoctl, columns: int, rows: int) -> None:
        self._tmux = ("tmux", "-L", f"exod-{uuid.uuid4().hex[:8]}", "-f", "/dev/null")
        command = [*EXOCTL, "--socket", str(exoctl.socket), "top"]
        size = ("-x", str(columns), "-y", str(rows))
        subprocess.run(
            [*self._tmux, "-u", "new-session", "-d", *size, *command], env=exoctl.environment, check=True
        )

    async def text(self) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [*self._tmux, "capture-pane", "-p"], capture_output=True, text=True, check=False
        )
        return done.stdout

    async def until(self, holds: Callable[[str], object]) -> str:
        shown = ""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(shown := await self.text()):
            assert time.monotonic() < deadline, f"never on the screen:\n{shown}"
            await asyncio.sleep(0.1)
        return shown

    async def press(self, *keys: str) -> None:
        await asyncio.to_thread(subprocess.run, [*self._tmux, "send-keys", *keys], check=True)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def exoctl(tmp_path: Path) -> Exoctl:
    return Exoctl(tmp_path)


@pytest.fixture
async def daemon(exoctl: Exoctl) -> AsyncIterator[FakeDaemon]:
    async with served(exoctl) as fake:
        yield fake


@pytest.fixture(params=[(80, 24), (200, 50)], ids=["80x24", "200x50"])
async def screen(request: pytest.FixtureRequest, exoctl: Exoctl, daemon: FakeDaemon) -> AsyncIterator[Screen]:
    if shutil.which("tmux") is None:
        missing("needs Debian's package tmux")
    made = Screen(exoctl, *request.param)
    yield made
    made.close()


async def test_what_matters_is_on_the_screen_and_a_cut_is_seen(screen: Screen, daemon: FakeDaemon) -> None:
    parts = (
        "healthy",
        "▶ bridge0",
        "en0",
        "utun4",
        "embedded:count",
        "312.4 tokens/s",
        "rank 1",
        "q Quit",
        "u Unload",
    )
    await screen.until(lambda text: all(part in text for part in parts))
    daemon.status_now = vpn_only_status()
    await daemon.add_event(Event(time.time(), "path.dead", "bridge0", {"loss": 1.0}))
    parts = ("degraded", "path.dead", "▶ utun4", "the only path to studio2 is the VPN")
    await screen.until(lambda text: all(part in text for part in parts))


async def test_no_word_of_an_event_is_hidden_at_the_right_edge(screen: Screen, daemon: FakeDaemon) -> None:
    words = [f"word{number:02}" for number in range(30)]
    await daemon.add_event(Event(time.time(), "alert.raised", "studio1", {"cure": None, "text": " ".join(words)}))
    await screen.until(lambda text: all(word in text for word in words))
    await screen.until(lambda text: "None" not in text)


async def test_every_key_does_what_it_says_and_asks_first(screen: Screen, daemon: FakeDaemon) -> None:
    await screen.until(lambda text: "studio2" in text)
    for key, question, told in (
        ("r", "new mesh plan", "a new plan was asked for"),
        ("d", "Stop taking requests", "drained"),
        ("u", "Unload the model", "unloaded"),
    ):
        asked = len(daemon.asked)
        await screen.press(key)
        await screen.until(lambda text, wanted=question: wanted in text)  # type: ignore[misc]
        await screen.press("n")
        await screen.until(lambda text, wanted=question: wanted not in text)  # type: ignore[misc]
        assert len(daemon.asked) == asked, "leaving it does nothing"
        await screen.press(key)
        await screen.until(lambda text, wanted=question: wanted in text)  # type: ignore[misc]
        await screen.press("y")
        await screen.until(lambda text, wanted=told: wanted in text)  # type: ignore[misc]
    await screen.press("l")
    await screen.until(lambda text: "Load which model" in text)
    await screen.press("-l", "some/model")
    await screen.press("Enter")
    await screen.until(lambda text: "loading some/model" in text)
    assert ("engine_load", "some/model") in daemon.asked
    await screen.press("p")
    await screen.until(lambda text: "all 1 checks passed" in text)
    await screen.press("q")
    await screen.until(lambda text: "studio2" not in text)


async def test_hostile_names_cannot_steer_the_terminal(screen: Screen, daemon: FakeDaemon) -> None:
    status = pair_status()
    evil = "[red]x[/red]\x1b[2J\x07\u202e"
    nodes = (status.nodes[0], msgspec.structs.replace(status.nodes[1], name=evil))
    daemon.status_now = msgspec.structs.replace(status, nodes=nodes)
    shown = await screen.until(lambda text: "[red]x[/red]" in text)
    assert "healthy" in shown
    assert "\u202e" not in shown


async def test_without_a_terminal_or_a_daemon_it_says_so(exoctl: Exoctl, tmp_path: Path) -> None:
    ended = await exoctl.run("top")
    assert (ended.code, "needs a terminal" in ended.err) == (2, True)
    async with exoctl.terminal("top") as terminal:
        assert await terminal.ended() == 3
