"""Two and more control planes on loopback addresses, with real TLS."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import structlog

from exod.core.engine.engine_messages import ModelWish
from exod.core.membership.membership import ClusterKey, MembershipRecord
from exod.errors import StartError
from exod.model import Kind, LocalAddress, NodeCard, NodeId
from exod.peers import connection, control_plane, handshakes
from exod.peers.connection import Connection
from exod.peers.control_plane import ControlPlane
from exod.peers.dial_targets import Target
from exod.peers.membership_driver import MembershipDriver
from exod.peers.peer_messages import MAX_FRAME_BYTES, Goodbye, PeerMessage, StillThere, encode
from exod.peers.trust import tls_contexts
from exod.platform.this_host import current

KEY, OTHER_KEY = bytes(32), b"\1" * 32
A, B = NodeId("000000000000000a"), NodeId("000000000000000b")
PATIENCE_S = 20.0
SO_ATTACH_FILTER = 26

pytestmark = pytest.mark.anyio


class Unbound:
    """Of a platform the control plane only uses these; binding to an interface is tested with the platforms."""

    def give_up_unacknowledged(self, sock: socket.socket, after_s: float) -> None:
        current().give_up_unacknowledged(sock, after_s)

    def bind_to_interface(self, sock: socket.socket, interface: str) -> None:
        pass


@dataclass
class Daemon:
    """A control plane and what it reported."""

    id: NodeId
    key: bytes = KEY
    incarnation: int = 1
    own_key: bytes | None = None
    cards: list[NodeCard] = field(default_factory=list)
    messages: list[tuple[NodeId, PeerMessage]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        record = MembershipRecord(ClusterKey(0, self.key, self.id))
        self.membership = MembershipDriver(self.id, self.id, "home", record, self.own_key)
        self.plane = ControlPlane(
            self.id,
            self.membership,
            Unbound(),  # type: ignore[arg-type]
            on_card=self.cards.append,
            on_message=lambda peer, message: self.messages.append((peer, message)),
            on_connected=lambda peer: self.connected.append(f"+{peer[-1]}"),
            on_disconnected=lambda peer: self.connected.append(f"-{peer[-1]}"),
        )
        self.port = self.port or free_port()
        self.plane.set_card(self.card())

    def card(self, name: str = "") -> NodeCard:
        address = LocalAddress("lo", Kind.LOOPBACK, f"127.0.0.{int(self.id, 16)}", 8)
        return NodeCard(
            self.id, name or self.id, self.incarnation, "0", self.port, 0, 0, (address,), True, 1, "embedded:count"
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Daemon]:
        self.plane.listen(self.port)
        job = asyncio.create_task(self.plane.run())
        try:
            yield self
        finally:
            await self.plane.goodbye(self.incarnation, "the test ends")
            job.cancel()
            await asyncio.wait([job])

    def wishes(self) -> list[str]:
        return [message.model for _, message in self.messages if isinstance(message, ModelWish)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], object], text: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - some of it happens outside of this loop
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {text}")


@asynccontextmanager
async def a_pair() -> AsyncIterator[tuple[Daemon, Daemon]]:
    async with Daemon(A).running() as a, Daemon(B).running() as b:
        a.plane.contact("127.0.0.1", b.port, "b")
        await until(lambda: a.plane.peers() and b.plane.peers(), "both are connected")
        yield a, b


async def test_a_contact_brings_cards_and_messages_both_ways() -> None:
    async with a_pair() as (a, b):
        assert [card.id for card in a.cards] == [B]
        assert [card.id for card in b.cards] == [A]
        assert a.plane.send(B, ModelWish(A, "from a"))
        b.plane.broadcast(ModelWish(B, "from b"))
        await until(lambda: b.wishes() == ["from a"] and a.wishes() == ["from b"], "both messages came")
        assert a.connected == ["+b"]
        assert b.connected == ["+a"]


async def test_a_changed_card_is_told_at_once() -> None:
    async with a_pair() as (a, b):
        a.plane.set_card(a.card("a better name"))
        await until(lambda: b.cards[-1].name == "a better name", "the new card came")


async def test_a_stranger_with_another_key_is_refused_and_logged_once_at_each_end() -> None:
    with structlog.testing.capture_logs() as logs:
        async with Daemon(A).running() as a, Daemon(B, key=OTHER_KEY).running() as b:
            a.plane.contact("127.0.0.1", b.port, "b")
            b.plane.contact("127.0.0.1", a.port, "a")
            await until(lambda: a.plane.strangers() and b.plane.strangers(), "both noted the other")
            await asyncio.sleep(1.0)  # they dial again some times
            assert not a.plane.peers()
            assert not b.plane.peers()
            assert not a.cards
    refusals = [entry for entry in logs if entry["event"] == "stranger_refused"]
    assert len(refusals) == 2
    assert a.plane.strangers() == ("b (127.0.0.1) was refused: it has another cluster key, or none",)


async def test_hundreds_of_half_open_connections_keep_no_peer_out_and_leave_nothing() -> None:
    async with Daemon(A).running() as a:
        before = psutil.Process().num_fds()
        idlers = []
        for _ in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            idlers.append((reader, writer))
        async with Daemon(B).running() as b:
            b.plane.contact("127.0.0.1", a.port, "a")
            await until(lambda: a.plane.peers() == [B], "the peer is let in")
        assert len(a.plane._handshakes.under_way()) <= handshakes.MAX_HANDSHAKES
        for _, writer in idlers:
            writer.close()
        await until(lambda: not a.plane._handshakes.under_way(), "every handshake is over")
        await until(lambda: psutil.Process().num_fds() <= before + 2, "no descriptor is left")


async def test_garbage_before_the_handshake_changes_nothing() -> None:
    async with Daemon(A).running() as a:
        for garbage in (b"\0" * 100, os.urandom(1000), b"GET / HTTP/1.1\r\n\r\n", b""):
            _, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(garbage)
            writer.close()
        async with Daemon(B).running() as b:
            b.plane.contact("127.0.0.1", a.port, "a")
            await until(lambda: a.plane.peers() == [B], "a peer comes in as ever")


async def an_insider(a: Daemon) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A peer with the right key that speaks for itself."""
    context: ssl.SSLContext = tls_contexts(KEY, B)[1]
    return await asyncio.open_connection("127.0.0.1", a.port, ssl=context, server_hostname="")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "over the limit"),
        (b"\0\0\0\4abcd", "not a control message"),
        (encode(StillThere()), "before its greeting"),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_cut_off_with_the_reason(sent: bytes, why: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with Daemon(A).running() as a:
            reader, writer = await an_insider(a)
            writer.write(sent)
            async with asyncio.timeout(PATIENCE_S):
                while await reader.read(65536):
                    pass
            writer.close()
            assert not a.plane.peers()
    assert any(why in entry.get("text", "") for entry in logs), logs


async def test_a_peer_that_never_greets_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GREETING_S", 0.2)
    async with Daemon(A).running() as a:
        reader, writer = await an_insider(a)
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(65536):
                pass
        writer.close()


async def test_a_message_too_long_for_the_peer_is_not_sent() -> None:
    async with a_pair() as (a, b):
        assert not a.plane.send(B, ModelWish(A, "x" * (MAX_FRAME_BYTES + 1)))
        assert a.plane.send(B, ModelWish(A, "y" * 3_000_000))
        await until(lambda: [len(model) for model in b.wishes()] == [3_000_000], "the long one came whole")


@pytest.mark.usefixtures("second_loopback")
async def test_a_dead_path_closes_its_connection_and_messages_take_another() -> None:
    async with a_pair() as (a, b):
        second = Target("127.0.0.1", b.port, local="127.0.0.2")
        a.plane.set_paths(B, (second, Target("127.0.0.1", b.port, local="127.0.0.1")))
        await until(lambda: a.plane.connection_on(B, "127.0.0.2", "127.0.0.1"), "the second path is warm")
        a.plane.set_paths(B, ())
        a.plane.path_died(B, "127.0.0.2", "127.0.0.1")
        a.plane.send(B, ModelWish(A, "still here"))
        await until(lambda: b.wishes() == ["still here"], "it came over the other path")
        await until(lambda: not a.plane.connection_on(B, "127.0.0.2", "127.0.0.1"), "the dead one is gone")
        assert a.connected == ["+b"]


def make_deaf(connection: Connection) -> int:
    """This end's kernel drops whatever comes, unacknowledged: the other end cannot know. Returns its port."""
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    instructions = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: return 0 bytes
    program = struct.pack("HL", 1, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    return int(sock.getpeername()[1])


def local_tcp_ports() -> set[int]:
    """Of all connections of this host, those included that no process holds any more."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].rpartition(":")[2], 16) for line in lines}


@pytest.mark.usefixtures("second_loopback")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket drop what comes")
async def test_a_connection_that_died_while_its_path_lives_is_given_up_within_two_seconds() -> None:
    async with a_pair() as (a, b):
        best = Target("127.0.0.1", b.port, local="127.0.0.2")
        a.plane.set_paths(B, (best,))
        await until(lambda: b.plane.connection_on(A, "127.0.0.1", "127.0.0.2"), "the best path is warm")
        deaf = b.plane.connection_on(A, "127.0.0.1", "127.0.0.2")
        assert deaf is not None
        make_deaf(deaf)
        a.plane.set_paths(B, (best,))
        begun = asyncio.get_running_loop().time()
        while not b.wishes():
            assert asyncio.get_running_loop().time() - begun < 4.0, "what is repeated never took another connection"
            a.plane.send(B, ModelWish(A, "repeated"))
            await asyncio.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket drop what comes")
async def test_nothing_is_left_of_a_connection_over_a_dead_path() -> None:
    async with a_pair() as (a, b):
        (deaf,) = b.plane._connections[A]
        port = make_deaf(deaf)
        a.plane.send(B, ModelWish(A, "never sent again"))
        a.plane.path_died(B, "127.0.0.1", "127.0.0.1")
        await until(lambda: not a.plane.peers(), "it is gone")
        # The kernel by itself would send for a quarter of an hour.
        await until(lambda: port not in local_tcp_ports(), "the kernel sends no more")


@pytest.mark.usefixtures("second_loopback")
async def test_messages_take_the_best_path_that_has_a_connection() -> None:
    async with a_pair() as (a, b):
        best = Target("127.0.0.1", b.port, local="127.0.0.2")
        a.plane.set_paths(B, (best,))
        await until(lambda: a.plane.connection_on(B, "127.0.0.2", "127.0.0.1"), "the best path is warm")
        worse = a.plane.connection_on(B, "127.0.0.1", "127.0.0.1")
        assert worse is not None
        a.plane.send(B, ModelWish(A, "over the best"))
        await until(b.wishes, "it came")
        chosen = a.plane.connection_on(B, "127.0.0.2", "127.0.0.1")
        assert chosen is not None
        assert a.plane._by_preference(B)[0] is chosen


async def test_a_peer_that_was_restarted_is_found_again_and_its_dead_connections_end() -> None:
    async with Daemon(A).running() as a:
        first = Daemon(B, incarnation=1)
        a.plane.contact("127.0.0.1", first.port, "b")
        async with first.running():
            await until(lambda: a.plane.peers() == [B], "the first life is connected")
        await until(lambda: not a.plane.peers(), "the first life is gone")
        assert any(isinstance(message, Goodbye) for _, message in a.messages)
        async with Daemon(B, incarnation=2, port=first.port).running():
            await until(lambda: a.plane.peers() == [B], "the second life is connected")
        assert [card.incarnation for card in a.cards] == [1, 2]


async def test_the_next_life_of_a_peer_is_taken_while_the_last_ones_connection_seems_to_stand() -> None:
    async with Daemon(A).running() as a:
        first = Daemon(B, incarnation=1)
        async with first.running():
            first.plane.contact("127.0.0.1", a.port, "a")
            await until(lambda: a.plane.peers() == [B], "the first life is connected")
            async with Daemon(B, incarnation=2).running() as second:
                first.plane.forget_contact("127.0.0.1", a.port)
                second.plane.contact("127.0.0.1", a.port, "a")
                await until(lambda: a.connected == ["+b", "-b", "+b"], "the new life replaced the old")
                a.plane.send(B, ModelWish(A, "to the living"))
                await until(lambda: second.wishes() == ["to the living"], "it reached the new life")


async def test_both_dialling_at_once_ends_with_one_connection() -> None:
    async with Daemon(A).running() as a, Daemon(B).running() as b:
        a.plane.contact("127.0.0.1", b.port, "b")
        b.plane.contact("127.0.0.1", a.port, "a")
        await until(lambda: a.plane.peers() and b.plane.peers(), "they are connected")
        await asyncio.sleep(1.0)  # a second connection would have come by now
        await until(lambda: [len(pool) for pool in a.plane._connections.values()] == [1], "A keeps one")
        await until(lambda: [len(pool) for pool in b.plane._connections.values()] == [1], "B keeps one")
        a.plane.send(B, ModelWish(A, "m"))
        b.plane.send(A, ModelWish(B, "m"))
        await until(lambda: a.wishes() and b.wishes(), "messages pass both ways")
        assert a.connected == ["+b"]
        assert b.connected == ["+a"]


async def test_where_no_descriptor_is_left_it_goes_on_and_dials_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 3

    def scarce(family: int, kind: int) -> socket.socket:
        nonlocal refused
        if refused:
            refused -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.socket(family, kind)

    names = SimpleNamespace(socket=scarce, AF_INET=socket.AF_INET, SOCK_STREAM=socket.SOCK_STREAM)
    async with a_pair() as (a, b):
        monkeypatch.setattr(control_plane, "socket", names)
        for plane in (a.plane, b.plane):
            for one in plane._all():
                one.abort()
        await until(lambda: not refused, "it was tried")
        await until(lambda: a.plane.peers() and b.plane.peers(), "they are connected again")


async def test_a_node_that_dials_itself_stops_doing_so() -> None:
    async with Daemon(A).running() as a:
        a.plane.contact("127.0.0.1", a.port, "myself")
        await until(lambda: "127.0.0.1" in a.plane._own, "it notices")
        assert not a.plane.peers()
        assert not a.plane._is_needed(Target("127.0.0.1", a.port))


async def test_after_goodbye_nobody_is_dialled_or_let_in() -> None:
    async with a_pair() as (a, b):
        await b.plane.goodbye(1, "it was stopped")
        await until(lambda: not a.plane.peers(), "A sees it go")
        goodbyes = [message for _, message in a.messages if isinstance(message, Goodbye)]
        assert goodbyes == [Goodbye(1, "it was stopped")]
        await asyncio.sleep(1.0)  # A dials again meanwhile
        assert not a.plane.peers()
        assert not b.plane.peers()


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} \(mesh.port\) cannot be used"):
            Daemon(A).plane.listen(port)
