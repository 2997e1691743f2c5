"""A browser inside one host of the lab, and what it sees as a PNG file. Decides nothing about what is there to see.

All calls must come from the thread that made it: it enters the host's namespace, and processes and sockets that are
made meanwhile belong to the host.
"""

from __future__ import annotations

import base64
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tests.http.browser import chromium
from tests.lab.topology import Host

PHONE = 390
DESK = 1240
WITHIN_S = 60.0
EVERY_S = 0.05


class Camera:
    """In `host`, or on this computer where there is none. Ends with `close`."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host
        with self._there():
            self._browser = chromium()

    def _there(self) -> AbstractContextManager[None]:
        return self._host.entered() if self._host is not None else nullcontext()

    def open(self, url: str, *, width: int = DESK, scheme: str = "light") -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        with self._there():
            self._browser.set_window_size(width, 900)
            phone = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
            self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
            self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            # A picture beyond the window has no scroll bar, and must not be laid out anew for that.
            self._browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
            self._browser.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        with self._there():
            return self._browser.execute_script(script, *arguments)

    def until(self, selector: str, text: str, within_s: float = WITHIN_S) -> float:
        """When `text` was first seen in the element, on the monotonic clock; AssertionError where it never was."""
        end = time.monotonic() + within_s
        found = ""
        while time.monotonic() < end:
            found = self.run(f"return document.querySelector({selector!r})?.textContent ?? ''")
            if text in found:
                return time.monotonic()
            time.sleep(EVERY_S)
        raise AssertionError(f"not within {within_s:g} s: {text!r} in {selector}; there is {found!r}")

    def ask(self, prompt: str) -> None:
        """Types into the chat box and sends it."""
        self.run("document.querySelector('#chat-text').value = arguments[0]", prompt)
        self.run("document.querySelector('#chat-send').click()")

    def press(self, label: str) -> None:
        """The action's button that begins so."""
        buttons = "[...document.querySelectorAll('#actions button')]"
        self.run(f"{buttons}.find((one) => one.textContent.startsWith(arguments[0])).click()", label)

    def shoot(self, file: Path, selector: str = "body") -> int:
        """The element, whole, beyond the window too; returns the size of the file in bytes."""
        box = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.x + scrollX, b.y + scrollY, b.width, b.height].map(Math.round)",
            selector,
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
        wanted = {"format": "png", "clip": clip, "captureBeyondViewport": True}
        with self._there():
            data = base64.b64decode(self._browser.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return len(data)

    def figures(self) -> dict[str, float]:
        """What the browser counts of the page, by its own names: TaskDuration in s, JSHeapUsedSize in bytes."""
        with self._there():
            self._browser.execute_cdp_cmd("Performance.enable", {})
            told = self._browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return {one["name"]: float(one["value"]) for one in told}

    def complaints(self) -> list[str]:
        """What the console holds since the last look."""
        with self._there():
            entries = self._browser.get_log("browser")
        return [one["message"] for one in entries if one["level"] == "SEVERE"]

    def close(self) -> None:
        with self._there():
            self._browser.quit()
