"""What the shells are made of: names that people type, lines of any length, streams that fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
import pytest

from exod.daemon_api.field_errors import field_problem
from exod.daemon_api.resolve_names import find_path, find_peer
from exod.daemon_api.shapes import LinksReport, NodeLine
from exod.daemon_api.stream_keepalive import paced
from exod.errors import RequestError
from exod.local_api.line_reader import LineReader, OverlongLineError
from exod.model import NodeId, NodeState
from tests.sample_reports import CABLE, ETHERNET, PEER, links_of, pair_status


def test_two_nodes_of_one_name_must_be_told_apart_by_id() -> None:
    status = pair_status()
    twin = NodeLine(NodeId("9f8e000000000000"), "Studio2", NodeState.UP, False, 1, "0.1.0")
    status = msgspec.structs.replace(status, nodes=(*status.nodes, twin))
    with pytest.raises(RequestError, match="say one of the ids") as caught:
        find_peer("studio2", status)
    assert caught.value.code == "ambiguous_peer"
    with pytest.raises(RequestError, match="2 nodes"):
        find_peer("9f8e", status)
    assert find_peer(twin.id, status) == twin.id
    assert find_peer("9f8e7", status) == PEER


def test_too_short_a_beginning_of_an_id_is_a_mistyped_name() -> None:
    with pytest.raises(RequestError, match="known: studio2"):
        find_peer(PEER[:3], pair_status())


@pytest.mark.parametrize("text", [CABLE, "bridge0", "BRIDGE0", "10.0.0.2", "thunderbolt"])
def test_a_path_is_known_by_id_interface_remote_and_kind(text: str) -> None:
    assert find_path(text, links_of(pair_status())) == CABLE


def test_an_interface_with_two_paths_is_ambiguous() -> None:
    (link,) = links_of(pair_status()).links
    moved = tuple(msgspec.structs.replace(path, interface="en0") for path in link.paths)
    links = LinksReport((msgspec.structs.replace(link, paths=moved),))
    with pytest.raises(RequestError, match="'en0' is 3 paths") as caught:
        find_path("en0", links)
    assert caught.value.code == "ambiguous_path"
    assert find_path(ETHERNET, links) == ETHERNET


def test_without_any_path_that_is_what_is_said() -> None:
    with pytest.raises(RequestError, match="no path to any peer"):
        find_path("en0", LinksReport(()))


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    a: list[int] = []
    b: dict[int, float] = {}


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        (b'{"a":[1,"x"]}', "a[1]", "expected int, got str"),
        (b'{"b":{"x":1}}', "b", "a key: expected int"),
        (b'{"b":{"1":"x"}}', "b", "expected float"),
        (b'{"c":1}', "c", "there is no such field"),
        (b"7", "", "expected object, got int"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(data: bytes, field: str, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(data, type=Shape)
    found, problem = field_problem(caught.value)
    assert found == field
    assert words in problem
    assert "`" not in problem


@pytest.mark.anyio
async def test_lines_come_out_whole_however_they_came_in() -> None:
    stream = asyncio.StreamReader()
    lines = LineReader(stream, 10)
    for piece in (b"one\ntw", b"o\n", b"0123456789", b"\n", b"0123456789a\nafter\n", b"x" * 100, b"y\nlast"):
        stream.feed_data(piece)
    stream.feed_eof()
    seen: list[bytes | None] = []
    while not seen or seen[-1] is not None:
        try:
            seen.append(await lines.next())
        except OverlongLineError:
            seen.append(b"too long")
    assert seen == [b"one", b"two", b"0123456789", b"too long", b"after", b"too long", b"last", None]


async def counting(closed: list[str], quiet: asyncio.Event) -> AsyncGenerator[int, None]:
    try:
        yield 1
        await quiet.wait()
        yield 2
    finally:
        closed.append("closed")


@pytest.mark.anyio
async def test_a_quiet_stream_says_that_it_lives_and_goes_on() -> None:
    closed: list[str] = []
    quiet = asyncio.Event()
    seen: list[int | None] = []
    async for item in paced(counting(closed, quiet), 0.01):
        seen.append(item)
        if seen.count(None) == 2:
            quiet.set()
    assert [item for item in seen if item is not None] == [1, 2]
    assert seen[1:3] == [None, None]
    assert closed == ["closed"]


@pytest.mark.anyio
async def test_closing_a_paced_stream_closes_its_source_at_once() -> None:
    closed: list[str] = []
    stream = paced(counting(closed, asyncio.Event()), 60.0)
    assert await anext(stream) == 1
    await stream.aclose()
    assert closed == ["closed"]


@pytest.mark.anyio
async def test_a_source_that_fails_fails_the_paced_stream() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise RequestError("recovery_failed", "gone")

    stream = paced(failing(), 60.0)
    assert await anext(stream) == 1
    with pytest.raises(RequestError, match="gone"):
        await anext(stream)
