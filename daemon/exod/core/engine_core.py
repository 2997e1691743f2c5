"""The engine's core on one node: its own rank, its clients, and as coordinator the group and the queue of all.

The verbs are those of NodeCore (core/node.py): `handle` an input, `handle_timer`, `next_deadline`, and the commands
that the first two return. Decides what follows from one thing for another: what a new plan or coordinator means for
the rank, the queue and the clients; where a submission, a cancellation or an answer goes; which messages count.
What a part decides by itself is in its own file. What this node sends to itself is handled in the same call, after
what is done now, never within it. Times in monotonic seconds.

An error in a handler is a bug: what was commanded before it is not lost, the next call returns it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from exod.core.base.errors import IllegalMoveError
from exod.core.base.events import PeerConnected
from exod.core.engine import engine_events as events
from exod.core.engine.auto_parallel import AutoParallel
from exod.core.engine.client_requests import ClientCommand, ClientRequests
from exod.core.engine.engine_events import EngineCommand, EngineInput, SendTo, StatusChanged, TellAll
from exod.core.engine.engine_messages import (
    UNKNOWN_ORIGIN,
    BeginRequest,
    Begun,
    CancelRequest,
    EngineMessage,
    FormOrder,
    ModelWish,
    ProveRdma,
    Queued,
    RankPhase,
    RankStatus,
    RelayAgain,
    RelayedOutput,
    RequestsEnded,
    SubmitRefused,
    SubmitRequest,
    TellBegun,
    client_id,
)
from exod.core.engine.group_formation import Formation, OrderRank, disagreement
from exod.core.engine.rank.held_requests import RequestGivenUp
from exod.core.engine.rank.patience import keep_waiting
from exod.core.engine.rank.rank import Rank, RankCommand
from exod.core.engine.rank.rank_status import ReportStatus
from exod.core.engine.rank.ring_port import RingPorts, RingPortTaken
from exod.core.engine.relay import Relay, coordinator_life, gives_up, relaying, relays
from exod.core.engine.request_progress import edges_of
from exod.core.engine.request_queue import Scheduler
from exod.core.engine.transport.transport_choice import TransportChoice
from exod.core.engine.waiting_reason import failures, waiting_reason
from exod.model import MeshPlan, NodeId
from exoengine.protocol import (
    DEFAULT_SERVING,
    Finished,
    Heartbeat,
    RequestFailed,
    Serving,
    SyncSettings,
    TokenOut,
)

_STARTS_WORK = (events.StartWorker, events.ResolveModel, events.SweepWorkers, events.LeaveWorker)
"""Commands that a daemon that ends does not carry out any more."""


class EngineCore:
    """`incarnation` rises with each life of this node; by `ring_key` ranks prove themselves to each other."""

    def __init__(
        self,
        me: NodeId,
        incarnation: int,
        sync: SyncSettings,
        recovery_deadline_s: float,
        ring_port: int,
        ring_key: bytes = b"",
        doubts_orphans: bool = False,
        serving: Serving = DEFAULT_SERVING,
        parallel: str = "auto",
        transport: str = "auto",
    ) -> None:
        self._me = me
        self.auto = AutoParallel(parallel)
        self.transport = TransportChoice(me, transport, sync.seal == "all")
        self.rank = Rank(me, incarnation, sync, ring_key, serving)
        self.rank.stuck.doubts_orphans = doubts_orphans
        self.formation = Formation(me)
        self.scheduler = Scheduler(me, incarnation, serving.max_concurrent, recovery_deadline_s)
        self.clients = ClientRequests(me, recovery_deadline_s)
        self._relay = Relay()
        self._relays: set[NodeId] = set()
        """Whose relayed outputs are taken."""
        self._ring_ports = RingPorts(ring_port)
        self.plan: MeshPlan | None = None
        self.suspended = ""
        self.statuses: dict[NodeId, RankStatus] = {}
        """The newest of each node, under whichever plan."""
        self._incarnations: dict[NodeId, int] = {}
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.cached_requests = 0
        self._leaving = False
        self._commands: list[EngineCommand] = []
        self._to_self: deque[EngineMessage] = deque()
        rank, model, of_rank, of_clients = self.rank, self.rank.model, self._from_rank, self._from_clients
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.PlanCommitted: self._plan_committed,
            events.PlanSuspended: self._plan_suspended,
            events.LinkHealthChanged: lambda e, now: of_rank(rank.link_health(e), now),
            events.RdmaWired: lambda e, now: self.transport.wired(e),
            events.RdmaProved: self._rdma_proved,
            events.PeerLost: self._peer_lost,
            PeerConnected: self._peer_connected,
            events.EngineMessageReceived: self._message_received,
            events.WorkerSaid: self._worker_said,
            events.WorkerGone: lambda e, now: of_rank(rank.worker_gone(e.text, now, e.for_memory), now),
            events.MemoryWired: lambda e, now: rank.worker.wired.observe(e.wired_bytes),
            events.ModelProgress: lambda e, now: of_rank(model.progress(e.model, e.done_bytes, e.total_bytes), now),
            events.ModelFound: lambda e, now: of_rank(rank.model_found(e.facts, now), now),
            events.ModelNotFound: lambda e, now: of_rank(rank.model_not_found(e.model, e.code, e.text, now), now),
            events.ClientAsked: lambda e, now: of_clients(self.clients.ask(e.request, now, e.client), now),
            events.ClientLeft: lambda e, now: of_clients(self.clients.leave(e.request_id), now),
            events.ClientStoppedReading: lambda e, now: of_clients(self.clients.stopped_reading(e.request_id), now),
            events.ModelWanted: self._model_wanted,
            events.WishChanged: self._wish_changed,
            events.RingKeyChanged: self._ring_key_changed,
            events.Leaving: self._leave,
        }

    # --- the verbs ------------------------------------------------------------------------------------------

    def handle(self, event: EngineInput, now: float) -> list[EngineCommand]:
        """Take one input."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise IllegalMoveError("not an input of the engine's core", event=event)
        handler(event, now)
        if not events.is_only_output(event):
            self._follow_up(now)
        self._hear_self(now)
        return self._drain()

    def handle_timer(self, now: float) -> list[EngineCommand]:
        """Do what is due."""
        if now >= self.rank.next_deadline():
            self._from_rank(self.rank.handle_timer(now), now)
        if (due := self.clients.next_deadline()) is not None and now >= due:
            begun, failed = self.rank.requests.of_clients, failures(self._ranks())
            self._from_clients(self.clients.handle_timer(self.trouble(), now, begun, failed), now)
        self._follow_up(now)
        self._hear_self(now)
        return self._drain()

    def next_deadline(self) -> float | None:
        """When handle_timer has something to do, if nothing else happens."""
        deadlines = [self.rank.next_deadline(), self.clients.next_deadline(), self.formation.next_deadline()]
        deadlines.append(self.transport.next_deadline())
        if self._known_ranks() is not None:
            deadlines.append(self.scheduler.next_deadline())
        return min((at for at in deadlines if at is not None), default=None)

    def _drain(self) -> list[EngineCommand]:
        commands, self._commands = self._commands, []
        return commands

    def _follow_up(self, now: float) -> None:
        """Whatever happened: the group or the queue may go on because of it."""
        self._choose_transport(now)
        self._from_formation(self.formation.handle_timer(now))
        self._schedule(now)
        if self.formation.formed and self.is_drained and not self.scheduler.active:
            known = self.rank.model.facts
            self._commands += self.auto.consider(self.plan, self.formation.attempt, known, self.ranks(), now)

    def _choose_transport(self, now: float) -> None:
        plan = self.plan if self._coordinates(self._me) and not self.suspended else None
        ranks = self.ranks()
        for proof in self.transport.follow(self.formation, plan, ranks, now):
            self._send(proof.to, proof.order)
        self._commands += self.transport.news()
        self.rank.transport.text = self.transport.text(plan, ranks)

    def _rdma_proved(self, event: events.RdmaProved, now: float) -> None:
        if self.rank.transport.proved(event.number, event.text):
            self._from_rank(self.rank.handle_timer(now), now)

    def _hear_self(self, now: float) -> None:
        while self._to_self:
            self._message(self._me, self._to_self.popleft(), now)
            self._follow_up(now)

    # --- what it knows --------------------------------------------------------------------------------------

    def trouble(self) -> str:
        """What the engine waits for, for people; empty where it runs."""
        return waiting_reason(self.plan, self.suspended, self._ranks())

    def disagreement(self) -> str:
        """Why the plan's ranks must not form a group, as every node sees it; empty where they may."""
        return disagreement(self._ranks())

    def ranks(self) -> list[RankStatus]:
        """The statuses of the plan's ranks that reported under it, in rank order."""
        return [status for status in self._ranks() if status is not None]

    @property
    def is_drained(self) -> bool:
        """Nothing is generated, here or as far as any rank told, and nothing waits."""
        busy = any(status.generating or status.finished_order < status.begun_order for status in self.ranks())
        return not busy and not self.rank.active and not self.scheduler.waiting

    def _ranks(self) -> list[RankStatus | None]:
        """For each rank of the plan its status; None for one that is not known under this plan."""
        if self.plan is None:
            return []
        found = [self.statuses.get(node) for node in self.plan.ring]
        return [status if status and status.plan_hash == self.plan.hash else None for status in found]

    def _known_ranks(self) -> list[RankStatus] | None:
        """What the queue needs of the ranks, under whichever plan they reported; None where this node does not
        coordinate, there is no rank, or one is not known.
        """
        plan = self.plan
        if plan is None or plan.coordinator != self._me or not plan.ring:
            return None
        known = [status for node in plan.ring if (status := self.statuses.get(node)) is not None]
        return known if len(known) == len(plan.ring) else None

    def _coordinates(self, node: NodeId) -> bool:
        return self.plan is not None and self.plan.coordinator == node

    def _is_rank(self, node: NodeId) -> bool:
        return self.plan is not None and node in self.plan.ring

    def _is_origin(self, sender: NodeId, request_id: str) -> bool:
        """Of a request that is known here: no other member may end or read what another's client asks."""
        held = self.rank.requests.of_client(request_id)
        known = self.scheduler.origins(request_id) | ({held.begin.origin} if held is not None else set())
        return not known or sender in known or UNKNOWN_ORIGIN in known

    def _may_cancel(self, sender: NodeId, request_id: str) -> bool:
        """The coordinator passes on what an origin said."""
        return self._coordinates(sender) or self._is_origin(sender, request_id)

    # --- inputs: the mesh -----------------------------------------------------------------------------------

    def _plan_committed(self, event: events.PlanCommitted, now: float) -> None:
        before, plan = self.plan, event.plan
        coordinates, coordinated = plan.coordinator == self._me, self._coordinates(self._me)
        if before is not None and before.model != plan.model:
            self.scheduler.give_up()
            self._from_clients(self.clients.model_changed(plan.model, now), now)
        if before is None and (self._me not in plan.ring or not plan.model):
            self._commands.append(events.SweepWorkers())
        self.plan, self.suspended = plan, ""
        # What the last plan's relay sent may still be on its way.
        self._relays = {relaying(known) for known in (before, plan) if known is not None and known.ring}
        self._from_rank(self.rank.commit(plan, event.reason, now), now)
        if coordinates and not coordinated:
            self.scheduler.take_over(self.rank.requests.begun(), self.rank.requests.begun_order, now)
        elif not coordinates:
            self.scheduler.give_up()
        self.scheduler.members([member.id for member in plan.members], now)
        self._from_formation(self.formation.follow(plan, now))
        same_life = before is not None and coordinator_life(before) == coordinator_life(plan)
        if not same_life or self._me not in plan.ring:
            self._from_clients(self.clients.coordinator_changed(now), now)
        self._changed()

    def _plan_suspended(self, event: events.PlanSuspended, now: float) -> None:
        if self.plan is None or self.plan.hash != event.plan_hash:
            return
        self.suspended = event.reason
        self._from_rank(self.rank.suspend(event.plan_hash, event.reason, now), now)
        self._from_formation(self.formation.follow(None, now))
        self._changed()

    def _peer_lost(self, event: events.PeerLost, now: float) -> None:
        self.statuses.pop(event.peer, None)
        self.formation.forget(event.peer, now)
        self._changed()

    def _peer_connected(self, event: PeerConnected, now: float) -> None:
        """A node that just came must not wait for the next report."""
        status = self.statuses.get(self._me)
        if status is not None:
            self._commands.append(SendTo(event.peer, status))

    # --- inputs: other nodes, and this one ------------------------------------------------------------------

    def _message_received(self, event: events.EngineMessageReceived, now: float) -> None:
        self._message(event.sender, event.message, now)

    def _message(self, sender: NodeId, message: EngineMessage, now: float) -> None:
        match message:
            case RankStatus() if message.sender == sender:
                self._rank_status(message, now)
            case FormOrder() if message.sender == sender:
                self._from_rank(self.rank.order(message, now), now)
            case ProveRdma() if message.sender == sender and self._coordinates(sender):
                self._commands += self.rank.transport.prove(message, self.plan, self._me)
            case BeginRequest() if message.sender == sender and self._coordinates(sender):
                self._begin(message, now)
            case TellBegun() if message.sender == sender and self._coordinates(sender):
                for begun in self.rank.requests.begun():
                    self._send(sender, Begun(begun))
            case Begun(begin=begin) if self._coordinates(self._me) and self._is_rank(sender):
                self.scheduler.adopt(begin, now)
            case RequestsEnded() if message.sender == sender and self._coordinates(sender):
                self._from_rank(self.rank.ended(message.order, message.orders, now), now)
            case SubmitRequest() if message.origin == sender:
                self._submitted(message, now)
            case Queued(request_id=request_id) if self._coordinates(sender):
                self.clients.queued(request_id, now)
            case SubmitRefused() if self._coordinates(sender):
                self._from_clients(self.clients.refused(message), now)
            case CancelRequest(request_id=request_id) if self._may_cancel(sender, request_id):
                self.scheduler.cancel(request_id)
                self._from_rank(self.rank.cancel(request_id), now)
            case RelayAgain(request_id=request_id, token_count=token_count) if self._is_origin(sender, request_id):
                self.rank.requests.claim(request_id, sender)
                for relayed in self._relay.after(request_id, token_count, sender):
                    self._send(sender, relayed)
            case RelayedOutput() if sender in self._relays or gives_up(sender, message, self.plan):
                self._relayed(sender, message, now)
            case ModelWish(model=model):
                self._commands.append(events.WishModel(model))
            case _:
                self._commands.append(events.LogIgnored(sender, type(message).__name__))

    def _rank_status(self, status: RankStatus, now: float) -> None:
        known = self.statuses.get(status.sender)
        if known is not None and (known.incarnation, known.seq) >= (status.incarnation, status.seq):
            return
        self.statuses[status.sender] = status
        if self._incarnations.get(status.sender, status.incarnation) < status.incarnation:
            self._origin_restarted(status.sender, now)
        self._incarnations[status.sender] = status.incarnation
        if status.sender != self._me:
            self._from_rank(self.rank.heard_of(status, now), now)
        if status.computing and status.sender != self._me:
            self._commands += keep_waiting(self.rank.worker, self.rank.requests)
        if self.plan is not None:
            self.scheduler.gave_up(status, self.plan)
        self._from_formation(self.formation.rank_status(status, now))
        self._changed()

    def _origin_restarted(self, origin: NodeId, now: float) -> None:
        """Its clients are gone with its earlier life: what they asked for is ended."""
        for held in list(self.rank.active.values()):
            if held.begin.origin == origin:
                self._from_rank(self.rank.cancel(held.begin.request.request_id), now)

    def _begin(self, begin: BeginRequest, now: float) -> None:
        """One of ours that no client waits for any more (the cancel was lost, or this daemon is new) is ended."""
        self._from_rank(self.rank.begin(begin, now), now)
        request_id = client_id(begin.request.request_id)
        if begin.origin == self._me and not begin.only_to_end and not self.clients.waits_for(request_id):
            self._cancel(request_id, now)

    def _submitted(self, submit: SubmitRequest, now: float) -> None:
        if self._coordinates(self._me):  # else the origin repeats it to the next coordinator
            for command in self.scheduler.submit(submit, now):
                self._send(command.to, command.message)

    def _relayed(self, relay: NodeId, message: RelayedOutput, now: float) -> None:
        for output in message.outputs:
            request_id = client_id(output.request_id)
            before = output.index if isinstance(output, TokenOut) else message.token_count
            self._from_clients(self.clients.output(request_id, output, before, now), now)
            if isinstance(output, TokenOut) and not self.clients.waits_for(request_id):
                self._send(relay, CancelRequest(request_id))
                break

    # --- inputs: the worker and the model -------------------------------------------------------------------

    def _worker_said(self, event: events.WorkerSaid, now: float) -> None:
        message = event.message
        if isinstance(message, TokenOut | Finished | RequestFailed):
            self._deliver(message, now)
        self._from_rank(self.rank.worker_said(message, now), now)
        if isinstance(message, Heartbeat) and message.computing:
            self._commands += keep_waiting(self.rank.worker, self.rank.requests)

    def _deliver(self, output: TokenOut | Finished | RequestFailed, now: float) -> None:
        """To this node's client; rank 0 relays to an origin that hosts no rank."""
        request_id = client_id(output.request_id)
        self._from_clients(self.clients.output(request_id, output, 0, now), now)
        if isinstance(output, Finished):
            self.prompt_tokens += output.prompt_tokens
            self.cached_tokens += output.cached_tokens
            self.cached_requests += output.cached_tokens > 0
            self.completion_tokens += output.completion_tokens
        held = self.rank.active.get(output.request_id)
        if held is not None and self.plan is not None and relays(self._me, self.plan):
            origin = held.begin.origin
            relayed = self._relay.take(output, len(held.tokens), origin, self.plan.ring)
            if relayed is not None and origin:
                self._send(origin, relayed)

    # --- inputs: clients and people -------------------------------------------------------------------------

    def _model_wanted(self, event: events.ModelWanted, now: float) -> None:
        """It goes round with this node's card, and is kept by all."""
        self._commands.append(events.WishModel(event.model))

    def _wish_changed(self, event: events.WishChanged, now: float) -> None:
        self.scheduler.draining = event.wish.draining
        if not event.wish.draining:
            self._from_rank(self.rank.asked_again(event.wish.model, now), now)

    def _ring_key_changed(self, event: events.RingKeyChanged, now: float) -> None:
        self.rank.ring_key = event.key

    def _leave(self, event: events.Leaving, now: float) -> None:
        self._leaving = True
        self.rank.leaving(now)

    # --- what the parts command -----------------------------------------------------------------------------

    def _from_rank(self, commands: Iterable[RankCommand], now: float) -> None:
        for command in commands:
            match command:
                case ReportStatus(status=status):
                    if status.phase is RankPhase.FORMED:
                        self._ring_ports.listened()
                    self._commands.append(TellAll(status))
                    self._to_self.append(status)
                case RequestGivenUp(begin=begin, text=text):
                    self._given_up(begin, text, now)
                case RingPortTaken(port=port):
                    if self._ring_ports.taken(port, now):
                        self._commands.append(events.AnnounceRingPort(self._ring_ports.port))
                case _:
                    if not (self._leaving and isinstance(command, _STARTS_WORK)):
                        self._commands.append(command)

    def _given_up(self, begin: BeginRequest, text: str, now: float) -> None:
        """Its client gets the reason. Nobody waits for it then, so it ends as one that is cancelled."""
        failed = RequestFailed(begin.request.request_id, "request_given_up", text)
        if begin.origin == self._me:
            self._from_clients(self.clients.output(client_id(failed.request_id), failed, 0, now), now)
        elif begin.origin:
            self._send(begin.origin, RelayedOutput((failed,), 0))
        self._cancel(client_id(failed.request_id), now)

    def _from_clients(self, commands: Iterable[ClientCommand], now: float) -> None:
        for command in commands:
            match command:
                case SubmitRequest():
                    self._submit(command)
                case CancelRequest(request_id=request_id):
                    self._cancel(request_id, now)
                case _:
                    self._commands.append(command)

    def _from_formation(self, orders: Iterable[OrderRank]) -> None:
        for order in orders:
            self._send(order.to, order.order)

    def _submit(self, submit: SubmitRequest) -> None:
        """To the present coordinator, which may be this node. Without a rank here, another relays the answer."""
        plan = self.plan
        if plan is None:
            return
        if plan.ring and self._me not in plan.ring:
            self._send(relaying(plan), RelayAgain(submit.request.request_id, len(submit.tokens)))
        self._send(plan.coordinator, submit)

    def _cancel(self, request_id: str, now: float) -> None:
        """Ends a request everywhere: any rank ends it on all, and the coordinator drops it from the queue."""
        self.scheduler.cancel(request_id)
        self._from_rank(self.rank.cancel(request_id), now)
        if self.plan is not None and self.plan.coordinator != self._me:
            self._send(self.plan.coordinator, CancelRequest(request_id))

    def _schedule(self, now: float) -> None:
        """The coordinator's queue: what is next, and to whom it must be said (again)."""
        ranks = self._known_ranks()
        if ranks is not None:
            edges = edges_of(self.plan) if self.plan is not None else ()
            formed = self.formation.formed and not self.auto.holds(self.plan, now)
            for command in self.scheduler.advance(ranks, formed, now, edges):
                self._send(command.to, command.message)

    def _send(self, node: NodeId, message: EngineMessage) -> None:
        if node == self._me:
            self._to_self.append(message)
        else:
            self._commands.append(SendTo(node, message))

    def _changed(self) -> None:
        if not self._commands or not isinstance(self._commands[-1], StatusChanged):
            self._commands.append(StatusChanged())
