"""Rotation, removal and invitations between control planes on loopback, with real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from exod.core.engine.engine_messages import ModelWish
from exod.core.membership.membership import RETIRED_S
from exod.errors import TrustError
from exod.model import NodeId
from exod.peers import membership_driver
from exod.peers.connection import Connection
from exod.peers.invitation import invitation_token, read_invitation, redeem
from exod.peers.key_ring import invitation_key, server_name
from exod.peers.membership_driver import MembershipDriver
from exod.peers.peer_messages import CONTROL_PROTOCOL, Greeting, KeyOffer, encode
from exod.peers.trust import invite_token, join_token, tls_contexts
from tests.peers.test_control_plane import KEY, A, B, Daemon, until

C = NodeId("000000000000000c")
OWN = {node: node.encode() * 2 for node in (A, B, C)}

pytestmark = pytest.mark.anyio


def daemon(node: NodeId, key: bytes = KEY) -> Daemon:
    return Daemon(node, key=key, own_key=OWN[node])


def key_of(one: Daemon) -> bytes:
    return one.membership.core.current.key


@asynccontextmanager
async def three() -> AsyncIterator[tuple[Daemon, Daemon, Daemon]]:
    """Each is connected to each: they lie on addresses of their own, as nodes do."""
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(daemon(node).running()) for node in (A, B, C)]
        for one, other in ((a, b), (a, c), (b, c)):
            meet(one, other)
        await until(lambda: all(len(one.plane.peers()) == 2 for one in (a, b, c)), "all are connected")
        await until(lambda: all(len(one.membership.core.record.pins) == 2 for one in (a, b, c)), "all are pinned")
        yield a, b, c


def meet(one: Daemon, other: Daemon) -> None:
    one.plane.contact(f"127.0.0.{int(other.id, 16)}", other.port, other.id)


async def test_a_rotation_moves_all_members_over_their_connections_and_drops_none() -> None:
    async with three() as (a, b, c):
        await a.membership.rotate()
        assert a.membership.core.away() == frozenset()
        await until(lambda: key_of(a) == key_of(b) == key_of(c) != KEY, "all have the new key")
        assert sorted(a.connected) == ["+b", "+c"]
        assert a.plane.send(B, ModelWish(A, "still here"))
        await until(lambda: b.wishes() == ["still here"], "the old connection still carries")


async def test_who_is_connected_later_proves_itself_by_the_new_key() -> None:
    async with three() as (a, _, _):
        await a.membership.rotate()
        for connection in list(a.plane._connections[B]):
            connection.abort()
        await until(lambda: a.connected.count("+b") == 2, "they are connected again")
        assert {one.proven_by for one in a.plane._connections[B]} == {key_of(a)}


async def test_a_member_that_was_away_fetches_the_new_key_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon(A).running() as a:
        async with daemon(B).running() as b:
            meet(a, b)
            await until(lambda: a.membership.core.record.pins and b.membership.core.record.pins, "both are pinned")
            record = b.membership.core.record
        await a.membership.rotate()
        assert a.membership.core.away() == {B}
        late = daemon(B)
        late.membership.core.record = record
        async with late.running():
            meet(late, a)
            await until(lambda: key_of(late) == key_of(a), "it was given the key")
            await until(lambda: a.plane.peers() == [B], "it is a member again")


async def test_one_that_nobody_lets_dial_is_dialled_by_an_old_key() -> None:
    async with daemon(A).running() as a:
        async with daemon(B).running() as b:
            meet(a, b)
            await until(lambda: a.membership.core.record.pins and b.membership.core.record.pins, "both are pinned")
            record, port = b.membership.core.record, b.port
        await a.membership.rotate()
        late = Daemon(B, own_key=OWN[B], port=port)
        late.membership.core.record = record
        async with late.running():
            await until(lambda: key_of(late) == key_of(a) and a.plane.peers() == [B], "it is a member again")


async def test_a_stranger_with_the_old_key_is_not_given_the_new_one() -> None:
    """A removed node has the old key, and can claim any id."""
    async with three() as (a, b, c):
        await a.membership.rotate((C,))
        await until(lambda: key_of(a) == key_of(b) != KEY, "the two have the new key")
        await until(lambda: C not in a.plane.peers() and C not in b.plane.peers(), "it is connected no more")
        assert key_of(c) == KEY
    for node in (B, NodeId("000000000000000d")):
        async with Daemon(A, key=KEY, own_key=OWN[A]).running() as keeper:
            keeper.membership.core.record = a.membership.core.record
            keeper.membership._follow()
            async with Daemon(node, own_key=OWN[C]).running() as thief:
                meet(thief, keeper)
                await asyncio.sleep(1.0)  # it tries some times
                assert key_of(thief) == KEY
                assert not keeper.plane.peers()


async def test_a_removed_node_hears_why_and_the_others_hear_that_it_is_gone() -> None:
    async with three() as (a, b, c):
        told: list[dict[str, object]] = []
        expelled: list[NodeId] = []
        c.membership.on_event = lambda kind, data: told.append(data)
        b.membership.on_expelled = expelled.append
        await a.membership.rotate((C,))
        await until(lambda: told and expelled == [C], "both ends know")
        assert told[0]["text"] == f"this node was removed from the cluster on {A}"


async def test_a_key_that_was_retired_for_too_long_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon(A).running() as a:
        async with daemon(B).running() as b:
            meet(a, b)
            await until(lambda: a.membership.core.record.pins and b.membership.core.record.pins, "both are pinned")
            record = b.membership.core.record
        await a.membership.rotate()
        now = membership_driver.time.time
        monkeypatch.setattr(membership_driver.time, "time", lambda: now() + RETIRED_S + 1)
        late = daemon(B)
        late.membership.core.record = record
        async with late.running():
            refused: list[str] = []
            late.membership.on_event = lambda kind, data: refused.append(str(data["text"]))
            meet(late, a)
            await until(lambda: refused, "it was told why")
            assert refused[0] == "its key was retired too long ago: invite it anew"
            assert key_of(late) == KEY


async def test_a_member_that_does_not_take_the_key_over_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_driver, "OVERLAP_S", 0.3)
    monkeypatch.setattr(membership_driver, "SETTLED_S", 0.2)
    async with three() as (a, b, c):

        def deaf(connection: Connection, message: object) -> None:
            """An older exod, which does not understand."""

        c.membership.received = deaf  # type: ignore[method-assign]
        await a.membership.rotate()
        assert a.membership.core.away() == {C}
        await until(lambda: C not in a.plane.peers() and C not in b.plane.peers(), "it is let go")


async def test_a_guest_offers_no_key() -> None:
    """An invitation opens one thing alone."""
    async with daemon(A).running() as a:
        word = a.membership.invite(600, False, ("127.0.0.1",), a.port)
        door = read_invitation(word)
        stranger = MembershipDriver(C, "c", "x", a.membership.core.record)
        key = invitation_key(door.secret)
        context = tls_contexts(key, stranger.core._me, OWN[C])[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", a.port, ssl=context, server_hostname=server_name(key)
        )
        writer.write(encode(KeyOffer(99, b"x" * 32, "evil", {})))
        await reader.read()
        writer.close()
        assert key_of(a) == KEY


async def opened_as(a: Daemon, node: NodeId, key: bytes) -> bytes:
    """What a node hears of somebody who says to be `node` and proves by `key` that it belongs there; it greets."""
    context = tls_contexts(key, node, OWN[C])[1]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", a.port, ssl=context, server_hostname=server_name(key)
    )
    card = msgspec.structs.replace(a.card(), id=node, incarnation=2)
    writer.write(encode(Greeting(CONTROL_PROTOCOL, card, life="another", joined=True)))
    async with asyncio.timeout(20):
        heard = await reader.read()
    writer.close()
    return heard


async def test_nobody_is_taken_for_a_twin_by_an_invitation_or_an_old_key() -> None:
    """A node leaves its peers to a twin that was there first: nobody with less than the key may say that it is."""
    async with daemon(A).running() as a:
        door = read_invitation(a.membership.invite(600, False, ("127.0.0.1",), a.port))
        heard = await opened_as(a, A, invitation_key(door.secret))
        assert b"admission" in heard
        assert b"greeting" not in heard
        await a.membership.rotate()
        heard = await opened_as(a, A, KEY)
        assert b"key_refused" in heard
        assert b"greeting" not in heard
        assert not a.plane.newcomers.yields


async def test_an_invitation_gives_the_key_which_is_not_in_the_word() -> None:
    async with daemon(A).running() as a:
        word = a.membership.invite(600, True, ("127.0.0.1",), a.port)
        door = read_invitation(word)
        assert door.cluster == "home"
        assert KEY not in door.secret + word.encode()
        assert await asyncio.to_thread(redeem, door, OWN[B]) == KEY
        assert await asyncio.to_thread(redeem, door, OWN[B]) == KEY
        with pytest.raises(TrustError, match="another has used it"):
            await asyncio.to_thread(redeem, door, OWN[C])


async def test_an_invitation_that_nobody_gave_or_that_ended_opens_nothing() -> None:
    async with daemon(A).running() as a:
        forged = read_invitation(invitation_token(b"z" * 16, ("127.0.0.1",), a.port, "home"))
        with pytest.raises(TrustError, match="not open there any more"):
            await asyncio.to_thread(redeem, forged, OWN[B])
        door = read_invitation(a.membership.invite(600, False, ("127.0.0.1",), a.port))
        await a.membership.rotate()
        with pytest.raises(TrustError, match="not open there any more"):
            await asyncio.to_thread(redeem, door, OWN[B])


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "", "x" * 64])
async def test_an_invitation_shows_no_name_that_a_terminal_obeys(name: str) -> None:
    with pytest.raises(TrustError, match="not a whole invitation"):
        read_invitation(invitation_token(b"z" * 16, ("127.0.0.1",), 1, name))
    with pytest.raises(TrustError, match="not a whole invitation"):
        join_token(invite_token(KEY, name))


@pytest.mark.parametrize("word", ["exod2-", "exod2-AAAA", "exod2-" + "A" * 60, "exod2-\u00e9", "exod1-x"])
async def test_a_word_that_is_no_invitation_is_refused(word: str) -> None:
    with pytest.raises(TrustError, match="not a whole invitation"):
        read_invitation(word)
