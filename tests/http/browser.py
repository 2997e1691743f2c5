"""Chromium without a screen, and the page that is open in it, for tests and for the pictures of the docs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.conftest import missing
from tests.http.served import Place

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


def chromium() -> Any:
    """A browser of its own; its caller quits it."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        missing("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver or ""))
    made.set_page_load_timeout(60)
    return made


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

    async def action(self, label: str) -> None:
        """Presses the action's button that begins so."""
        buttons = "[...document.querySelectorAll('#actions button')]"
        await self.run(f"{buttons}.find((one) => one.textContent.startsWith(arguments[0])).click()", label)

    async def complaints(self) -> list[str]:
        """What the console holds: an answer with an error status is the browser's own line, not the page's."""
        entries = await asyncio.to_thread(self._browser.get_log, "browser")
        return [
            one["message"] for one in entries if one["level"] == "SEVERE" and "status of 401" not in one["message"]
        ]

    async def type(self, selector: str, text: str) -> None:
        await self.run(f"document.querySelector({selector!r}).value = arguments[0]", text)

    async def ask(self, question: str) -> None:
        """Asks in the chat box."""
        await self.type("#chat-text", question)
        await self.click("#chat-send")

    async def color_scheme(self, scheme: str) -> None:
        """`light` or `dark`, as the system would say it; empty: none."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        await asyncio.to_thread(self._browser.execute_cdp_cmd, "Emulation.setEmulatedMedia", media)

    async def accessibility(self) -> list[list[str]]:
        """What axe-core finds that is serious or critical."""
        if not AXE.is_file():
            missing("needs the npm package axe-core")
        script = AXE.read_text() + "; return axe.run().then((r) => r.violations.map((v) => [v.impact, v.id]))"
        found: list[list[str]] = await self.run(script)
        return [one for one in found if one[0] in ("serious", "critical")]

    async def sideways(self) -> int:
        """How many pixels of the page lie beyond the window's width."""
        wider = await self.run("return document.documentElement.scrollWidth - window.innerWidth")
        assert isinstance(wider, int)
        return max(0, wider)

    async def close(self) -> None:
        await asyncio.to_thread(self._browser.get, "about:blank")
        await self.place.quiet()
