"""What a web page in a browser on this host can do with the HTTP API, and what a head of a request may say."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from exod.http import guard
from tests.http.raw_http import DEADLINE_S, RawHttp, Stream
from tests.http.served import CHAT, KEY, count, served

pytestmark = pytest.mark.anyio

PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
CROSS_SITE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example:52415"}, "host_refused"),
        ({"host": "["}, "host_refused"),
        ({"host": "evil.example@localhost"}, "host_refused"),
        ({"host": "localhost/evil.example"}, "host_refused"),
        ({"host": "localhost?evil.example"}, "host_refused"),
        ({"host": "localhost\tevil.example"}, "host_refused"),
        ({"host": "local\thost"}, "host_refused"),
        ({"host": "localhost:evil.example"}, "host_refused"),
        ({"host": "localhost:52415:1"}, "host_refused"),
        ({"host": "localhost:99999"}, "host_refused"),
        ({"host": "intranet"}, "host_refused"),
        ({"host": "router.internal"}, "host_refused"),
        ({"host": "localhost.evil.example"}, "host_refused"),
        ({"host": "127.0.0.1.evil.example"}, "host_refused"),
        ({"origin": "https://evil.example"}, "origin_refused"),
        ({"origin": "http://["}, "origin_refused"),
        ({"origin": "null"}, "origin_refused"),
        ({"origin": "http://192.168.1.7"}, "origin_refused"),
        ({"origin": "http://intranet"}, "origin_refused"),
        ({"origin": "file://"}, "origin_refused"),
        ({"origin": "chrome-extension://abcdef"}, "origin_refused"),
        ({"origin": "http://localhost.evil.example"}, "origin_refused"),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, "origin_refused"),
        ({"origin": ""}, "origin_refused"),
        (CROSS_SITE, "origin_refused"),
        ({**CROSS_SITE, "sec-fetch-site": "Cross-Site"}, "origin_refused"),
        ({**CROSS_SITE, "sec-fetch-site": "other"}, "origin_refused"),
        ({**CROSS_SITE, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, "origin_refused"),
        ({"host": "localhost:52415"}, None),
        ({"host": "LOCALHOST."}, None),
        ({"host": "exod.localhost"}, None),
        ({"host": "192.168.1.7:52415"}, None),
        ({"host": "studio1"}, None),
        ({"host": "[::1]:52415"}, None),
        ({"host": "host.docker.internal:52415"}, None),
        ({"origin": "http://localhost:3000"}, None),
        ({"origin": "http://127.0.0.1:8080", **CROSS_SITE, "sec-fetch-mode": "cors"}, None),
        ({"origin": "http://[::1]"}, None),
        ({"origin": "app://obsidian.md"}, None),
        ({"origin": "https://Chat.example"}, None),
        ({**CROSS_SITE, "sec-fetch-site": "same-origin"}, None),
        ({"sec-fetch-site": "none"}, None),
    ],
)
async def test_without_keys_web_pages_of_strangers_are_refused(headers: dict[str, str], code: str | None) -> None:
    hosts, origins = ("studio1", "host.docker.internal"), ("https://chat.example",)
    async with served(hosts=hosts, origins=origins) as place:
        answer = await place.http.ask("GET", "/v1/models", headers=headers)
    if code is None:
        assert answer.status == 200
    else:
        assert (answer.status, answer.code) == (403, code)
        assert "access-control-allow-origin" not in answer.headers


async def test_this_hosts_own_names_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Studio9.example.org")
    async with served() as place:
        for name in ("studio9", "studio9.local", "studio9.example.org:52415"):
            assert (await place.http.ask("GET", "/v1/models", headers={"host": name})).status == 200


async def test_a_page_of_another_site_cannot_start_a_generation() -> None:
    """What a page may send without asking first: a form's or a text's type, with its origin or none."""
    async with served() as place:
        for headers in (
            {"content-type": "text/plain", "origin": "null"},
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "multipart/form-data; boundary=x"},
            {"content-type": "application/json", "origin": "https://evil.example"},
            {"origin": "http://192.168.1.66"},
            CROSS_SITE,
        ):
            answer = await place.http.ask("POST", CHAT, count(1, 2), headers)
            assert answer.status in (403, 415), headers
        assert place.daemon.requests == []


@pytest.mark.parametrize("origin", ["http://localhost:3000", "app://obsidian.md", "https://chat.example"])
async def test_a_page_of_an_allowed_origin_asks_and_is_answered(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    file.chmod(0o600)
    async with served(file, origins=("https://chat.example/",)) as place:
        asked = await place.http.ask("OPTIONS", CHAT, headers={"origin": origin, **PREFLIGHT})
        assert asked.status == 204, "a browser sends no key with its question"
        assert asked.headers["access-control-allow-origin"] == origin
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in asked.headers["access-control-allow-methods"]
        key = {"authorization": f"Bearer {KEY}"}
        answer = await place.http.ask("POST", CHAT, count(1, 2), {"origin": origin, **key})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert exposed == ["retry-after", "x-should-retry"], "what a client in a page asks again by"
        stream = await place.http.open("POST", CHAT, count(1, 2, stream=True), {"origin": origin, **key})
        assert stream.headers["access-control-allow-origin"] == origin
        await stream.events()
        refused = await place.http.ask("GET", "/v1/models", headers={"origin": origin})
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, origin)


@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://192.168.1.7"])
async def test_another_page_gets_no_permission_to_read(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    file.chmod(0o600)
    async with served(file) as place:
        asked = await place.http.ask("OPTIONS", CHAT, headers={"origin": origin, **PREFLIGHT})
        answer = await place.http.ask(
            "GET", "/v1/models", headers={"origin": origin, "authorization": f"Bearer {KEY}"}
        )
    assert (asked.status, asked.code) == (403, "origin_refused")
    for headers in (asked.headers, answer.headers):
        assert not [name for name in headers if name.startswith("access-control")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_with_keys_every_origin_may_be_allowed() -> None:
    assert guard.HttpGuard(("k" * 16,), origins=("*",)).cors({"origin": "https://any.example"})
    assert not guard.HttpGuard(("k" * 16,), origins=("*",)).cors({"origin": "null"})


async def raw(place_port: int, head: str, body: bytes = b"") -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", place_port)
    writer.write(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body)
    stream = Stream(reader, writer)
    await stream.head()
    return stream


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 5\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\ncontent-length: 5",
        "content-length: 5\ncontent-length: 6",
        "origin: http://localhost\norigin: https://evil.example",
        "authorization: Bearer a\nauthorization: Bearer b",
        "content-type: application/json\ncontent-type: text/plain",
        "host: evil.example",
        "content-length: -5",
        "transfer-encoding: gzip, chunked",
    ],
)
async def test_a_head_that_can_be_read_in_two_ways_is_refused(lines: str) -> None:
    async with served() as place:
        stream = await raw(place.api.port, f"POST {CHAT} HTTP/1.1\nhost: localhost\n{lines}\n", b"0\r\n\r\n")
        assert stream.status in (400, 501)
        async with asyncio.timeout(DEADLINE_S):
            await stream.body()
        stream.close()
        assert place.daemon.requests == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x" * 200])
async def test_a_compressed_body_is_a_415(encoding: str) -> None:
    async with served() as place:
        answer = await place.http.ask("POST", CHAT, count(1, 2), {"content-encoding": encoding})
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=UTF-8", "APPLICATION/JSON", "application/vnd.api+json"]
)
async def test_json_by_any_of_its_types_is_read_with_or_without_a_byte_order_mark(kind: str) -> None:
    async with served() as place:
        for start in (b"", b"\xef\xbb\xbf"):
            body = start + b'{"messages":[{"role":"user","content":"count from 1 to 3"}]}'
            answer = await place.http.ask("POST", CHAT, body, {"content-type": kind})
            assert answer.json["choices"][0]["message"]["content"] == "1 2 3"
        utf16: Any = '{"messages":[]}'.encode("utf-16")
        assert (await place.http.ask("POST", CHAT, utf16, {"content-type": kind})).status == 400


async def test_a_slash_at_the_end_of_a_path_makes_no_other_path_of_it() -> None:
    async with served() as place:
        for path in ("/v1/models/", "/health/", "/ready//", "/api/status/"):
            assert (await place.http.ask("GET", path)).status == 200
        assert (await place.http.ask("POST", f"{CHAT}/", count(1, 2))).status == 200


async def test_no_label_of_a_metric_is_a_strangers() -> None:
    async with served() as place:
        for number in range(30):
            await place.http.ask(f"METHOD{number}" + "x" * 1000, f"/path{number}")
            await place.http.ask(f"ODD{number}", "/v1/models", headers={"host": "evil.example"})
        text = (await place.http.ask("GET", "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("exod_http_requests_total")]
    assert {part for line in lines for part in line.split('"') if "METHOD" in part or "ODD" in part} == set()
    assert len(lines) < 8
    assert any('method="other"' in line for line in lines)


async def test_ipv6_loopback_is_served_beside_the_default_host() -> None:
    async with served() as place:
        assert (await RawHttp(place.api.port, "::1").ask("GET", "/health", headers={"host": "[::1]"})).status == 200


async def test_a_key_may_come_as_anthropics_clients_send_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{KEY[::-1]}\n")
    file.chmod(0o600)
    async with served(file) as place:
        for key in (KEY, KEY[::-1]):
            answer = await place.http.ask("POST", "/v1/messages", count(1, 2), {"x-api-key": key})
            assert answer.status == 200
        for headers in ({"x-api-key": f"{KEY}x"}, {"x-api-key": KEY, "authorization": f"Bearer {KEY}x"}):
            refused = await place.http.ask("POST", "/v1/messages", count(1, 2), headers)
            assert refused.status == 401
            assert refused.json["type"] == "error"
            assert refused.json["error"]["type"] == "authentication_error"
        assert len({request.client for request in place.daemon.requests}) == 2, "they take turns by their keys"
