"""Two hosts with one identity, versions that differ, and messages that nobody knows, over real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import structlog

from exod.model import Kind, LocalAddress, NodeCard
from exod.peers import newcomers, peer_messages
from exod.peers.peer_messages import CONTROL_PROTOCOL, Greeting, encode, take
from exoengine import framing
from tests.peers.test_control_plane import A, B, Daemon, a_pair, an_insider, until

pytestmark = pytest.mark.anyio


def at(daemon: Daemon, host: int) -> NodeCard:
    """Its card, as of a host of its own."""
    own = LocalAddress("en0", Kind.ETHERNET, f"10.77.0.{host}", 24)
    card = msgspec.structs.replace(daemon.card(), addresses=(own,))
    daemon.plane.set_card(card)
    return card


def codes(daemon: Daemon) -> list[str]:
    return [fact.code for fact in daemon.plane.facts("home")]


@asynccontextmanager
async def twins() -> AsyncIterator[tuple[Daemon, Daemon]]:
    first, second = Daemon(A, incarnation=1), Daemon(A, incarnation=2)
    at(first, 1), at(second, 2)
    async with first.running(), second.running():
        yield first, second


async def test_two_hosts_with_one_identity_are_named_on_both_and_the_first_stays() -> None:
    async with twins() as (first, second):
        second.plane.contact("127.0.0.1", first.port, "what multicast DNS says of this node's own name")
        await until(lambda: codes(first) == codes(second) == ["identity_twin"], "both say it")
        (stays,), (yields,) = first.plane.facts("home"), second.plane.facts("home")
        assert "10.77.0.2: this one was there first, and stays" in stays.text
        assert "10.77.0.1: this one came later, and does not join" in yields.text
        assert "exoctl cluster renew-identity" in stays.text
        assert (first.plane.newcomers.yields, second.plane.newcomers.yields) == (False, True)


async def test_a_peer_tells_both_and_keeps_the_one_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exod.peers.control_plane.KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(newcomers, "LATE_S", 0.1)
    async with twins() as (first, second), Daemon(B).running() as b:
        first.plane.contact("127.0.0.1", b.port, "b")
        await until(lambda: b.plane.peers() == [A], "the first is a member")
        elder = b.plane.pool(A)[0]
        elder.remote = "10.77.0.1"  # on one host all come from one address; twins do not
        second.plane.contact("127.0.0.1", b.port, "b")
        await until(lambda: codes(first) == codes(second) == codes(b) == ["identity_twin"], "all three say it")
        assert elder in b.plane.pool(A)
        assert b.connected == ["+a"]
        assert [card.incarnation for card in b.cards] == [1]
        await until(lambda: not second.plane.peers(), "the newcomer has no peer")
        assert first.plane.peers() == [B]


async def test_a_restart_from_another_address_is_let_in_once_the_earlier_life_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newcomers, "CHALLENGE_S", 0.5)
    async with twins() as (first, second), Daemon(B).running() as b:
        first.plane.contact("127.0.0.1", b.port, "b")
        await until(lambda: b.plane.peers() == [A], "the first life is a member")
        b.plane.pool(A)[0].remote = "10.77.0.1"
        second.plane.contact("127.0.0.1", b.port, "b")
        await until(lambda: b.connected == ["+a", "-a", "+a"], "the second life took its place")
        assert codes(b) == []


async def test_a_twin_that_was_renewed_is_forgotten_and_the_other_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "COUNTS_S", 1.0)
    async with Daemon(A, incarnation=2).running() as second:
        at(second, 2)
        first = Daemon(A, incarnation=1)
        at(first, 1)
        async with first.running():
            second.plane.contact("127.0.0.1", first.port, "the twin")
            await until(lambda: second.plane.newcomers.yields, "it yields")
        await until(lambda: codes(second) == [], "the twin is gone")
        async with Daemon(B).running() as b:
            b.plane.contact("127.0.0.1", second.port, "a")
            await until(lambda: b.plane.peers() == [A], "it joins")


async def test_a_peer_of_another_control_version_is_named_with_both_and_logged_once() -> None:
    async with Daemon(A).running() as a:
        for other in (CONTROL_PROTOCOL + 1, CONTROL_PROTOCOL + 1):
            with structlog.testing.capture_logs() as logs:
                reader, writer = await an_insider(a)
                card = msgspec.structs.replace(Daemon(B).card(), name="studio2")
                writer.write(encode(Greeting(other, card)))
                async with asyncio.timeout(20.0):
                    while await reader.read(65536):
                        pass
                writer.close()
        (fact,) = a.plane.facts("home")
        assert (fact.code, fact.subject) == ("version_skew", B)
        assert f"studio2 speaks version {other} of the control protocol" in fact.text
        assert fact.text.endswith(f"upgrade exod on {A}")
        assert [entry for entry in logs if entry["log_level"] == "warning"] == [], "the first line was a moment ago"


async def test_a_message_of_an_unknown_type_ends_no_connection() -> None:
    async with a_pair() as (a, b):
        body = msgspec.msgpack.encode({"type": "of_the_future", "more": [1, 2]})
        (connection,) = a.plane.pool(B)
        connection.send(framing.frame(body, peer_messages.MAX_FRAME_BYTES))
        a.plane.set_card(a.card("after it"))
        await until(lambda: b.cards[-1].name == "after it", "what follows is read")
        assert b.connected == ["+a"]


def test_a_greeting_of_another_shape_and_version_is_understood_as_far_as_it_goes() -> None:
    body = msgspec.msgpack.encode({"type": "greeting", "protocol": 9, "card": {"name": "studio9"}})
    found = take(bytearray(framing.frame(body, peer_messages.MAX_FRAME_BYTES)))
    assert isinstance(found, peer_messages.ForeignGreeting)
    assert (found.protocol, found.card.name) == (9, "studio9")


async def test_two_clusters_of_one_name_say_so_on_both_and_a_scanner_is_no_reason() -> None:
    async with Daemon(A).running() as a, Daemon(B, key=b"\1" * 32).running() as b:
        _, writer = await asyncio.open_connection("127.0.0.1", a.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        writer.close()
        await until(a.plane.strangers, "it is noted")
        assert codes(a) == []
        a.plane.contact("127.0.0.1", b.port, "studio2")
        b.plane.contact("127.0.0.1", a.port, "studio1")
        await until(lambda: codes(a) == codes(b) == ["other_key"], "both say it")
        (fact,) = a.plane.facts("home")
        assert "cluster home" in fact.text
        assert "exoctl cluster join --replace" in fact.text
        assert "restart" in fact.text
