"""Many nodes on one LAN: how long until they have a plan, and what it costs each of them.

All start within half a second. A control connection exists from when both ends live.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.maps import lab
from tests.sim.network import LAN

STARTS_WITHIN_S = 0.5
PLAN_WITHIN_S = 30.0
SETTLES_S = 5.0
"""Bursts and reports of the beginning are over by then."""
STEADY_S = 20.0


@dataclass(frozen=True)
class Crowd:
    """Figures of one LAN; datagrams and messages are per node."""

    nodes: int
    plan_after_s: float
    """From when the last node started until one plan with all of them was in force everywhere."""
    datagrams: float
    """Until then."""
    messages: float
    steady_datagrams_per_s: float

    def text(self) -> str:
        return (
            f"{self.nodes} nodes: one plan in force everywhere {self.plan_after_s:.2f} s after the last start; "
            f"until then {self.datagrams:.0f} datagrams and {self.messages:.0f} control messages a node; "
            f"from then on {self.steady_datagrams_per_s:.0f} datagrams a second and node"
        )


def gather(nodes: int, seed: int = 0) -> Crowd:
    """Raises AssertionError where they do not agree."""
    world = lab(seed, nodes, media=(LAN,))
    starts = [world.rng.uniform(0.0, STARTS_WITHIN_S) for _ in world.hosts]
    for host, at in zip(world.hosts, starts, strict=True):
        world.at(at, host.start)

    def agreed() -> bool:
        if len({host.running for host in world.hosts}) != 1 or world.hosts[0].running is None:
            return False
        core = world.hosts[0].core
        return core is not None and core.mesh.committed is not None and len(core.mesh.committed.members) == nodes

    assert world.run_while(agreed, PLAN_WITHIN_S), f"{nodes} nodes have no plan after {PLAN_WITHIN_S:g} s"
    after_s, datagrams, messages = world.now - max(starts), world.datagrams, world.messages
    world.run(world.now + SETTLES_S)
    before = world.datagrams
    world.run(world.now + STEADY_S)
    steady = (world.datagrams - before) / STEADY_S / nodes
    return Crowd(nodes, after_s, datagrams / nodes, messages / nodes, steady)
