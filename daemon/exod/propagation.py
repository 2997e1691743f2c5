"""What follows from a change, passed on to the parts that act on it: once for each refresh, in one place.

From one look at the core: which connections are kept warm, which peers are doubted, whether the rank may trust its
links, which alerts are events, what MQTT publishes and what peers are told. It decides none of that by itself
beyond the order of the paths. Building a status is `status/snapshot.py`, which passes nothing on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from exod.core.base.events import ForgetPeer, Input, KeysChanged, PeerHoldsKey, PeerLeft
from exod.core.engine.engine_events import LinkHealthChanged, PeerLost, RdmaWired, RingKeyChanged
from exod.core.node import NodeCore
from exod.core.status.alerts import LASTING_S, Alerts, alert_facts
from exod.core.status.edge_health import edge_health
from exod.core.status.further_cables import further_cables
from exod.core.status.health import HealthSnapshot
from exod.core.status.view import LinkView, NodeView
from exod.daemon_api.shared_tick import until_next
from exod.diagnostics.event_log import EventLog
from exod.engine_service.engine_driver import EngineDriver
from exod.model import EngineState, Event, Health, NodeId, NodeState, PathState, Reason
from exod.mqtt.publisher import MqttService
from exod.peers.control_plane import ControlPlane
from exod.peers.dial_targets import Target
from exod.peers.membership_driver import MembershipDriver
from exod.peers.trust import datagram_key, ring_key
from exod.status.mqtt_snapshot import MqttSnapshot
from exod.status.rtt_history import EVERY_S
from exod.status.snapshot import StatusBuilder
from exod.status.watches import Moment, Watches

REFRESH_S: Final = EVERY_S
"""How often figures (uptime, RTT, memory) are taken anew for MQTT and peers; changes are told at once."""

WATCH_S: Final = 1.0
"""How often health is looked at between two refreshes: facts that no event announces, such as loss, must begin to
last."""

_USABLE: Final = (PathState.UP, PathState.DEGRADED, PathState.INIT)
_STATE_ORDER: Final = {PathState.UP: 0, PathState.DEGRADED: 1, PathState.INIT: 2, PathState.DEAD: 3}

Told = tuple[Health, tuple[tuple[str, str, bool], ...]]


class Propagation:
    """Remembers what was passed on, to pass on changes alone."""

    def __init__(
        self,
        me: NodeId,
        core: NodeCore,
        status: StatusBuilder,
        control: ControlPlane,
        engine: EngineDriver,
        events: EventLog,
        mqtt: MqttService,
        on_view: Callable[[NodeView], None],
    ) -> None:
        self._me, self._core, self._status = me, core, status
        self._control, self._engine, self._events, self._mqtt = control, engine, events, mqtt
        self._on_view = on_view
        self._mqtt_snapshot = MqttSnapshot(me, status)
        self._alerts = Alerts()
        self._watches = Watches(me, status.settings.data_dir)
        self._told: Told | None = None
        self._reasons: tuple[Reason, ...] = ()
        """When last observed."""
        self._wanted = False
        self._wiring: RdmaWired | None = None
        """The newest that the engine was told."""
        self._dead: set[tuple[NodeId, str]] = set()

    def refresh(self) -> None:
        """Looks once and passes on what follows."""
        view = self._status.view()
        for link in view.links:
            self._warm_paths(link)
        self._judge_peers(view)
        self._on_view(view)
        self._engine.feed(LinkHealthChanged(*edge_health(view), further_cables(view)))
        self._tell_wiring()
        plan = self._engine.core.plan
        if self._status.engine().state in (EngineState.READY, EngineState.GENERATING) and plan:
            self._status.record.served_model = plan.model
        health = self.observe(view)
        self._mqtt.update(self._mqtt_snapshot.view(view, health))
        if self._changed(health):
            self._control.broadcast(self._status.report(health))

    def _tell_wiring(self) -> None:
        """To the engine of the coordinator, which chooses the transport."""
        plan = self._engine.core.plan
        if plan is not None and plan.coordinator == self._me and self._engine.core.transport.wished != "tcp":
            wiring = self._status.rdma_wiring()
            if wiring != self._wiring:
                self._wiring = wiring
                self._engine.feed(wiring)

    def observe(self, view: NodeView) -> HealthSnapshot:
        """Starts and ends the clocks of what makes this node unhealthy; what lasted becomes an event."""
        health = self._status.observe(view)
        self._reasons = health.reasons
        own_failure = self._engine.core.rank.model.lasting_failure
        for event in self._alerts.changes(alert_facts(self._me, health, own_failure)):
            self._events.write(event)
        return health

    def _changed(self, health: HealthSnapshot) -> bool:
        before, self._told = self._told, _told(health)
        return before != self._told

    def _judge_peers(self, view: NodeView) -> None:
        for node in view.nodes:
            self._control.doubt(node.id, node.state is NodeState.SUSPECT)
            if node.state is NodeState.DOWN and node.id in self._engine.core.statuses:
                self._engine.feed(PeerLost(node.id))

    async def run(self) -> None:
        """Refreshes now and then, and reports this node to the others, until cancelled."""
        while True:
            self.refresh_soon()
            self._status.record.rtt.observe(self._status.view().links)
            await asyncio.sleep(until_next(REFRESH_S))
            self._control.broadcast(self._status.node_report())

    async def watch(self) -> None:
        """Looks at the health between two refreshes until cancelled."""
        try:
            while True:
                await asyncio.sleep(until_next(WATCH_S))
                self._status.record.found = self._watches.look(self._moment(), time.monotonic())
                if _told(self.observe(self._status.view())) != self._told:
                    self.refresh_soon()
        finally:
            self._watches.save()

    def _moment(self) -> Moment:
        core, record = self._engine.core, self._status.record
        return Moment(
            plan=core.plan,
            ranks=tuple(self._status.rank_statuses()),
            heartbeat=core.rank.worker.heartbeat,
            reasons=self._reasons,
            names=self._status.names(),
            clocks={peer: record.clocks[peer] for peer in self._control.peers() if peer in record.clocks},
            dynamic=self._status.settings.sync == "dynamic",
        )

    def refresh_soon(self) -> None:
        """Something that others see changed: told once per turn of the loop, however much changed in it."""
        if not self._wanted:
            self._wanted = True
            asyncio.get_running_loop().call_soon(self._refresh_now)

    def _refresh_now(self) -> None:
        self._wanted = False
        self.refresh()

    def _warm_paths(self, link: LinkView) -> None:
        """Connections for control messages on every path that works, best first; none on one that died."""
        control = self._control
        usable = [path for path in link.paths if path.state in _USABLE]
        usable.sort(key=lambda path: (not path.selected, _STATE_ORDER[path.state], path.score_ms or 1e9))
        card = self._core.links[link.peer].peer
        control.set_paths(
            link.peer, tuple(Target(path.remote, card.mesh_port, path.local, path.interface) for path in usable)
        )
        for path in link.paths:
            key = (link.peer, path.id)
            if path.state is not PathState.DEAD:
                self._dead.discard(key)
            elif key not in self._dead:
                self._dead.add(key)
                control.path_died(link.peer, path.local, path.remote)


def follow_membership(
    membership: MembershipDriver,
    me: NodeId,
    core: NodeCore,
    feed: Callable[[Input], None],
    engine: EngineDriver,
    events: EventLog,
    refresh_soon: Callable[[], None],
) -> None:
    """A new cluster key goes to the probes and to the ranks' next formation; who was removed is gone at once."""

    def keys_changed(keys: tuple[bytes, ...]) -> None:
        feed(KeysChanged(tuple(datagram_key(key) for key in keys)))
        engine.feed(RingKeyChanged(ring_key(keys[0])))

    def expelled(node: NodeId) -> None:
        """As if it had said goodbye, and would not come back."""
        if node in core.links:
            feed(PeerLeft(node, core.links[node].peer_incarnation))
            feed(ForgetPeer(node))
            engine.feed(PeerLost(node))
            refresh_soon()

    membership.on_keys, membership.on_expelled = keys_changed, expelled
    membership.on_holder = lambda peer: feed(PeerHoldsKey(peer))
    membership.on_event = lambda kind, data: events.write(Event(0.0, kind, me, data))


def _told(health: HealthSnapshot) -> Told:
    """Each reason, and whether it is an alert by now: MQTT has topics of those alone."""
    reasons = zip(health.reasons, health.lasting_s, strict=True)
    return health.health, tuple((one.code, one.subject, lasting_s >= LASTING_S) for one, lasting_s in reasons)
