"""Finds the other nodes by multicast DNS, and is found: `_exod._tcp.local.`, one instance per node id.

It announces this node's addresses on the interfaces that have them and reports who else is there. It decides
nothing about peers: what is found here is a rumour until the control plane has authenticated it, and static
peers (static_peers.py) may name the same node. The app runs it, hands it each change of the interfaces, and
gets PeerFound and PeerVanished.

The interfaces change under a running daemon: zeroconf's sockets follow address by address, so that the service
stays registered and the peers' records stay warm. VPNs are left out: they carry no multicast, or carry it to
strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog
from zeroconf import Error, IPVersion, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from exod.daemon_api.discovery_state import DiscoveryState, PeerFound, PeerVanished
from exod.model import Kind, LocalAddress, NodeId
from exod.network.mdns_sender import PacedZeroconf
from exod.plain_text import printable

log = structlog.get_logger()

SERVICE: Final = "_exod._tcp.local."

MOST_PEERS: Final = 256
"""Anyone on the LAN can announce anything. Above this the oldest that is no member goes; clusters have tens of
nodes."""

READ_AT_ONCE: Final = 4
READ_PAUSE_S: Final = 0.01
MOST_UNREAD: Final = 2 * MOST_PEERS
"""How much is read of what others announced before the rest of the daemon has its turn. To read one takes up to a
millisecond, and one packet can announce hundreds. Of more names than these the last ones are left out: 400 a
second are read, so only strangers fill the list."""

DEBOUNCE_S: Final = 0.1
"""Interfaces come up one after the other: one round of announcements for them all."""

REASSERT_S: Final = 60.0
"""How often the sockets are compared with the addresses again: an address that could not be bound once."""

RETRY_S: Final = 5.0
"""After multicast DNS could not be started at all (port 5353 held by a program that does not share it)."""

GOODBYE_S: Final = 1.0
"""zeroconf says goodbye three times within 0.25 s; a daemon that ends waits no longer than this."""

RESOLVE_MS: Final = 3000
"""For the records that a first answer did not bring along."""

READ_AGAIN_S: Final = (1.2, 1.2, 2.4)
"""RFC 6762, 10.2: a record that an announcement replaced stays for 1 s, which the announcement's repetitions begin
anew, and nothing reports when it runs out. So each change is followed by readings until after the last of them."""

TAKE_BACK_AGAIN_S: Final = 1.1
"""RFC 6762, 10.2 again: an announcement replaces no record that is younger than 1 s, and a lost goodbye would leave
an address that is gone to be believed for its 120 s."""

_LONGEST_TEXT: Final = 64
"""For texts of strangers: names of people's machines are shorter."""

_NODE_ID = re.compile(r"[0-9a-f]{16}")


class Announcement(msgspec.Struct, frozen=True):
    """What this node says about itself. `port` is the mesh port, UDP and TCP."""

    node_id: NodeId
    name: str
    incarnation: int
    version: str
    cluster: str
    port: int


class Discovery:
    """Owns the zeroconf instance and the table of who was found. `report` is called on the event loop; `is_member`
    tells whether a node has proven that it belongs to the cluster.
    """

    def __init__(
        self,
        me: Announcement,
        report: Callable[[PeerFound | PeerVanished], None],
        is_member: Callable[[NodeId], bool] = lambda _: False,
    ) -> None:
        self._me = me
        self._report = report
        self._is_member = is_member
        self._wanted: tuple[str, ...] = ()
        self._bound: tuple[str, ...] = ()
        self._gone: set[str] = set()
        """Addresses that went since the last round: even if they are back, their sockets are dead."""
        self._changed = asyncio.Event()
        self._mdns: AsyncZeroconf | None = None
        self._info: ServiceInfo | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._peers: dict[str, PeerFound | None] = {}
        """By instance name; None while its records are incomplete."""
        self._unread: dict[str, tuple[float, ...]] = {}
        """Names whose records are to be read, the oldest first, and after which pauses they are read again."""
        self._reading: asyncio.Handle | None = None
        self._again: dict[str, asyncio.TimerHandle] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._error = ""
        self._hears_itself = False

    def follow(self, addresses: tuple[LocalAddress, ...]) -> None:
        """The eligible addresses are these now. Quick; the work is done by `run`."""
        wanted = announced_addresses(addresses)
        self._gone.update(set(self._wanted) - set(wanted))
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def state(self) -> DiscoveryState:
        peers = tuple(found for found in self._peers.values() if found is not None)
        return DiscoveryState(self._bound, peers, self._error, self._hears_itself)

    async def run(self) -> None:
        """Until cancelled; then says goodbye, within `GOODBYE_S`."""
        # Its warnings concern sockets of interfaces that just went, which is this module's daily life.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        try:
            while True:
                self._changed.clear()
                await self._settle()
                try:
                    async with asyncio.timeout(RETRY_S if self._error else REASSERT_S):
                        await self._changed.wait()
                    await asyncio.sleep(DEBOUNCE_S)
                except TimeoutError:
                    pass
        finally:
            await self._close()

    # --- following the interfaces ---------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Brings zeroconf to the wanted addresses. An error is kept for `state` and tried again."""
        wanted, gone = self._wanted, frozenset(self._gone)
        self._gone.clear()
        try:
            if not wanted:
                await self._stop()
            elif self._mdns is None:
                await self._open(wanted)
            else:
                await self._move(self._mdns, wanted, gone)
        except (OSError, RuntimeError, Error) as error:
            if not self._error:
                log.warning("discovery_failed", error=str(error) or type(error).__name__, addresses=list(wanted))
            self._error = f"multicast DNS does not work: {error or type(error).__name__}"
            await self._stop()
        else:
            if self._bound != wanted:
                log.info("discovery_announces", addresses=list(wanted))
            self._error = ""
            self._bound = wanted

    async def _open(self, addresses: tuple[str, ...]) -> None:
        paced = PacedZeroconf(interfaces=list(addresses), ip_version=IPVersion.V4Only)
        self._mdns = AsyncZeroconf(zc=paced)
        self._info = service_info(self._me, addresses)
        # The name is this node's id: no other node can hold it, so it is not probed for, and a daemon that
        # starts again is heard at once.
        announcing = await self._mdns.async_register_service(self._info, cooperating_responders=True)
        _in_background(announcing)
        self._browser = AsyncServiceBrowser(self._mdns.zeroconf, SERVICE, handlers=[self._on_service])

    async def _move(self, mdns: AsyncZeroconf, addresses: tuple[str, ...], gone: frozenset[str]) -> None:
        """From one set of addresses to another without leaving the service."""
        still_good = [address for address in self._bound if address in addresses and address not in gone]
        if tuple(still_good) != self._bound:
            await mdns.async_update_interfaces(interfaces=still_good)
        before, now = self._info, service_info(self._me, addresses)
        if addresses != self._bound:
            self._info = now
            _in_background(await mdns.async_update_service(now))
        # Announces on what it adds; does nothing where all is as it should be.
        await mdns.async_update_interfaces(interfaces=list(addresses))
        if addresses != self._bound and before is not None:
            take_back(mdns.zeroconf, now, before)
            asyncio.get_running_loop().call_later(TAKE_BACK_AGAIN_S, self._take_back_again, mdns, now, before)

    def _take_back_again(self, mdns: AsyncZeroconf, now: ServiceInfo, before: ServiceInfo) -> None:
        if mdns is self._mdns and now is self._info:
            take_back(mdns.zeroconf, now, before)

    async def _stop(self) -> None:
        """Until there is an interface again. Nothing can be heard meanwhile: all that was found counts as lost."""
        lost = [found.node_id for found in self._peers.values() if found is not None]
        await self._close()
        for node_id in lost:
            self._report(PeerVanished(node_id))

    async def _close(self) -> None:
        """Says goodbye, within `GOODBYE_S`, where there is someone to say it to."""
        mdns, self._mdns = self._mdns, None
        self._bound = ()
        for handle in self._again.values():
            handle.cancel()
        self._again.clear()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._unread.clear()
        for task in self._resolving.values():
            task.cancel()
        self._resolving.clear()
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        self._peers.clear()
        if mdns is not None:
            if isinstance(mdns.zeroconf, PacedZeroconf):
                mdns.zeroconf.leaving = True
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await mdns.async_close()
            except (TimeoutError, OSError) as error:
                log.warning("discovery_goodbye_unsaid", error=str(error) or "no time left")

    # --- hearing others -------------------------------------------------------------------------------------

    def _on_service(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """zeroconf calls it by these names, on the event loop."""
        self._hears_itself = self._hears_itself or name == instance_name(self._me.node_id)
        if state_change is ServiceStateChange.Removed:
            self._forget(name)
            return
        self._read_soon(name, READ_AGAIN_S)

    def _read_soon(self, name: str, then_s: tuple[float, ...]) -> None:
        if name in self._peers or len(self._unread) < MOST_UNREAD:
            self._unread[name] = max(then_s, self._unread.get(name, ()), key=len)
        if self._reading is None:
            self._reading = asyncio.get_running_loop().call_soon(self._read_some)

    def _read_some(self) -> None:
        """The oldest of what waits; the rest after a pause, so that no packet holds the loop."""
        for name in list(itertools.islice(self._unread, READ_AT_ONCE)):
            then_s = self._unread.pop(name)
            if name in self._peers or self._admit(name):
                self._read(name)
                self._read_again_later(name, then_s)
        loop = asyncio.get_running_loop()
        self._reading = loop.call_later(READ_PAUSE_S, self._read_some) if self._unread else None

    def _admit(self, name: str) -> bool:
        if len(self._peers) >= MOST_PEERS and not self._make_room(name):
            return False
        self._peers[name] = None
        return True

    def _make_room(self, newcomer: str) -> bool:
        """The oldest that has not proven to be a member gives way."""
        log.warning("discovery_table_full", newcomer=printable(newcomer, _LONGEST_TEXT), most=MOST_PEERS)
        for name, found in self._peers.items():
            if found is None or not self._is_member(found.node_id):
                self._forget(name)
                return True
        return False

    def _read(self, name: str) -> None:
        if self._mdns is None or name not in self._peers:
            return
        info = AsyncServiceInfo(SERVICE, name)
        if info.load_from_cache(self._mdns.zeroconf):
            self._take(name, info)
        elif name not in self._resolving:
            task = asyncio.create_task(self._resolve(self._mdns, name), name=f"discovery: resolve {name}")
            self._resolving[name] = task

    def _read_again_later(self, name: str, pauses_s: tuple[float, ...]) -> None:
        if name in self._again:
            self._again.pop(name).cancel()
        if pauses_s:
            again = asyncio.get_running_loop().call_later(pauses_s[0], self._read_soon, name, pauses_s[1:])
            self._again[name] = again

    async def _resolve(self, mdns: AsyncZeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            with contextlib.suppress(OSError):
                if await info.async_request(mdns.zeroconf, RESOLVE_MS) and name in self._peers:
                    self._take(name, info)
        finally:
            self._resolving.pop(name, None)

    def _take(self, name: str, info: ServiceInfo) -> None:
        found = read_announcement(
            name, info.decoded_properties, info.parsed_addresses(IPVersion.V4Only), info.port, self._me.cluster
        )
        if found is not None and found.node_id == self._me.node_id:
            # Another host with this node's id: only the control plane can tell whether that is so.
            elsewhere = tuple(one for one in found.addresses if one not in self._bound)
            found = msgspec.structs.replace(found, addresses=elsewhere) if elsewhere else None
        if found is None or found == self._peers[name]:
            return
        log.info("discovery_found", peer=found.node_id, name=found.name, addresses=list(found.addresses))
        self._peers[name] = found
        self._report(found)

    def _forget(self, name: str) -> None:
        self._unread.pop(name, None)
        if name in self._again:
            self._again.pop(name).cancel()
        if name in self._resolving:
            self._resolving.pop(name).cancel()
        found = self._peers.pop(name, None)
        if found is not None:
            log.info("discovery_lost", peer=found.node_id, name=found.name)
            self._report(PeerVanished(found.node_id))


# --- what is announced, and what is believed: pure ----------------------------------------------------------


def announced_addresses(addresses: Sequence[LocalAddress]) -> tuple[str, ...]:
    """Where multicast DNS speaks and what it announces: no VPNs, and loopback only where there is nothing else,
    because a peer that gets 127.0.0.1 finds itself there.
    """
    reaching = [one.address for one in addresses if one.kind not in {Kind.VPN, Kind.LOOPBACK}]
    loopback = [one.address for one in addresses if one.kind is Kind.LOOPBACK]
    return tuple(sorted(set(reaching or loopback)))


def instance_name(node_id: NodeId) -> str:
    return f"{node_id}.{SERVICE}"


def service_info(me: Announcement, addresses: Sequence[str]) -> ServiceInfo:
    """The records of this node. The host name is its own, so that two nodes on one host do not share it."""
    return ServiceInfo(
        SERVICE,
        instance_name(me.node_id),
        port=me.port,
        properties={
            "id": me.node_id,
            "name": me.name[:_LONGEST_TEXT],
            "incarnation": str(me.incarnation),
            "version": me.version,
            "cluster": me.cluster,
        },
        server=f"exod-{me.node_id}.local.",
        parsed_addresses=list(addresses),
    )


def read_announcement(
    name: str,
    properties: Mapping[str, str | None],
    addresses: Sequence[str],
    port: int | None,
    cluster: str,
) -> PeerFound | None:
    """A stranger's records -> PeerFound; None for another cluster's node and for anything malformed."""
    node_id = properties.get("id") or ""
    incarnation = properties.get("incarnation") or ""
    if properties.get("cluster") != cluster or instance_name(NodeId(node_id)) != name:
        return None
    if _NODE_ID.fullmatch(node_id) is None or re.fullmatch(r"[0-9]{1,18}", incarnation) is None:
        return None
    if not port or not addresses:
        return None
    label = (properties.get("name") or node_id)[:_LONGEST_TEXT]
    return PeerFound(
        node_id=NodeId(node_id),
        name=label if label.isprintable() else node_id,
        addresses=tuple(sorted(set(addresses))),
        port=port,
        incarnation=int(incarnation),
    )


def take_back(zeroconf: Zeroconf, now: ServiceInfo, before: ServiceInfo) -> None:
    """One announcement with the new addresses and a goodbye (TTL 0) for each that went."""
    staying = set(now.parsed_addresses())
    announcement = zeroconf.generate_service_broadcast(now, None)
    for record, address in zip(before.dns_addresses(override_ttl=0), before.parsed_addresses(), strict=True):
        if address not in staying:
            announcement.add_answer_at_time(record, 0)
    zeroconf.async_send(announcement)


_announcing: set[asyncio.Future[object]] = set()
"""Keeps rounds of announcements alive: an event loop holds its tasks only weakly."""


def _in_background(round_: object) -> None:
    if isinstance(round_, asyncio.Future):
        _announcing.add(round_)
        round_.add_done_callback(_announcing.discard)
