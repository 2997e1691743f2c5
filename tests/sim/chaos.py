"""What can go wrong in the world: each kind of fault picks its victims, tells the story, and undoes itself.

Every function takes the world and a generator of its own, so adding a kind changes no other choice of a seed's run
before it is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from exod.core.base import events
from tests.sim.network import Wire
from tests.sim.world import Host, World

SPOILED_S = 3.0
"""After a wire is touched, silence on it is explained for so long: a path may be declared dead that late."""


def _spoil(world: World, wires: Iterable[Wire], seconds: float) -> None:
    for wire in wires:
        wire.spoiled_until = max(wire.spoiled_until, world.now + seconds + SPOILED_S)


def _pick_way(world: World, rng: random.Random) -> tuple[Host, Host, tuple[str, str]]:
    one, other = rng.sample(world.hosts, 2)
    # The cable suffers most often: it is the path in use.
    ways = list(world.ways(one, other))
    return one, other, ways[0] if rng.random() < 0.5 else rng.choice(ways)


def _medium(world: World, way: tuple[str, str]) -> str:
    return world.network.wires[way].medium.interface


def cut(world: World, rng: random.Random) -> None:
    one, other, way = _pick_way(world, rng)
    seconds = rng.choice([0.1, 0.3, 1.0, 2.0, 4.0])
    wires = world.network.both(*way)
    _spoil(world, wires, seconds)
    world.tell(None, f"{_medium(world, way)} between {one.name} and {other.name} is cut for {seconds} s")
    for wire in wires:
        wire.cut = True
        world.after(seconds, _mend, wire)


def cut_one_way(world: World, rng: random.Random) -> None:
    one, other, way = _pick_way(world, rng)
    seconds = rng.choice([0.5, 1.0, 3.0])
    wire = world.network.wires[way]
    _spoil(world, [wire], seconds)
    world.tell(None, f"{_medium(world, way)} drops everything from {one.name} to {other.name} for {seconds} s")
    wire.cut = True
    world.after(seconds, _mend, wire)


def _mend(wire: Wire) -> None:
    wire.cut = False


def slow(world: World, rng: random.Random) -> None:
    one, other, way = _pick_way(world, rng)
    delay_ms, seconds = rng.choice([4.0, 20.0, 90.0]), rng.choice([0.5, 2.0, 4.0])
    wires = world.network.both(*way)
    _spoil(world, wires, seconds)
    world.tell(
        None, f"{_medium(world, way)} between {one.name} and {other.name} is {delay_ms} ms slow for {seconds} s"
    )
    for wire in wires:
        wire.delay_s = delay_ms / 1e3
        world.after(seconds, wire.heal)


def noisy(world: World, rng: random.Random) -> None:
    one, other, way = _pick_way(world, rng)
    loss, jitter_ms, seconds = rng.choice([0.01, 0.05, 0.3, 0.6]), rng.choice([0.0, 4.0]), rng.choice([1.0, 4.0])
    wires = world.network.both(*way)
    _spoil(world, wires, seconds)
    world.tell(
        None,
        f"{_medium(world, way)} between {one.name} and {other.name} loses {loss:.0%}, "
        f"jitters {jitter_ms} ms, doubles and reorders for {seconds} s",
    )
    for wire in wires:
        wire.loss, wire.jitter_s, wire.duplicate, wire.reorder = loss, jitter_ms / 1e3, 0.2, 0.2
        world.after(seconds, wire.heal)


def shuffle(world: World, rng: random.Random) -> None:
    """Duplication and reordering everywhere, with nothing lost: must be harmless."""
    seconds = rng.choice([2.0, 5.0])
    world.tell(None, f"the network doubles and reorders for {seconds} s")
    for _, wire in world.wires():
        wire.duplicate = wire.reorder = 0.3
        world.after(seconds, wire.heal)


def partition(world: World, rng: random.Random) -> None:
    side = set(rng.sample(world.hosts, rng.randint(1, len(world.hosts) - 1)))
    seconds = rng.choice([0.3, 1.5, 4.0])
    names = ", ".join(sorted(host.name for host in side))
    world.tell(None, f"{names} cannot reach the others for {seconds} s")
    for (source, target), wire in world.wires():
        if (world.by_address[source] in side) != (world.by_address[target] in side):
            _spoil(world, [wire], seconds)
            wire.cut = True
            world.after(seconds, _mend, wire)


def stall(world: World, rng: random.Random) -> None:
    host = rng.choice(world.hosts)
    seconds = rng.choice([0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
    host.freeze()
    world.after(seconds, host.thaw)


def sleep(world: World, rng: random.Random) -> None:
    host = rng.choice(world.hosts)
    host.freeze(asleep=True)
    world.after(rng.choice([1.0, 5.0]), host.thaw)


def crash(world: World, rng: random.Random) -> None:
    host = rng.choice(world.hosts)
    if host.core is None:
        return
    host.crash()
    file = rng.choice(["kept", "kept", "lost", "old"])
    world.after(rng.choice([0.05, 0.3, 1.0, 3.0]), _restart, host, file)


def _restart(host: Host, file: str) -> None:
    if host.core is None:
        host.start(file=file)


def crash_all(world: World, rng: random.Random) -> None:
    """The failure of the background report."""
    for host in world.hosts:
        if host.core is not None:
            host.crash()
            world.after(rng.uniform(0.2, 0.8), _restart, host, "kept")


def clock_step(world: World, rng: random.Random) -> None:
    host = rng.choice(world.hosts)
    step_s = rng.choice([-86_400, -30, 30, 86_400])
    host.wall_offset_ms += step_s * 1_000
    world.tell(host, f"'s wall clock steps by {step_s} s")


def lose_address(world: World, rng: random.Random) -> None:
    host = rng.choice([host for host in world.hosts if host.core is not None] or world.hosts)
    address = rng.choice(host.addresses)
    seconds = rng.choice([0.3, 1.0, 3.0])
    world.tell(host, f"loses the address of {address.interface} for {seconds} s")
    _spoil(world, (wire for way, wire in world.wires() if address.address in way), seconds)
    host.hidden.add(address.address)
    host.show_card(host.life)
    world.after(seconds, _return_address, host, address.address)


def _return_address(host: Host, address: str) -> None:
    host.hidden.discard(address)
    host.show_card(host.life)


def misroute(world: World, rng: random.Random) -> None:
    """One end's route table sends the ring elsewhere."""
    one, _, way = _pick_way(world, rng)
    world.tell(one, f"'s route to {way[1]} leaves another interface")
    one.routes[way[1]] = rng.choice([None, one.addresses[-1].address])
    world.after(rng.choice([1.0, 4.0]), one.routes.pop, way[1], None)


def replay(world: World, rng: random.Random) -> None:
    """An eavesdropper plays old datagrams again, some on other paths, some changed."""
    world.tell(None, "an eavesdropper plays old datagrams")
    for command in list(world.tape):
        target = world.by_address[command.remote_address]
        data = command.data
        if rng.random() < 0.3:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        here, there = command.remote_address, command.local_address
        if rng.random() < 0.2:
            other = rng.choice(list(world.network.wires))
            target, here, there = world.by_address[other[1]], other[1], other[0]
        target.take(events.DatagramReceived(here, there, data, target.local(world.now)))


def renegotiate(world: World, rng: random.Random) -> None:
    host = rng.choice(world.hosts)
    host.take(events.RenegotiateRequested("asked for by hand"))


FAULTS: tuple[tuple[Callable[[World, random.Random], None], int], ...] = (
    (cut, 10),
    (cut_one_way, 6),
    (slow, 6),
    (noisy, 6),
    (shuffle, 3),
    (partition, 5),
    (stall, 8),
    (sleep, 3),
    (crash, 8),
    (crash_all, 2),
    (clock_step, 3),
    (lose_address, 4),
    (misroute, 3),
    (replay, 3),
    (renegotiate, 2),
)
"""With weights: what happens often, often."""
