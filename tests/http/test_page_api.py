"""What the page is made from: its files, the live stream, and the actions, over real sockets."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exod.errors import ExitCode, RequestError
from exod.http import event_streams
from exod.http.page_actions import ACTIONS
from exod.http.page_files import TYPES
from exod.model import Event, Health, Reason
from tests.http.raw_http import Stream
from tests.http.served import CHAT, KEY, count, served
from tests.sample_reports import STARTED_AT, pair_status, vpn_only_status

pytestmark = pytest.mark.anyio

MOST_BYTES = 150_000
"""Of the whole page, as it comes over the wire."""


async def _next(stream: Stream, kind: str) -> Any:
    """The data of the next event of this kind."""
    while (event := await stream.event()) is not None:
        fields = dict(line.split(": ", 1) for line in event.splitlines())
        if fields.get("event") == kind:
            return json.loads(fields["data"])
    raise AssertionError(f"the stream ended without an event {kind}")


async def test_all_files_are_served_small_and_locked_down() -> None:
    whole = 0
    async with served() as place:
        for name, kind in TYPES.items():
            answer = await place.http.ask("GET", "/" if name == "index.html" else f"/page/{name}")
            assert (answer.status, answer.headers["content-type"]) == (200, kind)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            whole += len(answer.body)
        assert (await place.http.ask("GET", "/page/files.py")).status == 404
        assert (await place.http.ask("GET", "/page/..%2ffiles.py")).status == 404
    assert whole <= MOST_BYTES
    lying_there = {entry.name for entry in (files("exod.http") / "page").iterdir()}
    assert lying_there == set(TYPES), "a file that is not served is dead, one that is missing breaks the page"


async def test_a_file_that_did_not_change_is_not_sent_again() -> None:
    async with served() as place:
        tag = (await place.http.ask("GET", "/page/page.js")).headers["etag"]
        again = await place.http.ask("GET", "/page/page.js", headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")


async def test_nothing_of_the_page_comes_from_elsewhere() -> None:
    for name in TYPES:
        text = (files("exod.http") / "page" / name).read_text()
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/", "")
        assert "innerHTML" not in text, "names come from other machines: they are text"


async def test_files_need_no_key_and_everything_they_show_does(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    async with served(keys) as place:
        assert (await place.http.ask("GET", "/")).status == 200
        assert (await place.http.ask("GET", "/page/page.js")).status == 200
        assert (await place.http.ask("GET", "/api/live")).status == 401
        assert (await place.http.ask("POST", "/api/actions/drain", {})).status == 401
        assert place.daemon.asked == []
        allowed = await place.http.ask("POST", "/api/actions/drain", {}, headers={"Authorization": f"Bearer {KEY}"})
        assert allowed.status == 200


async def test_live_tells_the_state_and_then_each_change_at_once() -> None:
    async with served(degraded_ms=2.5) as place:
        stream = await place.http.open("GET", f"/api/live?since={STARTED_AT}")
        first = await _next(stream, "state")
        assert first["status"]["health"] == "healthy"
        assert first["engine"]["ranks"][0]["memory_bytes"] == 9_000_000
        assert first["actions"] is True
        assert first["degraded_ms"] == 2.5
        assert (await _next(stream, "log"))["type"] == "link.selected"
        place.daemon.status_now = vpn_only_status()
        await place.daemon.add_event(Event(STARTED_AT + 9, "path.dead", "bridge0", {"loss": 1.0}))
        assert (await _next(stream, "log"))["loss"] == 1.0
        state = await _next(stream, "state")
        while state["status"]["health"] == "healthy":
            state = await _next(stream, "state")
        assert state["status"]["health"] == Health.DEGRADED.value
        stream.close()
        await place.quiet()


async def test_what_happens_just_after_a_state_is_not_left_for_the_next_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The snapshot of a moment ago serves the event's viewers once more, and the next one follows by itself."""
    monkeypatch.setattr(event_streams, "TICK_S", 3600.0)
    async with served() as place:
        stream = await place.http.open("GET", f"/api/live?since={2e9}")
        assert (await _next(stream, "state"))["status"]["health"] == "healthy"
        place.daemon.status_now = vpn_only_status()
        await place.daemon.add_event(Event(2e9 + 9, "path.dead", "bridge0", {"loss": 1.0}))
        assert (await _next(stream, "log"))["loss"] == 1.0
        assert (await _next(stream, "state"))["status"]["health"] == Health.DEGRADED.value
        stream.close()
        await place.quiet()


async def test_many_viewers_get_one_snapshot() -> None:
    asked = 0
    async with served() as place:
        status = place.daemon.status

        def counted() -> Any:
            nonlocal asked
            asked += 1
            return status()

        place.daemon.status = counted  # type: ignore[method-assign]
        streams = await asyncio.gather(*(place.http.open("GET", f"/api/live?since={2e9}") for _ in range(20)))
        states = await asyncio.gather(*(_next(stream, "state") for stream in streams))
        assert len(states) == 20
        assert asked < 10, "a snapshot is made for all viewers, not for each"
        for stream in streams:
            stream.close()
        await place.quiet()


async def test_a_wrong_since_is_named() -> None:
    async with served() as place:
        answer = await place.http.ask("GET", "/api/live?since=yesterday")
    assert answer.status == 400
    assert "since" in answer.json["error"]["message"]


async def test_each_action_reaches_the_daemon() -> None:
    async with served() as place:
        for name in ACTIONS:
            body = {"model": "embedded:count"} if name in ("load", "pull", "pause") else {}
            answer = await place.http.ask("POST", f"/api/actions/{name}", body)
            assert answer.status == 200, answer.body
            assert answer.json["text"]
    assert place.daemon.asked == [
        ("engine_load", "embedded:count"),
        ("engine_unload",),
        ("engine_drain",),
        ("renegotiate", "asked for on the page"),
        ("model_pull", "embedded:count", False),
        ("model_pause", "embedded:count"),
    ]


async def test_a_pull_may_be_for_every_node() -> None:
    async with served() as place:
        body = {"model": "owner/name", "everywhere": True}
        assert (await place.http.ask("POST", "/api/actions/pull", body)).status == 200
    assert place.daemon.asked == [("model_pull", "owner/name", True)]


async def test_a_new_viewer_gets_the_last_hour_once() -> None:
    async with served() as place:
        stream = await place.http.open("GET", "/api/live")
        (trace,) = (await _next(stream, "history"))["traces"]
        assert (trace["interface"], trace["rtt_ms"], trace["in_use"]) == ("bridge0", [0.3, None, 0.4], "101")
        stream.close()
        again = await place.http.open("GET", f"/api/live?since={STARTED_AT}")
        first = await again.event()
        assert first is not None
        assert first.startswith("event: state"), "who comes again has its own history"
        again.close()
        await place.quiet()


async def test_live_says_how_far_each_request_is() -> None:
    async with served() as place:
        place.daemon.pause = asyncio.Event()
        answer = await place.http.open("POST", CHAT, count(1, 500, stream=True, max_tokens=400))
        await answer.event()
        stream = await place.http.open("GET", f"/api/live?since={2e9}")
        state = await _next(stream, "state")
        while not state["requests"] or state["requests"][0]["tokens"] < 2:
            state = await _next(stream, "state")
        (line,) = state["requests"]
        assert (line["tokens"], line["max_tokens"]) == (2, 400)
        assert line["id"].startswith("chatcmpl-")
        answer.close()
        while state["requests"]:
            state = await _next(stream, "state")
        stream.close()
        await place.quiet()


async def test_live_has_a_cure_for_reasons_and_notes_and_the_severity() -> None:
    async with served() as place:
        reason = Reason("no_path", "studio2", "no path to studio2", STARTED_AT)
        note = Reason("safe_steps", "", "steps are safe", STARTED_AT)
        place.daemon.status_now = msgspec.structs.replace(pair_status(), reasons=(reason,), notes=(note,))
        stream = await place.http.open("GET", f"/api/live?since={2e9}")
        state = await _next(stream, "state")
        assert state["severities"] == {"no_path": "warning"}
        assert set(state["cures"]) == {"no_path", "safe_steps"}
        assert all(state["cures"].values())
        stream.close()
        await place.quiet()


async def test_bad_bodies_and_other_methods_change_nothing() -> None:
    async with served() as place:
        for body in ({}, {"model": 7}, {"modell": "x"}, {"model": "x" * 2000}, []):
            answer = await place.http.ask("POST", "/api/actions/load", body)
            assert answer.status == 400, body
        assert (await place.http.ask("GET", "/api/actions/unload")).status == 405
        cross = {"Origin": "https://evil.example"}
        assert (await place.http.ask("POST", "/api/actions/unload", {}, headers=cross)).status == 403
        assert place.daemon.asked == []


async def test_a_model_that_cannot_be_loaded_is_no_fault_of_exods() -> None:
    async with served() as place:

        async def refuse(model: str) -> Any:
            raise RequestError("model_missing", f"the model folder {model} does not exist", ExitCode.INTERNAL)

        place.daemon.engine_load = refuse  # type: ignore[method-assign]
        answer = await place.http.ask("POST", "/api/actions/load", {"model": "/x"})
    assert (answer.status, answer.code) == (400, "model_missing")
    assert answer.json["error"]["message"] == "model: the model folder /x does not exist"


async def test_actions_that_are_off_name_the_command() -> None:
    async with served(actions=False) as place:
        stream = await place.http.open("GET", "/api/live")
        assert (await _next(stream, "state"))["actions"] is False
        stream.close()
        answer = await place.http.ask("POST", "/api/actions/unload", {})
        assert (answer.status, answer.code) == (403, "commands_off")
        assert "exoctl engine unload" in answer.json["error"]["message"]
        assert place.daemon.asked == []
        await place.quiet()
