"""One scenario: a map, a staggered start, some faults, then peace, and what must then come true.

Everything follows from the seed. Invariants 10 (agreed within a bound once faults stop) and 11 (the cable wins once
it is stable) are judged here, the others after every event by invariants.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from exod.core.base.config import CoreConfig
from exod.core.pair.token_bucket import BUCKET_WINDOW_S
from exod.model import MeshState
from tests.sim.chaos import FAULTS
from tests.sim.invariants import InvariantBrokenError
from tests.sim.maps import lab
from tests.sim.network import CABLE, LAN, VPN
from tests.sim.world import World

STORM_S = 6.0
AGREED_WITHIN_S = 16.0
"""Invariant 10. A member that was left out of a proposal is asked again after 10 s, a silent one waited for 3 s."""
CABLE_WITHIN_S = 8.0
"""Invariant 11 for a path that has not relapsed and a bucket that has a token: recovery 2 s, hold-up 3 s, slack."""
QUIET_CABLE_WITHIN_S = 40.0
"""The same where pairs exist that share no ring edge: their losses are 50 deep, at 4 a second or fewer."""


@dataclass(frozen=True)
class Outcome:
    seed: int
    nodes: int
    faults: tuple[str, ...]
    agreed_after_s: float
    datagrams: int
    agreements: int
    declared_dead: int
    switches: dict[str, int]
    rejected: dict[str, int]


def build(seed: int) -> tuple[World, list[str], float]:
    """The world of a seed with its faults scheduled. Returns their names and when the last one may end."""
    rng = random.Random(seed * 2_654_435_761 + 1)
    nodes = rng.choices((2, 3, 4, 5), (70, 20, 6, 4))[0]
    media = rng.choices(((CABLE, LAN, VPN), (CABLE, LAN), (CABLE, VPN)), (8, 1, 1))[0]
    engines = rng.choice((None, None, None, nodes - 1))
    world = lab(seed, nodes, media=media, engines=engines, config=CoreConfig())
    spread = rng.choice((0.0, 0.2, 2.0))
    for host in world.hosts:
        world.at(rng.uniform(0.0, spread), host.start)
    names = []
    for _ in range(rng.randint(1, 5)):
        fault = rng.choices([kind for kind, _ in FAULTS], [weight for _, weight in FAULTS])[0]
        world.at(rng.uniform(0.5, STORM_S), fault, world, random.Random(rng.getrandbits(32)))
        names.append(fault.__name__)
    return world, names, STORM_S + 0.5


def make_peace(world: World) -> None:
    """All faults stop. Timers of faults that would have ended later find nothing left to mend."""
    world.tell(None, "PEACE: everything works from here on")
    for _, wire in world.wires():
        if wire.impaired or wire.delay_s != wire.medium.delay_s:
            wire.spoiled_until = max(wire.spoiled_until, world.now + 2.0)
        wire.heal()
    for host in world.hosts:
        host.routes.clear()
        if host.hidden:
            host.hidden.clear()
            host.show_card(host.life)
        host.thaw()
        if host.core is None:
            host.start()


def agreed(world: World) -> bool:
    """All pairs agreed, one plan in force everywhere, naming everyone."""
    plans = set()
    for host in world.hosts:
        core = host.core
        if core is None or core.mesh.state is not MeshState.AGREED or core.mesh.committed is None:
            return False
        if not all(link.agreed for link in core.links.values()) or len(core.links) != len(world.hosts) - 1:
            return False
        plans.add(core.mesh.committed.hash)
        if len(core.mesh.committed.members) != len(world.hosts) or host.running != core.mesh.committed.hash:
            return False
    return len(plans) == 1


def on_cable(world: World) -> bool:
    """Every pair uses its cable, but for those whose selector has past flapping to wait for."""
    for host in world.hosts:
        core = host.core
        if core is None:
            return False
        for link in core.links.values():
            path = link.selected_path
            if not link.selects or (path is not None and path.candidate.kind is CABLE.kind):
                continue
            cable = next((one for one in link.paths if one.candidate.kind is CABLE.kind), None)
            if cable is None:
                return False  # its address is just coming back
            patient = link.selector.hold_up_s(cable.candidate.path) > world.config.hold_up_s
            if not (patient or link.selector.bucket_empty(host.local(world.now))):
                return False
    return True


def calm(seconds: float, seed: int) -> dict[str, int]:
    """Two nodes, 1% loss and up to 4 ms of jitter each way on every path. Returns the switches, by their cause."""
    world = lab(seed, 2)
    for host in world.hosts:
        host.start()
    for _, wire in world.wires():
        wire.loss, wire.jitter_s = 0.01, 0.004
    world.run(seconds)
    return dict(world.checker.switches)


def _all_pairs_are_edges(world: World) -> bool:
    return len(world.hosts) == 2 or (len(world.hosts) == 3 and all(host.engine for host in world.hosts))


def run(seed: int, *, to_the_end: bool = False) -> Outcome:
    """Run one scenario; raises InvariantBrokenError with its story. `to_the_end` waits out every patience."""
    world, names, calm_at = build(seed)
    world.run(calm_at)
    make_peace(world)
    began = world.now
    if not world.run_while(lambda: agreed(world), AGREED_WITHIN_S):
        raise InvariantBrokenError(
            world, f"10: not agreed {AGREED_WITHIN_S:g} s after the faults stopped: {_states(world)}"
        )
    agreed_after_s = world.now - began
    within_s = CABLE_WITHIN_S if _all_pairs_are_edges(world) else QUIET_CABLE_WITHIN_S
    if not world.run_while(lambda: on_cable(world), within_s):
        raise InvariantBrokenError(world, f"11: not on the cable {within_s:g} s after that: {_states(world)}")
    if to_the_end:
        world.run(world.now + BUCKET_WINDOW_S + 5.0)
        for host in world.hosts:
            assert host.core is not None
            for link in host.core.links.values():
                path = link.selected_path
                if path is None or path.candidate.kind is not CABLE.kind:
                    raise InvariantBrokenError(
                        world, f"11: still not on the cable after all patience: {_states(world)}"
                    )
    if not world.run_while(lambda: agreed(world), 3.0):
        raise InvariantBrokenError(world, f"10: did not stay agreed: {_states(world)}")
    checker = world.checker
    return Outcome(
        seed=seed,
        nodes=len(world.hosts),
        faults=tuple(names),
        agreed_after_s=agreed_after_s,
        datagrams=world.datagrams,
        agreements=checker.agreements,
        declared_dead=checker.declared_dead,
        switches=dict(checker.switches),
        rejected=dict(world.rejected),
    )


def _states(world: World) -> str:
    words = []
    for host in world.hosts:
        core = host.core
        if core is None:
            continue
        mesh = core.mesh
        plan = "-" if mesh.committed is None else mesh.committed.hash[:6]
        links = ", ".join(
            f"{link.peer.name} {link.liveness.state} {'' if link.agreed else 'NOT '}agreed on {link.selected} "
            f"[{' '.join(f'{path.candidate.local.interface}:{path.own}/{path.peer_own}' for path in link.paths)}]"
            for link in core.links.values()
        )
        words.append(
            f"\n  {host.name}: {mesh.state} {plan} suspended={mesh.suspended} waits={mesh.waiting_for}; {links}"
        )
    return "".join(words)
