"""What can go wrong around the engine: with workers, disks, ports, connections, clients and people.

As in tests/sim/chaos.py, each fault picks its victims, tells the story, and undoes itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from exod.model import NodeId
from tests.sim import chaos as mesh_chaos
from tests.sim.engine.engine_host import EngineHost
from tests.sim.engine.groups import BAD_PROMPT
from tests.sim.engine.joint_world import JointWorld
from tests.sim.world import RING_PORT

MODELS = ("embedded:count", "embedded:other", "")
LEAVING_LOOK_S = 0.5
ANSWER_TOKENS = (1, 2, 5, 12, 40, 100)


def _pick(world: JointWorld, rng: random.Random) -> EngineHost:
    return rng.choice(world.engine_hosts)


# --- workers and their machines -----------------------------------------------------------------------------------


def worker_crash(world: JointWorld, rng: random.Random) -> None:
    worker = _pick(world, rng).worker
    if worker is not None and worker.alive and not worker.is_stopped:
        worker.die("it crashed")


def all_workers_crash(world: JointWorld, rng: random.Random) -> None:
    """As the failure of the background report ends: one dies, and takes the others along."""
    for engine_host in world.engine_hosts:
        worker = engine_host.worker
        if worker is not None and worker.alive and not worker.is_stopped:
            world.after(rng.uniform(0.0, 0.1), worker.die, "it crashed with the others")


def worker_stop(world: JointWorld, rng: random.Random) -> None:
    """From outside: its daemon may continue it. Or by itself, in the kernel: nobody can."""
    worker = _pick(world, rng).worker
    if worker is None or not worker.alive:
        return
    why = rng.choice(["signal", "hang"])
    world.note(worker.node, f"worker {worker.pid} {'is stopped' if why == 'signal' else 'hangs'}")
    worker.stop(why)
    world.after(rng.choice([0.5, 3.0, 7.0, 20.0]), worker.resume, why)


def slow_step(world: JointWorld, rng: random.Random) -> None:
    """A rank computes one step for long: the machine is slow, and nothing else is amiss."""
    worker = _pick(world, rng).worker
    if worker is None or not worker.alive:
        return
    seconds = rng.choice([2.0, 8.0, 30.0])
    world.note(worker.node, f"worker {worker.pid} computes one step for {seconds} s")
    world.engine_checker.was_slow = True
    worker.computes_until = world.now + seconds


def full_disk(world: JointWorld, rng: random.Random) -> None:
    _for_a_while(world, rng, world.full, "cannot start processes")


def unreadable(world: JointWorld, rng: random.Random) -> None:
    _for_a_while(world, rng, world.unreadable, "cannot read its disk")


def missing(world: JointWorld, rng: random.Random) -> None:
    _for_a_while(world, rng, world.missing, "finds no model")


def _for_a_while(world: JointWorld, rng: random.Random, places: set[NodeId], text: str) -> None:
    host = _pick(world, rng).host
    seconds = rng.choice([1.0, 4.0])
    world.tell(host, f"{text} for {seconds} s")
    places.add(host.id)
    world.after(seconds, places.discard, host.id)


def port_taken(world: JointWorld, rng: random.Random) -> None:
    host = _pick(world, rng).host
    world.tell(host, f"'s port {host.ring_port} is taken by another process")
    ports = world.ports.setdefault(host.id, set())
    ports.add(rng.choice([host.ring_port, RING_PORT]))
    world.after(rng.choice([2.0, 6.0]), ports.clear)


# --- daemons and what is between them -----------------------------------------------------------------------------


def daemon_leaves(world: JointWorld, rng: random.Random) -> None:
    """An orderly end, and a start some time after it."""
    engine_host = _pick(world, rng)
    engine_host.leave()
    world.after(rng.choice([0.5, 3.0, 12.0]), _again, world, engine_host)


def _again(world: JointWorld, engine_host: EngineHost) -> None:
    if engine_host.core is None:
        engine_host.host.start()
    elif engine_host.is_leaving:
        world.after(LEAVING_LOOK_S, _again, world, engine_host)


def lossy_messages(world: JointWorld, rng: random.Random) -> None:
    world.message_loss, seconds = rng.choice([0.05, 0.3]), rng.choice([1.0, 5.0])
    world.tell(None, f"connections come and go: {world.message_loss:.0%} of the messages are lost for {seconds} s")
    world.after(seconds, _no_loss, world)


def _no_loss(world: JointWorld) -> None:
    world.message_loss = 0.0


# --- clients and people -------------------------------------------------------------------------------------------


def ask(world: JointWorld, rng: random.Random) -> None:
    engine_host = _pick(world, rng)
    if engine_host.core is None or engine_host.is_leaving:
        return
    prompt = BAD_PROMPT if rng.random() < 0.05 else "x"
    reads_every_s = rng.choice([0.06, 0.3, 5.0]) if rng.random() < 0.1 else 0.0
    world.ask(engine_host.host.place, rng.choice(ANSWER_TOKENS), prompt=prompt, reads_every_s=reads_every_s)


def crowd(world: JointWorld, rng: random.Random) -> None:
    """More than the queue takes."""
    engine_host = _pick(world, rng)
    if engine_host.core is None or engine_host.is_leaving:
        return
    asked = [world.ask(engine_host.host.place, 1) for _ in range(80)]
    for client in asked[::2]:
        world.after(rng.uniform(0.5, 3.0), engine_host.hang_up, client)


def hang_up(world: JointWorld, rng: random.Random) -> None:
    waiting = [client for client in world.clients if not client.outcome]
    if waiting:
        client = rng.choice(waiting)
        client.engine_host.hang_up(client)


def want_model(world: JointWorld, rng: random.Random) -> None:
    _pick(world, rng).ask_model(rng.choice(MODELS))


def drain(world: JointWorld, rng: random.Random) -> None:
    """Somebody loads a model again after it, on the same host or another, or nobody does before peace."""
    _pick(world, rng).ask_drain()
    if rng.random() < 0.7:
        world.after(rng.choice([1.0, 4.0]), _pick(world, rng).ask_model, MODELS[0])


Fault = Callable[[JointWorld, random.Random], None]

ENGINE_FAULTS: tuple[tuple[Fault, int], ...] = (
    (worker_crash, 12),
    (all_workers_crash, 4),
    (worker_stop, 12),
    (slow_step, 6),
    (full_disk, 2),
    (unreadable, 1),
    (missing, 1),
    (port_taken, 3),
    (daemon_leaves, 4),
    (lossy_messages, 8),
    (crowd, 1),
    (want_model, 3),
    (drain, 2),
)
"""With weights: what happens often, often."""

MESH_FAULTS: tuple[tuple[Fault, int], ...] = tuple(
    (kind, weight)
    for kind, weight in mesh_chaos.FAULTS
    if kind not in (mesh_chaos.replay, mesh_chaos.clock_step, mesh_chaos.shuffle)
)
"""Those of the mesh that an engine can feel."""
