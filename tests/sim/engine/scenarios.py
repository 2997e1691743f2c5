"""One joint scenario: mesh and engine of some nodes, clients, some faults, then peace, and what must then follow.

Everything follows from the seed. E5 (no request waits for ever) is judged here, as is what the mesh owes its engine
(10: one plan within a bound) and that the newest command counts (E7). The others are judged after every event, by
invariants.py of mesh and engine.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from exoengine.protocol import Serving
from tests.sim import scenarios as mesh_scenarios
from tests.sim.engine.chaos import ENGINE_FAULTS, MESH_FAULTS, MODELS, Fault, ask, hang_up
from tests.sim.engine.clients import Client
from tests.sim.engine.joint_world import JointWorld
from tests.sim.invariants import InvariantBrokenError
from tests.sim.network import CABLE, LAN, VPN

STORM_S = 14.0
FORMED_WITHIN_S = 60.0
"""After the faults stopped and one plan is in force: a worker that stands still is noticed in 8 s, replaced and
loaded in 5; attempts that met a dead rank cost a deadline of 10 s and a pause of 5 s each."""
ANSWERED_WITHIN_S = 120.0
"""From then on: some dozen requests of up to 100 tokens, 0.05 s each, one after the other where `max_concurrent` is
1."""
WILL_WITHIN_S = 10.0
"""A command reaches each node with the next card, and the coordinator commits a plan for it at once."""
QUIET_WITHIN_S = 30.0
LEFT_WITHIN_S = 30.0
"""A worker is given 10 s to leave and 4 s more to end; its daemon starts again 12 s after that, at the latest."""
LAST_TOKENS = 5


@dataclass(frozen=True)
class JointOutcome:
    seed: int
    nodes: int
    faults: tuple[str, ...]
    formed_after_s: float
    simulated_s: float
    datagrams: int
    tokens: int
    groups: int
    most_at_once: int
    """Requests that the ranks had open."""
    outcomes: dict[str, int]
    """Of the clients: how their requests ended."""


def build(seed: int) -> tuple[JointWorld, list[str]]:
    """The world of a seed with its faults and clients scheduled. Returns the faults' names."""
    rng = random.Random(seed * 2_654_435_761 + 2)
    nodes = rng.choices((1, 2, 3, 4, 5), (6, 56, 28, 6, 4))[0]
    media = rng.choices(((CABLE, LAN, VPN), (CABLE, LAN), (CABLE, VPN)), (8, 1, 1))[0]
    world = JointWorld(
        seed,
        nodes,
        media=media,
        engines=rng.choice((None, None, None, nodes - 1)) if nodes > 1 else None,
        recovery_deadline_s=rng.choice((600.0, 600.0, 60.0, 8.0)),
        serving=Serving(max_concurrent=rng.choice((8, 8, 3, 1))),
    )
    world.power_loss = 0.25
    spread = rng.choice((0.0, 0.2, 2.0))
    for host in world.hosts:
        world.at(rng.uniform(0.0, spread), host.start)
    first = rng.choice((0.5, 4.0))
    """Faults while the first group forms, or only after that."""
    kinds = ENGINE_FAULTS + (MESH_FAULTS if nodes > 1 else ())
    names = []
    for _ in range(rng.randint(1, 6)):
        fault = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        _schedule(world, rng, fault, first)
        names.append(fault.__name__)
    for _ in range(rng.randint(1, 8)):
        _schedule(world, rng, ask, 1.0)
    for _ in range(rng.randint(0, 2)):
        _schedule(world, rng, hang_up, first)
    return world, names


def _schedule(world: JointWorld, rng: random.Random, fault: Fault, first: float) -> None:
    world.at(rng.uniform(first, STORM_S), fault, world, random.Random(rng.getrandbits(32)))


def make_peace(world: JointWorld) -> None:
    """All faults stop, of mesh, engine and clients. A daemon that is leaving comes back by itself."""
    world.message_loss = world.power_loss = 0.0
    for places in (world.full, world.unreadable, world.missing):
        places.clear()
    for ports in world.ports.values():
        ports.clear()
    for engine_host in world.engine_hosts:
        if engine_host.worker is not None:
            for why in ("signal", "hang"):
                engine_host.worker.resume(why)
            engine_host.worker.computes_until = world.now
    mesh_scenarios.make_peace(world)
    for client in world.clients:
        client.hurry()


def run(seed: int) -> JointOutcome:
    """Run one scenario; raises InvariantBrokenError with its story."""
    world, names = build(seed)
    world.run(STORM_S + 0.5)
    make_peace(world)
    began = world.now
    _expect_peace(world)
    formed_after_s = world.now - began
    _expect_answers(world)
    return JointOutcome(
        seed=seed,
        nodes=len(world.hosts),
        faults=tuple(names),
        formed_after_s=formed_after_s,
        simulated_s=world.now,
        datagrams=world.datagrams,
        tokens=world.engine_checker.tokens,
        groups=world.engine_checker.groups,
        most_at_once=world.engine_checker.most_at_once,
        outcomes=dict(Counter(client.outcome for client in world.clients)),
    )


def _expect_peace(world: JointWorld) -> None:
    """One plan is in force, and its ranks stand in one group. Without a model there is none."""
    if not world.run_while(lambda: not any(one.is_leaving for one in world.engine_hosts), LEFT_WITHIN_S):
        raise InvariantBrokenError(world, f"E5: a daemon that was told to end does not: {world.engine_states()}")
    if len(world.hosts) > 1 and not world.run_while(
        lambda: mesh_scenarios.agreed(world), mesh_scenarios.AGREED_WITHIN_S
    ):
        raise InvariantBrokenError(world, f"10: not agreed after the faults stopped: {world.engine_states()}")
    if any(host.wish is not None and (host.wish.draining or host.wish.model == "") for host in world.hosts):
        world.engine_hosts[-1].ask_model(MODELS[0])
    if not world.run_while(world.has_one_will, WILL_WITHIN_S):
        raise InvariantBrokenError(world, f"E7: not the newest command everywhere: {world.engine_states()}")
    if not world.run_while(world.all_formed, FORMED_WITHIN_S):
        text = f"E5: no group {FORMED_WITHIN_S:g} s after the faults stopped: {world.engine_states()}"
        raise InvariantBrokenError(world, text)


def _expect_answers(world: JointWorld) -> None:
    """Every client that waits gets an end, and one that asks in peace the whole answer."""
    _expect_all_answered(world)
    last = [world.ask(host.place, LAST_TOKENS) for host in world.hosts]
    _expect_all_answered(world)
    if not world.run_while(world.is_quiet, QUIET_WITHIN_S):
        text = f"E5: something is still held for somebody after {QUIET_WITHIN_S:g} s: {world.engine_states()}"
        raise InvariantBrokenError(world, text)
    for client in world.clients:
        expect_right(world, client)
    for client in last:
        if client.outcome != "length":
            world.broken(None, f"E1: {client.name} was asked in peace and ended as {client.outcome}")


def _expect_all_answered(world: JointWorld) -> None:
    if not world.run_while(world.all_answered, ANSWERED_WITHIN_S):
        text = f"E5: requests without an end {ANSWERED_WITHIN_S:g} s after a group stood: {world.engine_states()}"
        raise InvariantBrokenError(world, text)


def expect_right(world: JointWorld, client: Client) -> None:
    """What was read is the answer's beginning, and all of it where the answer has its end."""
    expected = client.expected_text
    if not expected.startswith(client.text):
        world.broken(None, f"E2: {client.name} read another text")
    if client.outcome == "length" and client.text != expected:
        world.broken(None, f"E2: {client.name} read {len(client.text)} characters of {len(expected)}")
