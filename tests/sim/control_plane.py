"""The virtual control plane: one connection for each pair, riding on one medium and moved late when that dies.

Messages arrive in the order in which they were sent, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exod.core.base import events
from exod.core.base.mesh_messages import MeshMessage
from exod.model import NodeId

if TYPE_CHECKING:
    from tests.sim.world import Host, World


class ControlPlane:
    """Carries messages of the mesh and of the engine. Those that are under way between two lives are lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.riding: dict[frozenset[NodeId], tuple[str, str] | None] = {}
        self._delivered_at: dict[tuple[NodeId, NodeId], float] = {}

    def begin(self) -> None:
        for one in self.world.hosts:
            for other in self.world.hosts:
                if one.id < other.id:
                    self.riding[frozenset((one.id, other.id))] = None
                    self._tend(one, other, 0)

    def _tend(self, one: Host, other: Host, failures: int) -> None:
        """Every 0.15 s: connect, move or give up, as sockets with keepalive would."""
        world, pair = self.world, frozenset((one.id, other.id))
        riding = self.riding[pair]
        both = one.core is not None and other.core is not None
        if riding is None:
            way = self._way(one, other)
            awake = one.frozen_since is None and other.frozen_since is None
            if both and way is not None and awake:
                self.riding[pair] = way
                for here, there in ((one, other), (other, one)):
                    here.take(events.PeerCardReceived(there.card))
                    here.take(events.PeerConnected(there.id))
            failures = 0
        elif not self.world.carries(riding):
            failures += 1
            if failures >= 2:
                way = self._way(one, other)
                self.riding[pair] = way
                if way is None:
                    for here, there in ((one, other), (other, one)):
                        here.take(events.PeerDisconnected(there.id))
        else:
            failures = 0
        world.after(0.15, self._tend, one, other, failures)

    def _way(self, one: Host, other: Host) -> tuple[str, str] | None:
        for way in self.world.ways(one, other):
            if self.world.carries(way):
                return way
        return None

    def dropped(self, host: Host) -> None:
        """A process died: the kernel resets its connections."""
        for pair, riding in self.riding.items():
            if host.id not in pair or riding is None:
                continue
            self.riding[pair] = None
            other = next(one for one in self.world.hosts if one.id in pair and one is not host)
            if self.world.carries(riding):
                self.world.after(0.001, other.take, events.PeerDisconnected(host.id))
            else:
                self.world.after(1.0, other.take, events.PeerDisconnected(host.id))

    def send(self, host: Host, peer: NodeId, message: MeshMessage) -> None:
        at = self._arrival(host, peer)
        if at is not None:
            other = self.world.by_id[peer]
            self.world.at(at, other.take_of_life, other.life, events.MessageReceived(host.id, message))

    def send_engine_message(self, host: Host, peer: NodeId, message: Any, late_s: float) -> None:
        """`late_s`: it changes connections on the way, and what was sent after it may come before it."""
        at = self._arrival(host, peer)
        if at is not None:
            other = self.world.by_id[peer]
            self.world.at(at + late_s, other.take_engine_message, other.life, host.id, message)

    def _arrival(self, host: Host, peer: NodeId) -> float | None:
        """When what is sent now arrives, behind all that was sent before; None where it is lost."""
        world = self.world
        riding = self.riding.get(frozenset((host.id, peer)))
        if riding is None or not world.carries(riding):
            return None
        direction = (host.id, peer)
        at = max(world.now + world.network.wires[riding].delay_s + 0.0005, self._delivered_at.get(direction, 0.0))
        self._delivered_at[direction] = at
        return at

    def spread_card(self, host: Host) -> None:
        for other in self.world.hosts:
            if other is host or other.core is None:
                continue
            riding = self.riding.get(frozenset((host.id, other.id)))
            if riding is not None:
                self.world.after(0.002, other.take_of_life, other.life, events.PeerCardReceived(host.card))
