"""The engine's shell of one host: carries its EngineCore as engine_driver.py does, in virtual time.

What app.py and status/snapshot.py pass from the mesh to the engine is passed here: plans, suspensions, the health
of the rank's edges, nodes that are down. What a person asks of the cluster goes round as a record in the nodes'
cards, as shared_wish.py has it: the newest that a node has seen counts, and is on its disk. The core is the
unchanged product.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from exod.core.base import cluster_wish
from exod.core.base.events import PeerConnected, PeerLeft
from exod.core.engine import engine_events as events
from exod.core.engine.engine_events import EngineCommand, EngineInput, ModelFacts
from exod.core.engine.engine_messages import EngineMessage
from exod.core.engine_core import EngineCore
from exod.core.status.edge_health import edge_health
from exod.model import ClusterWish, MeshPlan, NodeCard, NodeId, NodeState
from exoengine.model_files.memory_fit import WHOLE_CONTEXT, ModelSizes
from exoengine.protocol import GenerationRequest, SyncSettings
from tests.sim.engine.clients import Client, Delivery
from tests.sim.engine.worker import TOTAL_LAYERS, Worker
from tests.sim.engine.worker_slot import WorkerSlot

if TYPE_CHECKING:
    from tests.sim.engine.joint_world import JointWorld
    from tests.sim.world import Host

SHORTEST_PAUSE_S = 0.01
"""As in engine_driver.py."""
LATE_S = 0.0004
"""The most that the event loop is late."""
REFRESH_S = 5.0
"""As in app.py."""
SEARCH_S = (0.01, 0.3)
CARD_S = 0.001
"""A card that changes is passed on in the next turn of the loop."""
GOODBYE_S = 0.05
NEVER_IGNORED = frozenset({"RankStatus", "FormOrder", "SubmitRequest"})
"""Everything else is ignored where its two ends follow different plans, and is repeated."""
SIZES = ModelSizes(
    layer_bytes=(1 << 20,) * TOTAL_LAYERS,
    other_bytes=0,
    kv_bytes_per_token=0,
    kv_windows=(WHOLE_CONTEXT,) * TOTAL_LAYERS,
    max_context_tokens=4096,
)
"""Fits everywhere: what does not fit is no matter of time."""


class EngineHost:
    """Outlives the daemons of its host, as their worker does."""

    def __init__(self, world: JointWorld, host: Host) -> None:
        self.world, self.host = world, host
        self.core: EngineCore | None = None
        self.slot = WorkerSlot(self, 0)
        host.found = ""
        self.worker: Worker | None = None
        self.clients: dict[str, Client] = {}
        """Whose end was not delivered yet."""
        self.is_leaving = False
        self._inputs: deque[EngineInput | None] = deque()
        """Not taken yet; None is the timer."""
        self._is_taking = False
        self._timer_at = -1.0
        self._refresh_wanted = False
        self._search: tuple[int, str] | None = None
        """The life of the daemon that looks for a model, and its name."""

    # --- the daemon's life --------------------------------------------------------------------------------------

    def started(self) -> None:
        host = self.host
        self.core = EngineCore(
            host.id,
            host.saved_incarnation,
            SyncSettings(),
            self.world.recovery_deadline_s,
            host.ring_port,
            b"the ring's key",
            serving=self.world.serving,
        )
        self.slot = WorkerSlot(self, host.life)
        self.is_leaving = self._is_taking = self._refresh_wanted = False
        self._inputs.clear()
        self._timer_at = -1.0
        self.world.engine_checker.reborn(self)
        self.world.after(REFRESH_S, self._refresh_for_ever, host.life)
        self._arm()

    def killed(self) -> None:
        """The worker lives on, unless the machine lost its power."""
        self.core = None
        for client in self.clients.values():
            client.end("lost")
        self.clients.clear()
        worker = self.worker
        if worker is None or not worker.alive:
            return
        if self.world.engine_rng.random() < self.world.power_loss:
            self.world.tell(self.host, f"worker {worker.pid} is gone: the machine lost its power")
            worker.lose_power()
        else:
            worker.disconnect()

    def frozen(self, asleep: bool) -> None:
        if asleep and self.worker is not None:
            self.worker.stop("sleep")

    def thawed(self) -> None:
        """Whether the timer or what waits comes first is the event loop's choice."""
        if self.worker is not None:
            self.worker.resume("sleep")
        if self.core is None:
            return
        if self.world.engine_rng.random() < 0.5:
            self._inputs.appendleft(None)
        self._take()
        if self._refresh_wanted:
            self._refresh(self.host.life)

    def leave(self) -> None:
        """An orderly end: the worker leaves its group, the others are told, the process ends."""
        if self.core is None or self.is_leaving or self.host.frozen_since is not None:
            return
        self.world.tell(self.host, "is told to end")
        self.feed(events.Leaving())
        self.is_leaving = True
        for other in self.world.hosts:
            if other is not self.host:
                self.world.after(GOODBYE_S, other.take, PeerLeft(self.host.id, self.host.card.incarnation))
        self.slot.leave()
        self._end_when_left(self.host.life)

    def _end_when_left(self, life: int) -> None:
        if self.host.life != life or self.host.core is None:
            return
        if self.slot.is_running:
            self.world.after(GOODBYE_S, self._end_when_left, life)
        else:
            self.host.crash()

    # --- what the mesh tells ------------------------------------------------------------------------------------

    def connected(self, event: PeerConnected) -> None:
        self.feed(event)

    def committed(self, plan: MeshPlan, reason: str) -> None:
        self.world.engine_checker.models.add(plan.model)
        self.feed(events.PlanCommitted(plan, reason))
        if plan.model != self.host.hosted:
            self.host.hosted = plan.model
            self._card_changed()

    def peer_card(self, card: NodeCard) -> None:
        """A node takes over a newer command of another."""
        if card.wish is not None and cluster_wish.newest(self.host.wish, card.wish) != self.host.wish:
            self._take_wish(card.wish)

    def suspended(self, plan_hash: str, reason: str) -> None:
        self.feed(events.PlanSuspended(plan_hash, reason))

    def message(self, sender: NodeId, message: EngineMessage) -> None:
        self.feed(events.EngineMessageReceived(sender, message))

    def mesh_changed(self) -> None:
        """Once per turn of the loop."""
        if not self._refresh_wanted:
            self._refresh_wanted = True
            self.world.after(0.0, self._refresh, self.host.life)

    def _refresh(self, life: int) -> None:
        mesh, core = self.host.core, self.core
        if life != self.host.life or mesh is None or core is None or self.host.frozen_since is not None:
            return
        self._refresh_wanted = False
        view = mesh.view(self.host.local(self.world.now))
        for node in view.nodes:
            if node.state is NodeState.DOWN and node.id in core.statuses:
                self.feed(events.PeerLost(node.id))
        self.feed(events.LinkHealthChanged(*edge_health(view)))

    def _refresh_for_ever(self, life: int) -> None:
        if life == self.host.life:
            self.mesh_changed()
            self.world.after(REFRESH_S, self._refresh_for_ever, life)

    # --- clients and people -------------------------------------------------------------------------------------

    def ask(self, request: GenerationRequest, *, reads_every_s: float = 0.0) -> Client:
        client = Client(self, request, reads_every_s)
        self.world.clients.append(client)
        self.world.tell(self.host, f"is asked for {request.max_tokens} tokens: {request.request_id}")
        if self.core is None:
            client.end("lost")
            return client
        self.clients[request.request_id] = client
        self.feed(events.ClientAsked(request))
        return client

    def hang_up(self, client: Client) -> None:
        if client.outcome:
            return
        self.world.tell(self.host, f"the client of {client.name} goes away")
        client.end("cancelled")
        self.feed(events.ClientLeft(client.name))

    def ask_model(self, model: str) -> None:
        """A person loads or unloads. A drain ends with it."""
        self.world.tell(self.host, f"is asked to load {model or 'no model'}")
        self.feed(events.ModelWanted(model))

    def ask_drain(self) -> None:
        if self.core is None or self.host.frozen_since is not None:
            return
        self.world.tell(self.host, "is asked to drain")
        self.world.engine_checker.was_drained = True
        model = None if self.host.wish is None else self.host.wish.model
        self._take_wish(ClusterWish(self._next_at(), self.host.name, model, draining=True))

    def _next_at(self) -> float:
        """Later than what is known, whatever this host's clock says."""
        known = 0.0 if self.host.wish is None else self.host.wish.at + 0.001
        return max(self.host.wall_ms / 1e3, known)

    def _take_wish(self, wish: ClusterWish) -> None:
        self.world.tell(self.host, f"holds the command of {wish.by}: {wish.model!r}{', drain' * wish.draining}")
        self.host.wish = wish
        self.feed(events.WishChanged(wish))
        self._card_changed()

    def _card_changed(self) -> None:
        self.world.after(CARD_S, self.host.show_card, self.host.life)

    # --- the shell ----------------------------------------------------------------------------------------------

    def feed(self, event: EngineInput) -> None:
        """A stopped daemon finds it later. What comes in the midst of a turn is taken after it."""
        if self.core is None:
            return
        self._inputs.append(event)
        self._take()

    def _take(self) -> None:
        if self._is_taking or self.host.frozen_since is not None:
            return
        self._is_taking = True
        while self._inputs and self.core is not None:
            event = self._inputs.popleft()
            now = self.host.local(self.world.now)
            commands = self.core.handle_timer(now) if event is None else self.core.handle(event, now)
            self._note(event)
            for command in commands:
                self._carry_out(command)
            self.world.engine_checker.after(self, event, commands)
        self._is_taking = False
        self._arm()

    def _note(self, event: EngineInput | None) -> None:
        """The core has taken it."""
        match event:
            case events.ClientAsked(request=request):
                self.clients[request.request_id].accepted = True
            case events.ClientLeft(request_id=request_id):
                self.clients.pop(request_id, None)

    def _arm(self) -> None:
        if self.core is None:
            return
        deadline = self.core.next_deadline()
        if deadline is None:
            return
        at = max(deadline - self.host.clock_offset_s, self.world.now + SHORTEST_PAUSE_S)
        if 0.0 <= self._timer_at <= at:
            return
        self._timer_at = at
        late_s = LATE_S * self.world.engine_rng.random()
        self.world.at(at + late_s, self._on_timer, self.host.life, at)

    def _on_timer(self, life: int, at: float) -> None:
        if life != self.host.life or at != self._timer_at:
            return
        self._timer_at = -1.0
        if self.core is not None and self.host.frozen_since is None and not self.is_leaving:
            self._inputs.append(None)
            self._take()

    def _carry_out(self, command: EngineCommand) -> None:
        match command:
            case events.TellWorker(message=message):
                self.slot.tell(message)
            case events.KillWorker(text=text):
                self.slot.kill(text)
            case events.WakeWorker():
                self.slot.wake()
            case events.StartWorker():
                self.slot.start()
            case events.LeaveWorker():
                self.slot.leave()
            case events.SweepWorkers():
                self.slot.sweep()
            case events.ResolveModel(model=model):
                self._search = (self.host.life, model)
                moment_s = self.world.engine_rng.uniform(*SEARCH_S)
                wait_s = self.world.search_s.get(self.host.id, moment_s)
                self.world.after(wait_s, self._searched, self._search)
            case events.StopSearch():
                self._search = None
            case events.SendTo(node=node, message=to_send):
                self._send(node, to_send)
            case events.TellAll(message=to_tell):
                for other in self.world.hosts:
                    if other is not self.host:
                        self._send(other.id, to_tell)
            case events.WishModel(model=model):
                self._take_wish(ClusterWish(self._next_at(), self.host.name, model))
            case events.AnnounceRingPort(port=port):
                self.world.tell(self.host, f"announces port {port} for its ring")
                self.host.ring_port = port
                self._card_changed()
            case events.AnnounceUnfit(text=text):
                self.world.tell(self.host, f"cannot serve: {text}" if text else "can serve again")
                self.host.unfit = text
                self._card_changed()
            case events.ChooseParallel():
                pass  # modelled ranks measure nothing
            case events.EmitEvent(type=kind, data=data):
                self.world.told_engine_event(self.host, kind, data)
            case events.StatusChanged():
                self.mesh_changed()
            case events.LogIgnored(sender=sender, kind=kind):
                if kind in NEVER_IGNORED:
                    self.world.broken(self.host, f"ignores a {kind} of {sender}")
            case _:
                self._deliver(command)

    def _send(self, node: NodeId, message: EngineMessage) -> None:
        """While connections come and go, some messages are lost, some come twice, some late."""
        world, rng = self.world, self.world.engine_rng
        if not world.message_loss:
            world.control.send_engine_message(self.host, node, message, 0.0)
            return
        for _ in range(2 if rng.random() < world.message_loss / 2 else 1):
            if rng.random() >= world.message_loss:
                world.control.send_engine_message(self.host, node, message, rng.uniform(0.0, 0.02))

    def _searched(self, search: tuple[int, str]) -> None:
        """Only the newest search of this life has an answer."""
        if search is not self._search or search[0] != self.host.life:
            return
        model = search[1]
        if self.host.asleep:
            self.world.after(SEARCH_S[1], self._searched, search)
        elif self.world.is_missing(self.host):
            self.feed(events.ModelNotFound(model, "not_found", f"there is no model {model}"))
        else:
            if model != self.host.found:
                self.host.found = model
                self._card_changed()
            self.feed(events.ModelFound(ModelFacts(model, f"/models/{model}", SIZES)))

    def _deliver(self, delivery: Delivery) -> None:
        client = self.clients.get(delivery.request_id)
        self.world.engine_checker.delivered(self, client, delivery)
        if client is None:
            return
        if isinstance(delivery, events.DeliverEnd | events.DeliverError):
            del self.clients[delivery.request_id]
        if client.take(delivery):
            self.feed(events.ClientStoppedReading(delivery.request_id))
