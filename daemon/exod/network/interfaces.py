"""Watches this host's interfaces and tells which of their addresses the mesh may use now.

The kernel wakes it (netlink, the routing socket), a slow poll catches what the kernel did not say. It decides
nothing itself: kinds come from the platform, eligibility from interface_rules.py. The app runs it and hands
each change to the core, to probing and to discovery.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import ifaddr
import psutil
import structlog

from exod.daemon_api.shapes import InterfaceLine
from exod.model import Kind, LocalAddress
from exod.network.interface_rules import InterfaceRules, SeenInterface, Verdict, judge, without_doubles
from exod.platform.system import Platform

log = structlog.get_logger()

DEBOUNCE_S: Final = 0.02
"""A change comes as a burst of messages: link, address, route. The first one starts this wait, and no later
one prolongs it, so that the reaction is never later than this."""

POLL_S: Final = 5.0
"""For hosts without a change socket. A look costs half a millisecond, more where there are many interfaces."""

SAFETY_POLL_S: Final = 30.0
"""For what no message announced although there is a change socket: none is known, so it is looked for seldom."""

AGAIN_S: Final = 1.0
"""Where a look failed, or what it showed could not be followed: an interface vanished meanwhile, or no descriptor
was left. Either is over soon."""

REFRESH_S: Final = 300.0
"""How often the platform's tools are asked again where no interface came or went: a service that a person
disabled. Four short commands on macOS."""

_DRAIN_LIMIT: Final = 256
"""Messages thrown away in one go: what they say is read from the system afterwards anyway."""


class InterfaceWatcher:
    """Owns the last look at the interfaces. `read` is the system's view, replaced in tests."""

    def __init__(
        self,
        platform: Platform,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        kinds: Mapping[str, Kind] | None = None,
        read: Callable[[], tuple[SeenInterface, ...]] | None = None,
    ) -> None:
        self._platform = platform
        self._rules = InterfaceRules(tuple(include), tuple(exclude), dict(kinds or {}))
        self._read = read if read is not None else read_interfaces
        self._seen: tuple[SeenInterface, ...] = ()
        self._verdicts: tuple[Verdict, ...] | None = None
        self._changed = asyncio.Event()
        self._refresh_wanted = asyncio.Event()
        self._poll_s = SAFETY_POLL_S

    async def run(self, on_change: Callable[[tuple[LocalAddress, ...]], None]) -> None:
        """Until cancelled. Calls `on_change` once at the start, with no address at all if there is none, and
        then whenever the eligible addresses or their kinds have changed. Where an interface was replaced by
        another of the same name and addresses between two looks, it is reported as gone first, then as there:
        sockets and multicast memberships belong to the old one.
        """
        await self._platform.refresh()
        loop = asyncio.get_running_loop()
        sock = self._platform.open_change_socket()
        if sock is None:
            self._poll_s = POLL_S
            log.warning("interfaces_polled_only", every_s=POLL_S)
        else:
            loop.add_reader(sock, self._drain, sock)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._refresh_platform(), name="interfaces: ask the system's tools")
                await self._follow(on_change)
        finally:
            if sock is not None:
                loop.remove_reader(sock)
                sock.close()

    def snapshot(self) -> tuple[LocalAddress, ...]:
        """The addresses that the mesh may use, as last seen; looks once where nobody has yet."""
        return tuple(sorted(local for verdict in self.verdicts() for local in verdict.usable))

    def verdicts(self) -> tuple[Verdict, ...]:
        """All interfaces of this host, each with its kind and whether it is eligible."""
        if self._verdicts is None:
            self._look()
        return self._verdicts or ()

    def lines(self) -> tuple[InterfaceLine, ...]:
        """The same, as `exoctl netcheck` shows it."""
        return tuple(
            InterfaceLine(
                name=verdict.name,
                kind=verdict.kind,
                kind_source=verdict.kind_why,
                up=verdict.up,
                addresses=tuple(f"{address}/{prefix}" for address, prefix in verdict.addresses),
                eligible=bool(verdict.usable),
                why=verdict.why,
            )
            for verdict in self.verdicts()
        )

    async def _follow(self, on_change: Callable[[tuple[LocalAddress, ...]], None]) -> None:
        known: tuple[LocalAddress, ...] | None = None
        indexes: dict[str, int] = {}
        while True:
            is_seen, is_followed = self._look(), True
            now = self.snapshot()
            before, indexes = indexes, {one.name: one.index for one in self._seen}
            replaced = {name for name, index in indexes.items() if before.get(name, index) != index}
            if known is not None and any(one.interface in replaced for one in known):
                known = tuple(one for one in known if one.interface not in replaced)
                is_followed &= _follows(known, on_change)
            if now != known:
                log.info("interfaces_changed", addresses=[f"{one.interface}={one.address}" for one in now])
                known = now
                is_followed &= _follows(now, on_change)
            if not is_followed:
                known = None
            try:
                async with asyncio.timeout(self._poll_s if is_seen and is_followed else AGAIN_S):
                    await self._changed.wait()
                await asyncio.sleep(DEBOUNCE_S)
            except TimeoutError:
                pass
            self._changed.clear()

    def _look(self) -> bool:
        """False where nothing could be seen."""
        try:
            seen = self._read()
        except OSError as error:
            # An interface vanished between two system calls of one look, or no descriptor is left.
            log.debug("interfaces_unreadable", error=str(error))
            self._verdicts = self._verdicts or ()
            return False
        if {one.name for one in seen} != {one.name for one in self._seen}:
            self._refresh_wanted.set()
        self._seen = seen
        self._verdicts = without_doubles([self._judge(one) for one in seen])
        return True

    def _judge(self, seen: SeenInterface) -> Verdict:
        found = self._platform.classify(seen.name, [address for address, _ in seen.addresses])
        return judge(seen, found, self._rules)

    async def _refresh_platform(self) -> None:
        """Commands take their time: a change is reported first by what is known, then corrected."""
        while True:
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._refresh_wanted.wait()
            except TimeoutError:
                pass
            self._refresh_wanted.clear()
            if await self._platform.refresh():
                self._changed.set()

    def _drain(self, sock: socket.socket) -> None:
        self._changed.set()
        for _ in range(_DRAIN_LIMIT):
            try:
                sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: messages were lost, which is a change like any other.
                log.debug("interface_messages_lost", error=str(error))
                return


def _follows(addresses: tuple[LocalAddress, ...], on_change: Callable[[tuple[LocalAddress, ...]], None]) -> bool:
    try:
        on_change(addresses)
    except OSError as error:
        log.warning("addresses_not_followed", error=error.strerror, again_s=AGAIN_S)
        return False
    return True


def read_interfaces() -> tuple[SeenInterface, ...]:
    """This host's interfaces now, by name. Raises OSError where one vanishes meanwhile."""
    addresses: dict[str, list[tuple[str, int]]] = {}
    with_ipv6: set[str] = set()
    indexes: dict[str, int] = {}
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        indexes[str(adapter.nice_name)] = adapter.index or 0
        for entry in adapter.ips:
            # Linux labels additional addresses `eth0:1`: the interface is `eth0`.
            name = str(entry.nice_name).partition(":")[0]
            if isinstance(entry.ip, str):
                addresses.setdefault(name, []).append((entry.ip, entry.network_prefix))
            else:
                with_ipv6.add(name)
    return tuple(
        SeenInterface(
            name, state.isup, tuple(sorted(set(addresses.get(name, ())))), indexes.get(name, 0), name in with_ipv6
        )
        for name, state in sorted(psutil.net_if_stats().items())
    )
