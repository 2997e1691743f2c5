"""The watcher: what it reports and when. The system is the test's, but for the last test."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Sequence

import pytest

from exod.model import Kind, LocalAddress
from exod.network import interfaces
from exod.network.interface_rules import SeenInterface
from exod.network.interfaces import InterfaceWatcher, read_interfaces
from exod.platform.linux import Linux
from exod.platform.system import Classification
from exod.platform.this_host import current

DEADLINE_S = 10.0

EN0 = SeenInterface("en0", True, (("10.0.0.2", 24),), 4)
BRIDGE0 = SeenInterface("bridge0", True, (("192.168.4.21", 24),), 7)


class Host(Linux):
    """A platform whose interfaces and tools' answers a test sets; `notify` is the kernel's message."""

    def __init__(self) -> None:
        super().__init__()
        self.interfaces: tuple[SeenInterface, ...] = ()
        self.kinds: dict[str, Kind] = {}
        self.answers: dict[str, Kind] = {}
        self.failing = False
        self._notified, self._notifier = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.setblocking(False)

    async def refresh(self) -> bool:
        changed = self.kinds != self.answers
        self.kinds = dict(self.answers)
        return changed

    def classify(self, interface: str, addresses: Sequence[str]) -> Classification:
        return Classification(self.kinds.get(interface, Kind.ETHERNET), "the test says so")

    def open_change_socket(self) -> socket.socket | None:
        return self._notified

    def read(self) -> tuple[SeenInterface, ...]:
        if self.failing:
            raise OSError("an interface vanished")
        return self.interfaces

    def notify(self) -> None:
        for _ in range(5):
            self._notifier.send(b"a link changed")


class Watched:
    """A running watcher and what it reported."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.watcher = InterfaceWatcher(host, read=host.read)
        self.reports: asyncio.Queue[tuple[LocalAddress, ...]] = asyncio.Queue()

    async def __aenter__(self) -> Watched:
        self._task = asyncio.create_task(self.watcher.run(self.reports.put_nowait), name="watcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def next(self) -> list[str]:
        async with asyncio.timeout(DEADLINE_S):
            return [local.address for local in await self.reports.get()]


@pytest.mark.anyio
async def test_the_first_report_comes_at_once_even_without_any_interface() -> None:
    async with Watched(Host()) as watched:
        assert await watched.next() == []


@pytest.mark.anyio
async def test_a_message_of_the_kernel_is_followed_by_one_report() -> None:
    host = Host()
    host.interfaces = (EN0,)
    async with Watched(host) as watched:
        assert await watched.next() == ["10.0.0.2"]
        host.interfaces = (BRIDGE0, EN0)
        host.notify()
        assert await watched.next() == ["192.168.4.21", "10.0.0.2"]
        host.notify()  # nothing new behind it
        host.interfaces = (EN0,)
        host.notify()
        assert await watched.next() == ["10.0.0.2"]
        assert watched.reports.empty()
        assert watched.watcher.snapshot() == (LocalAddress("en0", Kind.ETHERNET, "10.0.0.2", 24),)


@pytest.mark.anyio
async def test_an_interface_replaced_by_one_of_the_same_name_and_address_goes_and_comes() -> None:
    host = Host()
    host.interfaces = (BRIDGE0, EN0)
    async with Watched(host) as watched:
        await watched.next()
        host.interfaces = (SeenInterface("bridge0", True, BRIDGE0.addresses, 8), EN0)
        host.notify()
        assert await watched.next() == ["10.0.0.2"]
        assert await watched.next() == ["192.168.4.21", "10.0.0.2"]


@pytest.mark.anyio
async def test_what_the_tools_say_later_corrects_the_kind() -> None:
    host = Host()
    async with Watched(host) as watched:
        await watched.next()
        host.interfaces = (SeenInterface("en5", True, (("192.168.4.21", 24),), 9),)
        host.answers = {"en5": Kind.THUNDERBOLT}
        host.notify()
        async with asyncio.timeout(DEADLINE_S):
            assert [local.kind for local in await watched.reports.get()] == [Kind.ETHERNET]
            assert [local.kind for local in await watched.reports.get()] == [Kind.THUNDERBOLT]


@pytest.mark.anyio
async def test_a_look_that_fails_keeps_what_is_known() -> None:
    host = Host()
    host.interfaces = (EN0,)
    async with Watched(host) as watched:
        await watched.next()
        host.failing = True
        host.notify()
        await asyncio.sleep(0.1)
        assert watched.reports.empty()
        host.failing = False
        host.interfaces = ()
        host.notify()
        assert await watched.next() == []


@pytest.mark.anyio
async def test_what_cannot_be_followed_or_seen_now_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left for a while: nobody notifies us when there is one again."""
    monkeypatch.setattr(interfaces, "AGAIN_S", 0.05)
    host = Host()
    host.interfaces = (EN0,)
    reports: asyncio.Queue[tuple[LocalAddress, ...]] = asyncio.Queue()
    refused = 2

    def follow(addresses: tuple[LocalAddress, ...]) -> None:
        nonlocal refused
        if refused:
            refused -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        reports.put_nowait(addresses)

    task = asyncio.create_task(InterfaceWatcher(host, read=host.read).run(follow))
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert [one.address for one in await reports.get()] == ["10.0.0.2"]
            host.failing = True
            host.notify()
            await asyncio.sleep(0.1)
            host.interfaces, host.failing = (), False
            assert await reports.get() == ()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.anyio
async def test_a_watcher_that_was_cancelled_reads_its_socket_no_more() -> None:
    host = Host()
    async with Watched(host) as watched:
        await watched.next()
    assert host._notified.fileno() == -1


def test_lines_for_netcheck_say_why() -> None:
    host = Host()
    host.interfaces = (EN0, SeenInterface("en1", False, (), 5))
    en0, en1 = InterfaceWatcher(host, exclude=["en0"], read=host.read).lines()
    assert (en0.eligible, en0.addresses, en0.kind_source) == (False, ("10.0.0.2/24",), "the test says so")
    assert "mesh.exclude" in en0.why
    assert (en1.eligible, en1.up) == (False, False)


@pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux's loopback device")
def test_this_host_is_read_as_it_is() -> None:
    loopback = next(one for one in read_interfaces() if one.name == "lo")
    assert loopback.up
    assert ("127.0.0.1", 8) in loopback.addresses
    assert loopback.index == 1
    snapshot = InterfaceWatcher(current(), include=["lo"]).snapshot()
    assert [local.address for local in snapshot] == ["127.0.0.1"]
