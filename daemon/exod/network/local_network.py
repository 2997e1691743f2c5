"""Asks macOS by one multicast datagram for each interface whether exod may use the local network.

The daemon itself must ask: what a Terminal starts is exempt. Refused probes and dials are handed in beside. The
judgement is core/status/local_network.py's. Nothing is sent on other systems. Never raises: a socket that cannot be
made says nothing about privacy.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

import structlog

from exod.core.status.local_network import EHOSTUNREACH, LocalNetworkWatch
from exod.model import Event, Kind, LocalAddress, NodeId
from exod.platform.system import Platform

log = structlog.get_logger()

EVERY_S: Final = 10.0
"""Four checks span the 30 s after which a refusal counts; a permission that was given shows as soon."""

MDNS: Final = ("224.0.0.251", 5353)
"""Multicast DNS's group: what macOS's own documentation of the privacy control names as local."""

EMPTY_QUERY: Final = bytes(12)
"""A DNS header that asks nothing (RFC 1035, 4.1.1): responders drop it."""

Send = Callable[[Platform, LocalAddress], int]
"""Sends one datagram from this address; returns 0 or the errno."""


def send_multicast(platform: Platform, local: LocalAddress) -> int:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            platform.bind_to_interface(sock, local.interface)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(local.address))
            sock.sendto(EMPTY_QUERY, MDNS)
    except OSError as error:
        return error.errno or -1
    return 0


class LocalNetwork:
    """What is known of this daemon's access. `emit` takes the event of the first answer after the start."""

    def __init__(
        self,
        platform: Platform,
        me: NodeId,
        emit: Callable[[Event], None],
        send: Send = send_multicast,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._platform, self._me, self._emit = platform, me, emit
        self._send, self._clock = send, clock
        self._addresses: tuple[LocalAddress, ...] = ()
        self._by_address: dict[str, str] = {}
        self._watch = LocalNetworkWatch()
        self._told = False
        self._applies = platform.local_network_privacy_suspected(EHOSTUNREACH)
        """Does this system have such a thing?"""

    @property
    def text(self) -> str:
        return self._watch.text

    def follow(self, addresses: tuple[LocalAddress, ...]) -> None:
        """The addresses that the mesh may use. VPNs and loopback are not local to macOS."""
        self._addresses = tuple(one for one in addresses if one.kind not in {Kind.VPN, Kind.LOOPBACK})
        self._by_address = {one.address: one.interface for one in self._addresses}
        self._watch.follow(one.interface for one in self._addresses)

    def refused(self, local_address: str, errno: int) -> None:
        """A probe or a dial from this address failed."""
        interface = self._by_address.get(local_address)
        if interface is not None and self._applies:
            self._watch.refused(interface, errno, self._clock())

    async def run(self) -> None:
        """Until cancelled."""
        while self._applies:
            self.check()
            await asyncio.sleep(EVERY_S)

    def check(self) -> None:
        """One datagram for each interface, now."""
        results: dict[str, int] = {}
        for local in self._addresses:
            if results.get(local.interface, -1) != 0:
                results[local.interface] = self._send(self._platform, local)
        for interface, errno in results.items():
            if errno == 0:
                self._watch.left(interface)
            else:
                self._watch.refused(interface, errno, self._clock())
        verdict = self._watch.verdict
        if verdict is not None and not self._told:
            self._told = True
            log.info("local_network_checked", allowed=verdict, interfaces=sorted(results))
            data: dict[str, object] = {"allowed": verdict, "text": self.text}
            self._emit(Event(0.0, "local_network.checked", self._me, data))
