"""The page in headless Chromium, as people see it: live, acting only when told, hostile names as text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.model import Event
from tests.http.browser import Page, chromium, until
from tests.http.served import KEY, served
from tests.sample_reports import pair_status, vpn_only_status

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of this file."""
    made = chromium()
    yield made
    made.quit()


async def test_the_pair_is_drawn_and_a_cut_is_seen(browser: Any) -> None:
    async with served() as place:
        place.daemon.traces = ()
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        picture = await page.text("#picture")
        assert "studio1" in picture
        assert "bridge0 0.31 ms" in picture
        used = await page.run("return document.querySelectorAll('.path.used.thunderbolt').length")
        assert used == 1
        place.daemon.status_now = vpn_only_status()
        await place.daemon.add_event(Event(time.time(), "path.dead", "bridge0", {"loss": 1.0}))
        await page.until("#health-text", lambda text: text == "degraded")
        assert "VPN on utun4" in await page.text("#reason-list")
        assert await page.run("return document.querySelectorAll('.path.dead').length") == 2
        assert await page.run("return document.querySelectorAll('.path.used.vpn').length") == 1
        lines = "[...document.querySelectorAll('.path')]"
        look = "[one.classList.contains('dead'), getComputedStyle(one).strokeDasharray !== 'none']"
        dashed = f"return {lines}.map((one) => {look})"
        assert all(dead == is_dashed for dead, is_dashed in await page.run(dashed)), "the dead ones are dashed"
        assert "utun4 44 ms, degraded" in await page.text("#picture")
        await page.until("#events", lambda text: "path.dead" in text)
        assert await page.run("return document.querySelectorAll('#chart .switch').length") == 1
        assert await page.complaints() == []
        await page.close()


async def test_a_hostile_name_is_text(browser: Any) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">\u202e"
    status = pair_status()
    nodes = (status.nodes[0], msgspec.structs.replace(status.nodes[1], name=evil))
    engine = msgspec.structs.replace(status.engine, model="<script>document.title='owned'</script>")
    async with served() as place:
        place.daemon.status_now = msgspec.structs.replace(status, nodes=nodes, engine=engine)
        page = Page(browser, place)
        await page.open()
        await page.until("#mesh-text", lambda text: "<img src=x" in text)
        assert "<script>" in await page.text("#engine")
        assert "\u202e" not in await page.text("body")
        assert await page.run("return document.querySelectorAll('main img, main script').length") == 0
        assert "owned" not in await page.run("return document.title")
        await page.close()


async def test_the_chat_streams_and_can_be_stopped(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.ask("count from 3 to 9")
        await page.until("#chat-log .assistant", lambda text: text.split() == [str(n) for n in range(3, 10)])
        await page.until("#chat-figures", lambda text: "7 generated" in text)
        place.daemon.pause = asyncio.Event()
        await page.ask("count from 1 to 500")
        await page.until("#chat-log p:last-child", lambda text: text.startswith("1"))
        await page.click("#chat-stop")
        await until(lambda: asyncio.sleep(0, bool(place.daemon.cancelled)))
        await page.until("#chat-figures", lambda text: text == "stopped")
        await page.close()


async def test_an_action_asks_first(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#actions", lambda text: "Unload" in text)
        await page.click("#actions button:last-child")
        assert await page.text("#ask-title") == "Unload the model?"
        await page.click("#ask-form button[value=no]")
        await page.click("#actions button:last-child")
        assert place.daemon.asked == []
        await page.click("#ask-yes")
        await page.until("#action-text", lambda text: text == "unloaded")
        assert place.daemon.asked == [("engine_unload",)]
        await page.close()


async def test_without_leave_there_are_no_buttons(browser: Any) -> None:
    async with served(actions=False) as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#action-text", lambda text: "api.commands = false" in text)
        assert await page.run("return document.querySelectorAll('#actions button').length") == 0
        await page.close()


async def test_a_key_is_asked_for_and_kept_nowhere(browser: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    async with served(keys) as place:
        page = Page(browser, place)
        await page.open()
        await until(lambda: page.run("return document.querySelector('#key-dialog').open"))
        await page.run("document.querySelector('#key-text').value = arguments[0]", KEY)
        await page.click("#key-form button")
        await page.until("#health-text", lambda text: text == "healthy")
        kept = await page.run(
            "return JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie"
        )
        assert KEY not in kept
        assert KEY not in await page.run("return document.documentElement.outerHTML")
        assert await page.complaints() == []
        await page.close()


@pytest.mark.parametrize("width", [1280, 390])
async def test_nothing_stands_in_the_way_of_anybody(browser: Any, width: int) -> None:
    """axe-core finds nothing that is serious, and a phone's width needs no scrolling sideways."""
    async with served() as place:
        place.daemon.status_now = vpn_only_status()
        page = Page(browser, place)
        await page.open(width)
        await page.until("#health-text", lambda text: text == "degraded")
        assert await page.accessibility() == []
        assert await page.sideways() == 0
        await page.close()


async def test_a_day_of_states_does_not_grow(browser: Any) -> None:
    """86,400 states and 20,000 events go through the page's own modules: what they keep is bounded."""
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        kept = await page.run(
            """
            return (async () => {
              const { RttHistory } = await import("/page/rtt_chart.js");
              const { EventList } = await import("/page/event_list.js");
              const path = (id) => ({ id, interface: "en0", kind: "vpn", state: "up", rtt_ms: 1, selected: true });
              const history = new RttHistory();
              for (let at = 0; at < 86400; at += 1) {
                const id = at % 600 < 300 ? "one" : `path ${at}`;
                const links = [{ peer: "p", peer_name: "studio2", selected: id, paths: [path(id)] }];
                history.add({ at, status: { links }, degraded_ms: 5 });
              }
              const { SpeedHistory } = await import("/page/speed_chart.js");
              const speeds = new SpeedHistory();
              const engine = { state: "generating", tokens_per_s: 1, waiting: 0 };
              for (let at = 0; at < 86400; at += 1) speeds.add({ at, status: { engine } });
              const list = document.createElement("ol");
              const events = new EventList(list, document.createElement("select"));
              for (let at = 0; at < 20000; at += 1) events.add({ ts: at, type: "path.up", subject: "x" });
              const samples = [...history.series.values()].map((one) => one.samples.length);
              const lists = [history.switches.length, list.children.length, speeds.samples.length];
              return [history.series.size, Math.max(...samples), ...lists];
            })()
            """
        )
        assert kept[0] <= 24
        assert kept[1] <= 720
        assert kept[2] <= 50
        assert kept[3] <= 300
        assert kept[4] <= 720
        await page.close()
