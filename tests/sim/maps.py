"""Maps: which hosts are wired how. The map of issue 2's lab, for any number of hosts."""

from __future__ import annotations

from itertools import combinations

from exod.core.base.config import CoreConfig
from exod.model import LocalAddress
from tests.sim.network import CABLE, LAN, MEDIA, VPN, Medium
from tests.sim.world import World


def lab(
    seed: int,
    nodes: int,
    *,
    media: tuple[Medium, ...] = MEDIA,
    config: CoreConfig | None = None,
    engines: int | None = None,
) -> World:
    world = World(seed, nodes, config=config, engines=engines)
    wire_up(world, media)
    return world


def wire_up(world: World, media: tuple[Medium, ...] = MEDIA) -> None:
    """Each pair has a cable of its own; all share one LAN and one VPN. The LAN is the quicker one to a probe."""
    if CABLE in media:
        for one, other in combinations(world.hosts, 2):
            here, there = f"10.{one.place}.{other.place}.1", f"10.{one.place}.{other.place}.2"
            for host, address, far in ((one, here, other), (other, there, one)):
                interface = "bridge0" if len(world.hosts) == 2 else f"bridge{far.place}"
                host.addresses.append(LocalAddress(interface, CABLE.kind, address, 30))
            world.network.join(here, there, CABLE)
    for medium, prefix in ((LAN, "192.168.1"), (VPN, "100.64.0")):
        if medium not in media:
            continue
        for host in world.hosts:
            host.addresses.append(LocalAddress(medium.interface, medium.kind, f"{prefix}.{host.place + 1}", 24))
        for one, other in combinations(world.hosts, 2):
            world.network.join(f"{prefix}.{one.place + 1}", f"{prefix}.{other.place + 1}", medium)
    for host in world.hosts:
        for address in host.addresses:
            world.by_address[address.address] = host
    world.control.begin()
