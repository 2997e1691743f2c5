"""The page in headless Chromium, as people see it: live, acting only when told, hostile names as text."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.model import Event
from tests.conftest import missing
from tests.fake_daemon import pair_status, vpn_only_status
from tests.http.served import KEY, Place, served

pytestmark = pytest.mark.anyio

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
WAIT_S = 20.0

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of this file."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver or ""))
    made.set_page_load_timeout(60)
    yield made
    made.quit()


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    """Looks again and again, in another process or at a plain field, until it is so."""
    async with asyncio.timeout(WAIT_S):
        while not await holds():  # noqa: ASYNC110 - a browser tells nobody
            await asyncio.sleep(0.05)


class Page:
    """The open page; every look at it is made off the loop that serves it."""

    def __init__(self, browser: Any, place: Place) -> None:
        self._browser = browser
        self.place = place

    async def open(self, width: int = 1280, height: int = 1000) -> None:
        def go() -> None:
            self._browser.set_window_size(width, height)
            self._browser.get(f"{self.place.api.url}/")
            self._browser.get_log("browser")

        await asyncio.to_thread(go)

    async def run(self, script: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(self._browser.execute_script, script, *arguments)

    async def text(self, selector: str) -> str:
        found = await self.run(f"return document.querySelector({selector!r})?.textContent ?? ''")
        assert isinstance(found, str)
        return found

    async def until(self, selector: str, holds: Callable[[str], bool]) -> str:
        """The text of `selector` once it is as wanted."""
        text = ""

        async def held() -> bool:
            nonlocal text
            text = await self.text(selector)
            return holds(text)

        await until(held)
        return text

    async def click(self, selector: str) -> None:
        await self.run(f"document.querySelector({selector!r}).click()")

    async def complaints(self) -> list[str]:
        """What the console holds: an answer with an error status is the browser's own line, not the page's."""
        entries = await asyncio.to_thread(self._browser.get_log, "browser")
        return [
            one["message"] for one in entries if one["level"] == "SEVERE" and "status of 401" not in one["message"]
        ]

    async def close(self) -> None:
        await asyncio.to_thread(self._browser.get, "about:blank")
        await self.place.quiet()


async def test_the_pair_is_drawn_and_a_cut_is_seen(browser: Any) -> None:
    async with served() as place:
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
        await page.run("document.querySelector('#chat-text').value = 'count from 3 to 9'")
        await page.click("#chat-send")
        await page.until("#chat-log .assistant", lambda text: text.split() == [str(n) for n in range(3, 10)])
        await page.until("#chat-figures", lambda text: "7 generated" in text)
        place.daemon.pause = asyncio.Event()
        await page.run("document.querySelector('#chat-text').value = 'count from 1 to 500'")
        await page.click("#chat-send")
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
    if not AXE.is_file():
        missing("needs the npm package axe-core")
    async with served() as place:
        place.daemon.status_now = vpn_only_status()
        page = Page(browser, place)
        await page.open(width)
        await page.until("#health-text", lambda text: text == "degraded")
        script = AXE.read_text() + "; return axe.run().then((r) => r.violations.map((v) => [v.impact, v.id]))"
        found = await page.run(script)
        assert [one for one in found if one[0] in ("serious", "critical")] == []
        wider = await page.run("return document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0
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
              const list = document.createElement("ol");
              const events = new EventList(list, document.createElement("select"));
              for (let at = 0; at < 20000; at += 1) events.add({ ts: at, type: "path.up", subject: "x" });
              const samples = [...history.series.values()].map((one) => one.samples.length);
              return [history.series.size, Math.max(...samples), history.switches.length, list.children.length];
            })()
            """
        )
        assert kept[0] <= 24
        assert kept[1] <= 720
        assert kept[2] <= 50
        assert kept[3] <= 300
        await page.close()
