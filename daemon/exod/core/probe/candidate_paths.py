"""Which paths a pair could have: a pure function of the two cards, the same at both ends.

A candidate is a pair of IPv4 addresses that lie in one subnet as both ends see it, or that a static peer names
through a router. Decides nothing about whether a candidate works: probing does.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

import msgspec

from exod.core.probe.datagram import MAX_PATHS
from exod.model import KIND_PREFERENCE, Kind, LocalAddress, NodeCard, PathId, path_id


class Candidate(msgspec.Struct, frozen=True):
    path: PathId
    local: LocalAddress
    remote: LocalAddress
    kind: Kind
    """The less preferred of the two ends' kinds: a path is no better than its worse end."""
    routed: bool
    """Through a router, because a static peer names the address; not in a common subnet."""


@lru_cache(maxsize=4096)
def _parse(address: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(address)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _network(address: str, prefix: int) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network((address, prefix), strict=False)
    except ValueError:
        return None


def candidate_paths(mine: NodeCard, theirs: NodeCard) -> tuple[Candidate, ...]:
    """At most 16 candidates, best kinds first, the same PathIds whichever end asks."""
    found: dict[PathId, Candidate] = {}
    for local in _usable(mine):
        for remote in _usable(theirs):
            routed = _relation(mine, local, theirs, remote)
            if routed is None:
                continue
            candidate = Candidate(
                path=_common_name(mine, local, theirs, remote),
                local=local,
                remote=remote,
                kind=max(local.kind, remote.kind, key=KIND_PREFERENCE.__getitem__),
                routed=routed,
            )
            # `_usable` is sorted: of an address that two interfaces carry, the preferred one stays.
            found.setdefault(candidate.path, candidate)
    return tuple(sorted(found.values(), key=_place)[:MAX_PATHS])


def _usable(card: NodeCard) -> list[LocalAddress]:
    addresses = []
    for address in card.addresses:
        parsed = _parse(address.address)
        if (
            parsed is None
            or parsed.is_unspecified
            or parsed.is_multicast
            or _network("0.0.0.0", address.prefix) is None
        ):
            continue
        addresses.append(address)
    return sorted(addresses, key=lambda one: (KIND_PREFERENCE[one.kind], one.interface, one.address))


def _relation(mine: NodeCard, local: LocalAddress, theirs: NodeCard, remote: LocalAddress) -> bool | None:
    """False: one subnet. True: routed. None: no candidate."""
    here, there = _parse(local.address), _parse(remote.address)
    assert here is not None
    assert there is not None
    if here.is_loopback or there.is_loopback:
        # Two nodes of one host: they differ in the address or in the port they listen on.
        both = here.is_loopback and there.is_loopback
        return False if both and (here != there or mine.mesh_port != theirs.mesh_port) else None
    if here == there:
        return None  # a private bridge that both hosts number alike (docker0): no way between them
    my_network = _network(local.address, local.prefix)
    their_network = _network(remote.address, remote.prefix)
    if my_network is not None and their_network is not None and there in my_network and here in their_network:
        return False
    # A VPN gives each host a /32 of its own (Tailscale on macOS): the overlay routes between all of them, and the
    # route check finds out where two hosts are on different ones.
    named = remote.address in mine.pair_routes or local.address in theirs.pair_routes
    named |= local.kind is Kind.VPN and remote.kind is Kind.VPN
    if named and not here.is_link_local and not there.is_link_local:
        return True
    return None


def _common_name(mine: NodeCard, local: LocalAddress, theirs: NodeCard, remote: LocalAddress) -> PathId:
    if mine.id < theirs.id:
        return path_id(local.address, remote.address)
    return path_id(remote.address, local.address)


def _place(candidate: Candidate) -> tuple[bool, int, bool, str]:
    """Where a candidate stands when there are more than a datagram can report. Alike at both ends."""
    here = _parse(candidate.local.address)
    return (
        candidate.routed,
        KIND_PREFERENCE[candidate.kind],
        here is not None and here.is_link_local,
        candidate.path,
    )
