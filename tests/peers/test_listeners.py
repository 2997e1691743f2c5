"""Which listener takes a connection, and how a contact is dialled. The interfaces are loopback of other kinds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import pytest

from exod.errors import StartError
from exod.model import Kind, LocalAddress
from exod.peers.dial_targets import Target, contact_targets
from exod.peers.listeners import Listeners
from exod.platform.this_host import current
from tests.peers.test_control_plane import free_port, until

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
CABLE = LocalAddress("bridge0", Kind.THUNDERBOLT, "169.254.10.1", 16)
ETHERNET = LocalAddress("en0", Kind.ETHERNET, "169.254.20.1", 16)
LAN = LocalAddress("en1", Kind.WIFI, "192.168.1.5", 24)

pytestmark = pytest.mark.anyio


class Told:
    def __init__(self) -> None:
        self.accepted: list[tuple[str, str]] = []
        self.listeners = Listeners(current(), 8, self.take)

    def take(self, sock: socket.socket, source: str) -> None:
        self.accepted.append((source, sock.getsockname()[0]))
        sock.close()


async def connect(address: str, port: int) -> None:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(address, port)
        writer.close()


async def test_connections_are_taken_with_and_without_a_bound_listener() -> None:
    told, port = Told(), free_port()
    told.listeners.listen(port)
    told.listeners.accept()
    one = LocalAddress(LOOPBACK, Kind.ETHERNET, "127.0.0.1", 8)
    for addresses in ((one,), (), (one,)):
        told.accepted.clear()
        told.listeners.follow(addresses)
        await connect("127.0.0.1", port)
        await until(lambda: told.accepted, "it is taken")
        assert told.accepted == [("127.0.0.1", "127.0.0.1")]
    told.listeners.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_bound_listener_passes_its_interface_on(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("macOS tells nobody which interface a socket is bound to")
    names = []
    told, port = Told(), free_port()
    so_bindtodevice = 25
    monkeypatch.setattr(
        told.listeners,
        "_accepted",
        lambda sock, _: names.append(sock.getsockopt(socket.SOL_SOCKET, so_bindtodevice, 16).rstrip(b"\0")),
    )
    told.listeners.follow((LocalAddress(LOOPBACK, Kind.ETHERNET, "127.0.0.1", 8),))
    told.listeners.listen(port)
    told.listeners.accept()
    await connect("127.0.0.1", port)
    await until(lambda: names, "it is taken")
    told.listeners.close()
    assert names == [LOOPBACK.encode()]


async def test_an_interface_that_is_gone_leaves_the_listener_for_every_address() -> None:
    told, port = Told(), free_port()
    told.listeners.listen(port)
    told.listeners.accept()
    told.listeners.follow((LocalAddress("gone0", Kind.ETHERNET, "127.0.0.1", 8), CABLE))
    await connect("127.0.0.1", port)
    await until(lambda: told.accepted, "it is taken")
    told.listeners.close()


async def test_two_daemons_cannot_share_the_port() -> None:
    first, second, port = Told(), Told(), free_port()
    first.listeners.follow((LocalAddress(LOOPBACK, Kind.ETHERNET, "127.0.0.1", 8),))
    first.listeners.listen(port)
    with pytest.raises(StartError, match="is another exod running"):
        second.listeners.listen(port)
    first.listeners.close()
    second.listeners.listen(port)
    second.listeners.close()


def test_a_contact_is_dialled_from_each_interface_whose_subnet_it_lies_in() -> None:
    mine = (CABLE, ETHERNET, LAN)
    assert contact_targets("169.254.10.2", 1, mine) == (
        Target("169.254.10.2", 1, "169.254.10.1", "bridge0", bound_contact=True),
        Target("169.254.10.2", 1, "169.254.20.1", "en0", bound_contact=True),
    )
    for elsewhere in ("10.9.0.7", "studio2.local"):
        assert contact_targets(elsewhere, 1, mine) == (Target(elsewhere, 1),)
