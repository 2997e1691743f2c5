"""The page under hostile names, wrong input and lost connections, and with a keyboard or a phone alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exod.daemon_api.model_lines import ModelLine
from exod.daemon_api.shapes import CrashLine, StatusReport
from exod.errors import RequestError
from exod.http.server import HttpApi
from exod.model import EngineState, Event, Reason
from tests.http.browser import Page, chromium, until
from tests.http.served import KEY, served
from tests.sample_reports import HERE, PEER, STARTED_AT, pair_status, vpn_only_status

pytestmark = pytest.mark.anyio

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202e"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of this file."""
    made = chromium()
    yield made
    made.quit()


def pulling(state: str = "fetching", done: int = 3 << 30, **more: Any) -> ModelLine:
    line = ModelLine(HERE, "studio1", "owner/name", "here", 12 << 30, 12 << 30, sources=("hub",))
    return msgspec.structs.replace(
        line, node=PEER, node_name="studio2", state=state, done_bytes=done, sources=("studio1",), **more
    )


def full_status() -> StatusReport:
    """Everything that the page can show at once."""
    here = ModelLine(HERE, "studio1", "owner/name", "here", 12 << 30, 12 << 30, sources=("hub",))
    text = "steps are safe: the native group has not been tested here"
    return msgspec.structs.replace(
        vpn_only_status(),
        models=(here, pulling(bytes_per_s=310_000_000, left_s=31.0)),
        notes=(Reason("safe_steps", HERE, text, STARTED_AT),),
        crashes=(CrashLine(STARTED_AT, "the worker was killed (SIGKILL)", "look at the memory"),),
    )


async def test_a_pull_shows_each_nodes_progress_and_can_be_paused(browser: Any) -> None:
    async with served() as place:
        place.daemon.status_now = full_status()
        page = Page(browser, place)
        await page.open()
        await page.until(".model h3", lambda text: text == "owner/name")
        assert "fetching, 25% of 12 GiB, 310.0 MB/s, 31 s left, from studio1" in await page.text(
            ".model li.fetching"
        )
        assert "here" in await page.text(".model li.here")
        values = "return [...document.querySelectorAll('.model progress')].map((one) => one.value)"
        assert await page.run(values) == [1, 0.25]
        await page.click(".model button")
        await page.until("#models-text", lambda text: text == "paused")
        assert place.daemon.asked == [("model_pause", "owner/name")]
        full = "the disk of studio2 lacks 3.0 GiB"
        failed = pulling("failed", code="disk_full", text=full)
        place.daemon.status_now = msgspec.structs.replace(full_status(), models=(failed,))
        await page.until(".model li.failed", lambda text: full in text)
        assert "studio2 failed (disk_full)" in await page.text("#models-text")
        await page.click(".model button:last-child")
        await until(lambda: asyncio.sleep(0, place.daemon.asked[-1] == ("model_pull", "owner/name", False)))
        place.daemon.status_now = pair_status()
        await until(lambda: page.run("return document.querySelector('#models').hidden"))
        assert await page.complaints() == []
        await page.close()


async def test_a_pull_is_asked_for_on_the_page(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#actions", lambda text: "Pull a model" in text)
        await page.action("Pull")
        await page.type("#ask-model-text", "  owner/name ")
        await page.click("#ask-nodes-all")
        await page.click("#ask-yes")
        await page.until("#action-text", lambda text: text == "they fetch it")
        assert place.daemon.asked == [("model_pull", "owner/name", True)]
        await page.close()


async def test_reasons_and_notes_come_with_their_cures(browser: Any) -> None:
    async with served() as place:
        reason = Reason("no_path", "studio2", "no path to studio2", STARTED_AT)
        place.daemon.status_now = msgspec.structs.replace(full_status(), reasons=(reason,))
        page = Page(browser, place)
        await page.open()
        await page.until("#reason-list li:first-child .cure", lambda text: "exoctl links" in text)
        assert "warning: no_path" in await page.text("#reason-list")
        assert "look at the memory" in await page.text("#reason-list")
        assert "the native group has not been tested here" in await page.text("#note-list")
        assert await page.text("#note-list .cure") != ""
        await page.close()


async def test_requests_are_shown_while_they_are_answered(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        place.daemon.pause = asyncio.Event()
        await page.ask("count from 1 to 9")
        await page.until("#requests tbody", lambda text: "answering" in text and "chatcmpl-" in text)
        place.daemon.pause.set()
        await until(lambda: page.run("return document.querySelector('#requests-box').hidden"))
        await page.close()


async def test_every_name_from_elsewhere_is_text(browser: Any) -> None:
    """Node, model, interface, source, reason, note, crash, event and request alike."""
    status = full_status()
    (link,) = status.links
    paths = tuple(msgspec.structs.replace(path, interface=EVIL, why=EVIL) for path in link.paths)
    hostile = msgspec.structs.replace(
        status,
        nodes=tuple(msgspec.structs.replace(node, name=EVIL) for node in status.nodes),
        links=(msgspec.structs.replace(link, peer_name=EVIL, paths=paths),),
        engine=msgspec.structs.replace(status.engine, model=EVIL, text=EVIL),
        models=(pulling("failed", code=EVIL, text=EVIL), msgspec.structs.replace(pulling(), model=EVIL)),
        reasons=(Reason("no_path", EVIL, EVIL, STARTED_AT),),
        notes=(Reason("safe_steps", EVIL, EVIL, STARTED_AT),),
        crashes=(CrashLine(STARTED_AT, EVIL, EVIL),),
        mqtt=msgspec.structs.replace(status.mqtt, broker=EVIL, text=EVIL),
    )
    async with served() as place:
        place.daemon.status_now = hostile
        place.daemon.log.append(Event(STARTED_AT + 2, EVIL, EVIL, {"from": EVIL, EVIL: [EVIL, {EVIL: EVIL}]}))
        end = GenerationEnd("stop", Usage(1, 1, 0))
        place.daemon.script = [TextDelta(0, EVIL, reasoning=EVIL), end]
        page = Page(browser, place)
        await page.open(390)
        await page.until("#reason-list", lambda text: "<img src=x" in text)
        await page.ask(EVIL)
        await page.until("#chat-log .assistant", lambda text: "<img src=x" in text)
        for place_of in ("#engine", "#model-list", "#note-list", "#picture", "#chart", "#versions", "#ranks"):
            assert "<img" in await page.text(place_of) or place_of == "#ranks", place_of
        made = "return document.querySelectorAll('main img, main script, main iframe, main a, footer img').length"
        assert await page.run(made) == 0
        assert "owned" not in await page.run("return document.title")
        assert await page.sideways() == 0, "a long name makes nothing wider"
        await page.close()


async def test_the_policy_keeps_a_browser_from_running_what_is_not_a_file_of_the_page(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        blocked = await page.run(
            """
            return new Promise((resolve) => {
              const blocked = [];
              document.addEventListener("securitypolicyviolation", (one) => blocked.push(one.effectiveDirective));
              const script = document.createElement("script");
              script.textContent = "window.owned = true";
              document.body.append(script);
              const picture = document.createElement("img");
              picture.src = "http://192.0.2.1/picture.png";
              document.body.append(picture);
              const text = "<p onclick='window.owned = true' style='color: red'>x</p>";
              document.body.insertAdjacentHTML("beforeend", text);
              document.body.lastElementChild.click();
              fetch("http://192.0.2.1/").catch(() => {});
              const tell = () => resolve([...blocked, String(window.owned)]);
              setInterval(() => { if (new Set(blocked).size >= 5) tell(); }, 20);
              setTimeout(tell, 15000);
            })
            """
        )
        assert set(blocked) == {
            "script-src-elem",
            "script-src-attr",
            "style-src-attr",
            "img-src",
            "connect-src",
            "undefined",
        }
        await page.close()


async def test_a_wrong_key_is_said_to_be_wrong(browser: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    open_now = "return document.querySelector('#key-dialog').open"
    async with served(keys) as place:
        page = Page(browser, place)
        await page.open()
        await until(lambda: page.run(open_now))
        assert await page.text("#key-wrong") == ""
        for refused in ("", "ключ", "two words"):
            await page.type("#key-text", refused)
            await page.click("#key-form button")
            assert await page.run(open_now), f"{refused!r} cannot be a key"
        await page.type("#key-text", "not-the-key-of-this-api")
        await page.click("#key-form button")
        await page.until("#key-wrong", lambda text: text == "The API refuses that key.")
        await page.type("#key-text", f" {KEY} ")
        await page.click("#key-form button")
        await page.until("#health-text", lambda text: text == "healthy")
        await page.close()


async def test_wrong_input_is_refused_by_name_and_does_nothing(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#actions", lambda text: "Load a model" in text)
        for wrong, open_still in (("", True), ("   ", False)):
            await page.action("Load")
            await page.type("#ask-model-text", wrong)
            await page.click("#ask-yes")
            assert await page.run("return document.querySelector('#ask-dialog').open") == open_still
            if open_still:
                await page.click("#ask-form button[value=no]")
        await page.until("#action-text", lambda text: "model: is missing" in text)
        refused = RequestError("model_not_found", "no folder and no repository is called x")

        async def refuse(model: str) -> Any:
            raise refused

        place.daemon.engine_load = refuse  # type: ignore[method-assign]
        await page.action("Load")
        await page.type("#ask-model-text", "x")
        await page.click("#ask-yes")
        await page.until("#action-text", lambda text: text == refused.text)
        await page.ask("   ")
        assert place.daemon.requests == []
        assert await page.text("#chat-log") == ""
        assert place.daemon.asked == []
        await page.close()


async def test_a_chat_tells_what_a_pause_is_and_goes_on(browser: Any) -> None:
    """As where a cable is pulled under an answer."""
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        place.daemon.pause = asyncio.Event()
        await page.ask("count from 1 to 20")
        await page.until("#chat-log .assistant", lambda text: text == "1 2")
        engine = msgspec.structs.replace(pair_status().engine, state=EngineState.RECOVERING, text="bridge0 is dead")
        place.daemon.status_now = msgspec.structs.replace(pair_status(), engine=engine)
        told = await page.until("#chat-figures", lambda text: "recovering" in text)
        assert told == "the engine is recovering (bridge0 is dead); the answer goes on by itself"
        place.daemon.status_now = pair_status()
        place.daemon.pause.set()
        await page.until("#chat-log .assistant", lambda text: text.split() == [str(n) for n in range(1, 21)])
        await page.until("#chat-figures", lambda text: "20 generated" in text)
        await page.close()


async def test_a_chat_that_breaks_says_so_and_can_be_asked_again(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        place.daemon.fail_at = 3
        await page.ask("count from 1 to 20")
        await page.until("#chat-log .error", lambda text: "did not return" in text)
        asked = "return document.querySelector('#chat-text').value"
        assert await page.run(asked) == "count from 1 to 20", "what was asked need not be typed again"
        place.daemon.fail_at = None
        place.daemon.refuse = RequestError("not_ready", "no model is ready")
        await page.click("#chat-send")
        await page.until("#chat-log p:last-child", lambda text: text == "no model is ready")
        place.daemon.refuse = None
        await page.click("#chat-send")
        await page.until("#chat-figures", lambda text: "20 generated" in text)
        roles = [message.role for message in place.daemon.requests[-1].messages or ()]
        assert roles == ["user", "assistant", "user"], "a question without an answer is not sent again"
        await page.close()


async def test_a_daemon_that_goes_and_comes_back_is_followed(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        place.daemon.pause = asyncio.Event()
        await page.ask("count from 1 to 20")
        await page.until("#chat-log .assistant", lambda text: text == "1 2")
        port = place.api.port
        await place.api.stop(0.0)
        await page.until("#connection", lambda text: text.startswith("Not connected"))
        assert await page.text("#health-text") == "what is shown is old"
        await page.until("#chat-log .error", lambda text: text != "")
        again = HttpApi(place.daemon, "127.0.0.1", port, None)
        again.start()
        running = asyncio.create_task(again.run(), name="http api, again")
        await page.until("#health-text", lambda text: text == "healthy")
        assert await page.text("#connection") == ""
        await asyncio.to_thread(browser.get, "about:blank")
        await again.stop(0.0)
        await running
        await place.quiet()


async def test_a_daemon_that_is_slow_is_told_and_its_connection_is_kept(browser: Any) -> None:
    """Another one would have to wait for the same daemon, and lose what is on its way."""
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        await page.run(
            "window.asked = 0; const plain = window.fetch;"
            "window.fetch = (...given) => { window.asked += 1; return plain(...given); };"
            "const shown = document.querySelector('#connection'); window.told = [];"
            "new MutationObserver(() => window.told.push(shown.textContent)).observe(shown, { childList: true });"
        )
        time.sleep(7)  # noqa: ASYNC251 - the loop that serves the page stands still
        place.daemon.status_now = vpn_only_status()
        await page.until("#health-text", lambda text: text == "degraded")
        assert await page.text("#connection") == ""
        assert (await page.run("return window.told"))[0].startswith("Not connected: the daemon does not answer")
        assert await page.run("return window.asked") == 0
        await page.close()


async def test_a_page_that_nobody_looks_at_draws_nothing_and_is_true_when_looked_at(browser: Any) -> None:
    async with served() as place:
        page = Page(browser, place)
        await page.open()
        await page.until("#health-text", lambda text: text == "healthy")
        hide = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true })"
        await page.run(hide, True)
        place.daemon.status_now = vpn_only_status()
        await page.until("title", lambda text: text.startswith("degraded"))
        assert await page.text("#health-text") == "healthy"
        await page.run(f"{hide}; document.dispatchEvent(new Event('visibilitychange'))", False)
        await page.until("#health-text", lambda text: text == "degraded")
        await page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_at_once_can_be_read_by_anybody(browser: Any, scheme: str) -> None:
    async with served() as place:
        place.daemon.status_now = full_status()
        page = Page(browser, place)
        await page.color_scheme(scheme)
        for width in (1280, 320):
            await page.open(width)
            await page.until(".model h3", lambda text: text == "owner/name")
            assert await page.accessibility() == []
            assert await page.sideways() == 0
        await page.action("Pull")
        assert await page.accessibility() == []
        await page.color_scheme("")
        await page.close()


async def test_the_keyboard_reaches_everything_and_is_caught_nowhere(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    async with served() as place:
        place.daemon.status_now = full_status()
        page = Page(browser, place)
        await page.open()
        await page.until(".model h3", lambda text: text == "owner/name")

        async def press(key: str) -> None:
            await asyncio.to_thread(lambda: browser.switch_to.active_element.send_keys(key))

        met = []
        for _ in range(40):
            await press(Keys.TAB)
            met.append(
                await page.run("const a = document.activeElement; return a.id || a.textContent.slice(0, 20)")
            )
            if met[-1] in met[:-1]:
                break
        for wanted in (
            "Skip to the mesh",
            "chart-span",
            "event-filter",
            "events",
            "Renegotiate",
            "Pause",
            "chat-text",
            "chat-send",
        ):
            assert wanted in met, met
        await page.run("document.querySelector('#actions button').focus()")
        await press(Keys.ENTER)
        assert await page.run("return document.querySelector('#ask-dialog').contains(document.activeElement)")
        await press(Keys.ESCAPE)
        assert await page.run("return document.activeElement.textContent") == "Renegotiate", "focus returns"
        assert place.daemon.asked == []
        await page.close()
