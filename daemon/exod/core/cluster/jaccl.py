"""MLX's configuration of JACCL (RDMA over Thunderbolt 5), from which port is cabled to which. Pure.

exod's own ranks speak the ring; this is for people who run another program over the same cables. The shape is that
of `mlx.launch --backend jaccl --hostfile FILE`, whose `rdma` rows are the matrix of MLX_IBV_DEVICES. Written from
MLX 0.32's own generator and tested as data: no Mac with RDMA has run it. Decides which cable serves which pair, and
says why there is no configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import msgspec

from exod.model import Kind, NodeCard, ThunderboltPort

_ADDRESS_KINDS = (Kind.ETHERNET, Kind.WIFI, Kind.THUNDERBOLT, Kind.OTHER, Kind.VPN)
"""Of the address where ranks meet before RDMA begins: best one that every node reaches and RDMA does not use."""


class NotCabledError(ValueError):
    """There is no cable between each two nodes, or it is not known where it ends. One line for people."""


class CabledNode(msgspec.Struct, frozen=True):
    name: str
    address: str
    """Where rank 0 takes the others' connections."""
    ports: tuple[ThunderboltPort, ...]


class JacclHost(msgspec.Struct, frozen=True):
    ssh: str
    ips: tuple[str, ...]
    rdma: tuple[str | tuple[str, ...] | None, ...]
    """For each rank the device, or devices, of the cables to it; None for itself."""


class JacclHostfile(msgspec.Struct, frozen=True):
    backend: str
    envs: tuple[str, ...]
    hosts: tuple[JacclHost, ...]


def meeting_address(card: NodeCard) -> str:
    """Empty where the node has no address."""
    known = [one for one in card.addresses if one.kind in _ADDRESS_KINDS]
    best = min(known, key=lambda one: (_ADDRESS_KINDS.index(one.kind), one), default=None)
    return best.address if best is not None else ""


def hostfile(nodes: Sequence[CabledNode]) -> JacclHostfile:
    """For these ranks in this order. Every pair gets as many cables as the pair with the fewest has. Raises
    NotCabledError.
    """
    if len(nodes) < 2:
        raise NotCabledError("JACCL joins two nodes or more, and this one is alone")
    if silent := ", ".join(node.name for node in nodes if not node.ports):
        raise NotCabledError(f"no Thunderbolt port is known on {silent}: the system has none, or does not tell")
    cables = {(i, j): _cables(nodes[i], nodes[j]) for i, j in combinations(range(len(nodes)), 2)}
    if missing := [f"{nodes[i].name} and {nodes[j].name}" for (i, j), found in cables.items() if not found]:
        raise NotCabledError(
            f"no Thunderbolt cable is known between {', '.join(missing)}: JACCL needs one between each two nodes"
        )
    count = min(map(len, cables.values()))
    devices: dict[tuple[int, int], str | tuple[str, ...]] = {}
    for (i, j), found in cables.items():
        for end, pair in enumerate(permutations((i, j))):
            names = tuple(f"rdma_{cable[end]}" for cable in found[:count])
            devices[pair[0], pair[1]] = names[0] if count == 1 else names
    return JacclHostfile(
        backend="jaccl",
        envs=(),
        hosts=tuple(
            JacclHost(node.name, (node.address,), tuple(devices.get((i, j)) for j in range(len(nodes))))
            for i, node in enumerate(nodes)
        ),
    )


def _cables(here: CabledNode, there: CabledNode) -> list[tuple[str, str]]:
    """The interfaces at both ends of each cable, in an order that both ends share. A port whose interface is not
    known carries nothing; where a bus of several ports does not say which one is cabled, the other end must.
    """
    ends = [
        (mine.interface, theirs.interface)
        for mine in here.ports
        for theirs in there.ports
        if mine.interface and theirs.interface and _are_joined(mine, theirs)
    ]
    firsts, seconds = [end for end, _ in ends], [end for _, end in ends]
    return sorted(end for end in ends if firsts.count(end[0]) == 1 and seconds.count(end[1]) == 1)


def _are_joined(mine: ThunderboltPort, theirs: ThunderboltPort) -> bool:
    """Each end that names its peer names the other; at least one does."""
    return (
        bool(mine.domain and theirs.domain)
        and (mine.peer_domain or theirs.peer_domain) != ""
        and mine.peer_domain in ("", theirs.domain)
        and theirs.peer_domain in ("", mine.domain)
        and mine.connected is not False
        and theirs.connected is not False
    )
