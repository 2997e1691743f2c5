"""Which addresses of peers are dialled: those that mDNS found, that a person configured, and that were seen before.

Keeps what each source said last and tells the control plane the difference. It connects to nothing by itself, and
an address is no proof of anything: who answers there must hold the cluster key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Final, Protocol

from exod.daemon_api.discovery_state import PeerFound, PeerVanished
from exod.model import LocalAddress, NodeId
from exod.peers.peer_addresses import Remembered
from exod.peers.static_peers import StaticPeer

MAX_PEER_ADDRESSES: Final = 8
"""Addresses of one discovered peer that are dialled: interfaces of a Mac with everything plugged in."""


class Dialler(Protocol):
    def contact(self, address: str, port: int, name: str, *, rumour: bool = False) -> None: ...

    def forget_contact(self, address: str, port: int) -> None: ...


class Contacts:
    """`on_routes_changed` is called when a static peer's addresses changed: `routed` may answer otherwise then."""

    def __init__(self, dialler: Dialler, on_routes_changed: Callable[[], None]) -> None:
        self._dialler, self._on_routes_changed = dialler, on_routes_changed
        self._own: tuple[LocalAddress, ...] = ()
        self._found: dict[NodeId, PeerFound] = {}
        self._believed: dict[NodeId, frozenset[tuple[str, int]]] = {}
        """Of those found, where they are dialled."""
        self._static: dict[str, StaticPeer] = {}

    def remembered(self, entries: Iterable[Remembered]) -> None:
        for entry in entries:
            for address in entry.addresses:
                self._dialler.contact(address, entry.port, entry.name)

    def follow(self, own: tuple[LocalAddress, ...]) -> None:
        """The eligible addresses of this host are these now."""
        self._own = own
        for report in self._found.values():
            self._dial(report)

    def discovered(self, report: PeerFound | PeerVanished) -> None:
        if isinstance(report, PeerFound):
            self._found[report.node_id] = report
            self._dial(report)
        elif self._found.pop(report.node_id, None) is not None:
            for place in self._believed.pop(report.node_id, frozenset()):
                self._dialler.forget_contact(*place)

    def _dial(self, report: PeerFound) -> None:
        """In a subnet of this host's own: multicast DNS comes from there, and a node that names another address
        sends us to somebody else's host.
        """
        near = [one for one in report.addresses if any(IPv4Address(one) in own.network for own in self._own)]
        now = frozenset((address, report.port) for address in near[:MAX_PEER_ADDRESSES])
        before = self._believed.get(report.node_id, frozenset())
        self._believed[report.node_id] = now
        for address, port in sorted(now):
            self._dialler.contact(address, port, report.name, rumour=True)
        for place in before - now:
            self._dialler.forget_contact(*place)

    def static_peer(self, peer: StaticPeer) -> None:
        before = self._static.get(peer.entry)
        self._static[peer.entry] = peer
        for address in peer.addresses:
            self._dialler.contact(address, peer.port, peer.entry)
        if before is not None:
            self._forget(before.addresses, peer.addresses, peer.port)
        self._on_routes_changed()

    def _forget(self, before: tuple[str, ...], now: tuple[str, ...], port: int) -> None:
        for address in before:
            if address not in now:
                self._dialler.forget_contact(address, port)

    def routed(self, own: Iterable[LocalAddress]) -> tuple[str, ...]:
        """Static peers that lie in no subnet of `own`: reached through a router."""
        networks = [address.network for address in own]
        remotes = {address for peer in self._static.values() for address in peer.addresses}
        return tuple(sorted(one for one in remotes if not any(IPv4Address(one) in net for net in networks)))
