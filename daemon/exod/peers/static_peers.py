"""Peers that the config names (`[cluster] peers`): `host:port`, looked up again and again.

Reports where each is now; whether somebody answers there is the control plane's business. A host name is
resolved to its IPv4 addresses, because exod speaks IPv4 alone. The app runs it.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from exod.model import is_ipv4

log = structlog.get_logger()

FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
"""A name that does not resolve: 1 s, doubled up to this. Network and resolver come up after the daemon does."""

AGAIN_S: Final = 60.0
"""A name that does resolve is asked for again: addresses of DHCP and dynamic DNS move."""

LOOKUP_S: Final = 10.0
"""A resolver without a network can hang for half a minute."""

Lookup = Callable[[str], Awaitable[Sequence[str]]]


class StaticPeer(msgspec.Struct, frozen=True):
    """One entry of `[cluster] peers` and where it is now. No address: the name does not resolve (any more)."""

    entry: str
    addresses: tuple[str, ...]
    port: int


class StaticPeers:
    """One task for each entry with a host name; entries with an address are reported once."""

    def __init__(
        self, entries: Sequence[str], report: Callable[[StaticPeer], None], lookup: Lookup | None = None
    ) -> None:
        self._entries = tuple(dict.fromkeys(entries))
        self._report = report
        self._lookup = lookup if lookup is not None else lookup_ipv4

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for entry in self._entries:
                host, _, port = entry.rpartition(":")
                if is_ipv4(host):
                    self._report(StaticPeer(entry, (host,), int(port)))
                else:
                    tasks.create_task(self._follow(entry, host, int(port)), name=f"static peer {entry}")

    async def _follow(self, entry: str, host: str, port: int) -> None:
        known: tuple[str, ...] | None = None
        retry_s = FIRST_RETRY_S
        while True:
            addresses, error = await self._look_up(host)
            if addresses:
                retry_s = FIRST_RETRY_S
                wait_s = AGAIN_S
            else:
                wait_s, retry_s = retry_s, min(2 * retry_s, LONGEST_RETRY_S)
            # One failed lookup says nothing about the peer: what was known stays, and is tried on.
            if addresses and addresses != known:
                log.info("static_peer_resolved", peer=entry, addresses=list(addresses))
                known = addresses
                self._report(StaticPeer(entry, addresses, port))
            elif not addresses and known is None:
                log.warning("static_peer_unresolved", peer=entry, error=error, retry_s=wait_s)
                known = ()
                self._report(StaticPeer(entry, (), port))
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))

    async def _look_up(self, host: str) -> tuple[tuple[str, ...], str]:
        try:
            async with asyncio.timeout(LOOKUP_S):
                return tuple(sorted(set(await self._lookup(host)))), ""
        except TimeoutError:
            return (), f"no answer from the resolver within {LOOKUP_S:g} s"
        except (OSError, UnicodeError) as error:
            return (), str(error)


async def lookup_ipv4(host: str) -> Sequence[str]:
    """The system's resolver, in its own thread. Raises OSError where there is no such name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
