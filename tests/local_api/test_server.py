"""The control socket over real Unix sockets: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from exod.daemon_api import stream_keepalive
from exod.daemon_api.shapes import Readiness, flat_event
from exod.errors import RequestError
from exod.local_api import server
from exod.local_api.protocol import LOCAL_API_VERSION, MAX_LINE_BYTES
from exod.model import Event
from tests.local_api.serving import DEADLINE_S, served, soon
from tests.sample_reports import CABLE, HERE, PEER, STARTED_AT, VPN

pytestmark = pytest.mark.anyio


async def test_status_is_the_contracts_json(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        reply = await (await place.client()).ask("status")
    assert (reply["v"], reply["id"], reply["end"]) == (LOCAL_API_VERSION, 1, True)
    status = reply["result"]
    assert status["schema"] == 1
    assert status["nodes"][0]["self"] is True
    assert status["mesh"]["edges"][0] | {"address": ""} == {
        "from": HERE,
        "to": PEER,
        "interface": "bridge0",
        "kind": "thunderbolt",
        "address": "",
    }
    assert status["engine"]["ranks"][1]["layers"] == [4, 8]
    contract = {"node", "health", "reasons", "cluster", "nodes", "links", "mesh", "engine", "mqtt"}
    assert contract <= set(status)


STATUS_FIELDS = {
    "node": "id name incarnation version uptime_s",
    "cluster": "name size",
    "nodes": "id name state self incarnation version",
    "links": "peer peer_name agreed selected seq paths",
    "mesh": "state epoch coordinator plan ring edges last_change",
    "engine": "state model ranks parallel active waiting sync tokens_per_s baseline_tokens_per_s last_gap_ms",
    "mqtt": "state broker",
}
"""Of the contract: what each part of the status has at least."""

INNER_FIELDS = {
    ("links", "paths"): "id interface kind local remote state rtt_ms rtt_p90_ms loss selected why",
    ("mesh", "edges"): "from to interface kind address",
    ("mesh", "last_change"): "at reason detect_ms agree_ms",
    ("engine", "ranks"): "node rank layers pid restarts",
    ("engine", "sync"): "mode reason",
}


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


async def test_every_part_of_the_status_has_the_contracts_fields(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        status = (await (await place.client()).ask("status"))["result"]
    for part, fields in STATUS_FIELDS.items():
        assert set(fields.split()) <= set(first(status[part])), part
    for (part, inner), fields in INNER_FIELDS.items():
        assert set(fields.split()) <= set(first(first(status[part])[inner])), (part, inner)


def test_figures_of_an_event_are_rounded_for_people_and_its_time_is_not() -> None:
    """Status, MQTT and HTTP show the same event; a microsecond of a millisecond is left, as in the log."""
    event = Event(1_750_000_000.123456, "mesh.agreed", "plan", {"agree_ms": 11.767600997700356, "epoch": 2})
    assert flat_event(event) == {
        "agree_ms": 11.768,
        "epoch": 2,
        "ts": 1_750_000_000.123456,
        "type": "mesh.agreed",
        "subject": "plan",
    }


@pytest.mark.parametrize(
    "verb",
    ["mesh", "engine", "cluster", "ready", "models", "links", "links_history", "netcheck", "preflight", "doctor"],
)
async def test_every_question_without_arguments_has_an_answer(tmp_path: Path, verb: str) -> None:
    async with served(tmp_path) as place:
        reply = await (await place.client()).ask(verb)
    assert "error" not in reply
    assert "result" in reply


async def test_one_connection_serves_many_requests_in_order(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(b"".join(b'{"v":1,"id":%d,"verb":"models"}\n' % number for number in range(100)))
        assert [(await client.read())["id"] for _ in range(100)] == list(range(100))


async def test_peers_are_known_by_name_id_and_beginning_of_id(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        for text in ("studio2", "STUDIO2", PEER, PEER[:6]):
            reply = await client.ask("links", peer=text)
            assert [link["peer"] for link in reply["result"]["links"]] == [PEER]


async def test_a_typo_in_a_peers_name_names_those_that_exist(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        error = await client.error("links", peer="studo2")
        assert error == {
            "code": "unknown_peer",
            "text": "no node is called 'studo2'; known: studio2",
            "exit_code": 2,
        }
        assert "is this node itself" in (await client.error("ping", peer="studio1"))["text"]


async def test_ping_goes_over_the_path_that_an_interface_names(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(b'{"v":1,"id":5,"verb":"ping","args":{"peer":"studio2","via":"utun4","count":2}}\n')
        first, second, end = [await client.read() for _ in range(3)]
        assert (first["item"]["path"], second["item"]["seq"]) == (VPN, 1)
        assert end == {"v": 1, "id": 5, "end": True}
        assert place.daemon.asked == [("ping", PEER, VPN, 2)]
        error = await client.error("ping", peer="studio2", via="en9")
        assert error["code"] == "unknown_path"
        assert "bridge0 to studio2" in error["text"]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"hello", "invalid_json", "one line of JSON"),
        (b"[1,2]", "invalid_request", "expected object"),
        (b'{"id":3}', "invalid_request", "verb: is missing"),
        (b'{"id":3,"verb":7}', "invalid_request", "verb: expected str"),
        (b'{"id":3,"verb":"statsu"}', "unknown_verb", "status"),
        (b'{"id":3,"v":2,"verb":"status"}', "unsupported_version", "speaks version 1"),
        (b'{"id":3,"verb":"ping","args":{"peer":"studio2","count":0}}', "invalid_value", "ping: count: expected"),
        (b'{"id":3,"verb":"ping","args":{}}', "invalid_value", "ping: peer: is missing"),
        (b'{"id":3,"verb":"status","args":{"all":1}}', "invalid_value", "status: all: there is no such field"),
        (b'{"id":3,"verb":"status","args":"x"}', "invalid_value", "status: args: expected object"),
        (b'{"id":3,"verb":"generate","args":{"messages":[]}}', "invalid_value", "messages: expected"),
        (b"\xff\xfe\x00", "invalid_json", "one line of JSON"),
        (b'{"v":1,"id":1,"verb":"\xff"}', "invalid_json", "one line of JSON"),
        (b'{"v":1,"id":1,"verb":"status","args":' + b"[" * 50_000, "invalid_json", "one line of JSON"),
        (b'{"verb":"\xff"}', "invalid_json", "not valid UTF-8"),
        (b'{"verb":"status","args":{"a":"\xff"}}', "invalid_value", "there is no such field"),
        (b'{"verb":"links","args":{"peer":"\xff"}}', "invalid_json", "not valid UTF-8"),
        (b'{"id":"\xff","verb":"status"}', "invalid_json", "not valid UTF-8"),
        (b"[" * 100_000, "invalid_request", "expected object"),
        (b'{"verb":"status","args":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", "too deeply"),
        (b'{"verb":"' + b"x" * 100_000 + b'"}', "unknown_verb", "status"),
    ],
)
async def test_bad_input_is_named_and_loses_nothing(tmp_path: Path, line: bytes, code: str, words: str) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(line + b"\n")
        reply = await client.read()
        assert reply["error"]["code"] == code
        assert words in reply["error"]["text"]
        assert "\n" not in reply["error"]["text"]
        if b'"id":3' in line:
            assert reply["id"] == 3
        assert "result" in await client.ask("status"), "the connection goes on"


async def test_a_line_without_end_is_refused_once_and_skipped(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        filler = b"x" * (1024 * 1024)

        async def flood() -> None:
            for _ in range(2 * MAX_LINE_BYTES // len(filler)):
                await client.send(filler)
            await client.send(b'\n{"v":1,"id":9,"verb":"models"}\n')

        sending = asyncio.create_task(flood(), name="flood")
        assert (await client.read())["error"]["code"] == "too_long"
        assert (await client.read())["id"] == 9
        await sending


async def test_a_sender_that_closes_its_side_is_still_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(b'{"v":1,"id":4,"verb":"models"}')
        client.writer.write_eof()
        assert (await client.read())["result"] == ["embedded:count"]
        assert await client.reader.read() == b""


async def test_events_follow_until_the_client_closes(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        since = json.dumps(STARTED_AT).encode()
        await client.send(b'{"v":1,"id":2,"verb":"events","args":{"follow":true,"since":' + since + b"}}\n")
        old = await client.read()
        assert old["item"] == {
            "ts": STARTED_AT + 1,
            "type": "link.selected",
            "subject": "studio2",
            "from": "en0",
            "to": "bridge0",
            "reason": "held",
        }
        await place.daemon.add_event(Event(STARTED_AT + 2, "node.down", "studio2", {}))
        assert (await client.read())["item"]["type"] == "node.down"
        client.writer.close()
        await soon(lambda: place.daemon.running == 0)


async def test_a_quiet_stream_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_keepalive, "KEEP_ALIVE_S", 0.02)
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(b'{"v":1,"id":2,"verb":"events","args":{"follow":true,"since":1e12}}\n')
        assert await client.read() == {"v": 1, "id": 2}
        await place.daemon.add_event(Event(2e12, "node.down", "studio2", {}))
        while "item" not in (reply := await client.read()):
            pass
        assert reply["item"]["type"] == "node.down"


async def test_a_generation_streams_and_tells_its_usage(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        await client.send(
            b'{"v":1,"id":1,"verb":"generate","args":'
            b'{"messages":[{"role":"user","content":"count from 3 to 6"}]}}\n'
        )
        items = []
        while not (reply := await client.read()).get("end"):
            items.append(reply["item"])
        text = "".join(item["text"] for item in items if item["type"] == "text")
        assert text == "3 4 5 6"
        assert items[-1]["usage"]["completion_tokens"] == 4
        assert place.daemon.cancelled == []
        assert place.daemon.requests[0].sampling.temperature == 0


async def test_a_client_that_goes_away_cancels_its_generation(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        place.daemon.pause = asyncio.Event()
        client = await place.client()
        await client.send(
            b'{"v":1,"id":1,"verb":"generate","args":'
            b'{"messages":[{"role":"user","content":"count from 1 to 9"}]}}\n'
        )
        await client.read()
        client.writer.close()
        await soon(lambda: place.daemon.cancelled)
        assert place.daemon.cancelled == [place.daemon.requests[0].request_id]


async def test_a_generation_that_breaks_ends_with_its_reason(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        place.daemon.fail_at = 2
        client = await place.client()
        await client.send(
            b'{"v":1,"id":1,"verb":"generate","args":'
            b'{"messages":[{"role":"user","content":"count from 1 to 9"}]}}\n'
        )
        while not (reply := await client.read()).get("end"):
            pass
        assert reply["error"]["code"] == "recovery_failed"


async def test_a_model_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        client = await place.client()
        messages = [{"role": "user", "content": "hi"}]
        error = await client.error("generate", messages=messages, model="llama")
        assert error["code"] == "model_not_found"
        assert "served: embedded:count" in error["text"]
        place.daemon.models_now = []
        place.daemon.ready_now = Readiness(False, "not_ready", "the model is loading")
        error = await client.error("generate", messages=messages)
        assert (error["code"], error["text"]) == ("not_ready", "the model is loading")


async def test_debug_verbs_exist_only_where_the_config_says_so(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        error = await (await place.client()).error("debug_fault", path="bridge0", drop=True, for_s=5)
        assert error["code"] == "debug_disabled"
        refused = await (await place.client()).error("debug_self_fault", kind="kill-rank", for_s=5)
        assert refused["code"] == "debug_disabled"
        assert place.daemon.asked == []
    async with served(tmp_path, debug=True) as place:
        client = await place.client()
        await client.ask("debug_fault", path="bridge0", drop=True, for_s=5)
        await client.ask("debug_fault", path=CABLE, delay_ms=20, for_s=5)
        await client.ask("debug_self_fault", kind="deaf", for_s=4)
        await client.ask("debug_pin", path="10.0.0.2", for_s=7)
        assert place.daemon.asked == [
            ("debug_fault", CABLE, True, 0.0, 5.0),
            ("debug_fault", CABLE, False, 20.0, 5.0),
            ("debug_self_fault", "deaf", 4.0),
            ("debug_pin", CABLE, 7.0),
        ]
        assert (await client.error("debug_self_fault", kind="melt", for_s=5))["code"] == "invalid_value"
        assert (await client.error("debug_pin", path="bridge0", for_s=86400))["code"] == "invalid_value"
        assert (await client.error("debug_fault", path="bridge0", for_s=5))["code"] == "invalid_value"


async def test_too_many_connections_are_told_so_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with served(tmp_path) as place:
        first, second = await place.client(), await place.client()
        assert "result" in await first.ask("models")
        assert "result" in await second.ask("models")
        third = await place.client()
        assert (await third.read())["error"]["code"] == "too_many_connections"
        assert await third.reader.read() == b""
        second.writer.close()
        await second.writer.wait_closed()
        async with asyncio.timeout(DEADLINE_S):
            while "error" in await (await place.client()).ask("models"):
                pass


async def test_a_fault_of_the_daemon_is_one_line_and_not_the_end(tmp_path: Path) -> None:
    async with served(tmp_path) as place:
        place.daemon.links_history = lambda peer, limit: 1 // 0  # type: ignore[method-assign, assignment, return-value]
        client = await place.client()
        error = await client.error("links_history")
        assert error["code"] == "internal_error"
        assert error["exit_code"] == 1
        assert "ZeroDivisionError" in error["text"]
        assert "result" in await client.ask("models")


def test_a_request_error_carries_its_exit_code() -> None:
    assert int(RequestError("x", "y").exit_code) == 2
