"""Which requests the ranks generate: the coordinator's queue.

Up to `max_concurrent` are under way at once. Clients take turns: the next place goes to the one with the fewest
requests under way, and among those to the one whose last turn is longest ago; of one client, first come, first
served. An order names one generation for ever: orders rise on all ranks, over restarts and changes of the
coordinator, and no two coordinators give the same. A coordinator that finds a rank at work on what it does not know
asks that rank; a request that got lost altogether is submitted again by its origin, with what it has of the answer.

One that makes no progress for `recovery_deadline_s`, whatever is tried meanwhile, is given up, as is one whose step
hung twice on the same edges (request_progress.py): its client is told why, and its place goes to the next.

Empty on every node but the coordinator. Times in monotonic seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import msgspec

from exod.core.engine.engine_messages import (
    BeginRequest,
    CancelRequest,
    Queued,
    RankStatus,
    RequestsEnded,
    SubmitRefused,
    SubmitRequest,
    TellBegun,
    client_id,
    generation_id,
)
from exod.core.engine.queue_times import QueueTimes
from exod.core.engine.request_progress import Edges, RequestProgress, edges_of
from exod.model import AnswerPace, MeshPlan, NodeId

MAX_WAITING: Final = 64
"""Of 64 requests of a few seconds each the last waits for minutes, longer than clients do: later ones are told
to come again."""

RETRY_AFTER_S: Final = 10.0
"""While no answer has shown how long they take."""

REPEAT_S: Final = 0.5
"""A message to a rank may be lost with its connection: repeated while its status does not show it."""

STRAGGLER_S: Final = 3.0
"""A rank that is still at a request that others ended: it had a fault in the very last step, or they were on the
other side of a partition, and the next group ends it there too; or its daemon is new and does not know of it. Past
this in a group the request counts as ended."""

ENDED_GRACE_S: Final = 10.0
"""A submission on its way when the request ended is no wish to have it generated again. One that still comes after
this is: the answer's end was lost."""

CLAIM_S: Final = 3.0
"""Of a request that outlived the daemon of its client, or its node. An origin that lives submits again within a
second of each new coordinator; past this nobody waits for the answer, and others wait for their turn."""

MAX_ENDED: Final = 256

TOO_SLOW: Final = "too_slow"
STEP_FAILED: Final = "step_failed"
RECOVERY_FAILED: Final = "recovery_failed"
"""Codes of requests that are given up: a rank computed all the time; a step hung; all else."""

ORDER_TAG_BITS: Final = 16
"""The low bits of an order are the coordinator's, so that both sides of a partition give different ones."""


class TellOrigin(msgspec.Struct, frozen=True):
    """Command: to the node that the client spoke to."""

    to: NodeId
    message: Queued | SubmitRefused


class TellRank(msgspec.Struct, frozen=True):
    """Command: to a rank's node."""

    to: NodeId
    message: BeginRequest | CancelRequest | TellBegun | RequestsEnded


SchedulerCommand = TellOrigin | TellRank


class _UnderWay:
    """A generation that was begun and has not ended on every rank."""

    def __init__(self, begin: BeginRequest, now: float, repeat_at: float) -> None:
        self.begin = begin
        self.begun_at = now
        self.repeat_at = repeat_at
        """From then on it is said again to ranks that lack it."""
        self.unclaimed_since = None if begin.origin else now
        self.straggling_since: float | None = None
        self.half_ended_since: float | None = None
        """When some ranks had ended it and others had not, looked at every REPEAT_S: that their statuses come one
        after the other says nothing."""
        self.cancelled = False
        self.abandoned = False
        """Does it end without an answer, as nobody claimed it or another coordinator ended it? An origin that still
        wants it may have it again."""
        self.progress = RequestProgress(now)

    @property
    def client_request(self) -> str:
        return client_id(self.begin.request.request_id)

    def claim(self, submit: SubmitRequest) -> None:
        if self.unclaimed_since is not None:
            self.begin = msgspec.structs.replace(self.begin, origin=submit.origin, client=submit.client)
            self.unclaimed_since = None


class Scheduler:
    """The queue of this node, used while it is coordinator. `incarnation` rises with each of its lives."""

    def __init__(
        self, me: NodeId, incarnation: int, max_concurrent: int = 8, recovery_deadline_s: float = 60.0
    ) -> None:
        self._me = me
        self._recovery_deadline_s = recovery_deadline_s
        self._given_up: dict[str, SubmitRefused] = {}
        """By the client's request, the answer that its origin gets as often as it asks."""
        self._tag = int(me, 16) & ((1 << ORDER_TAG_BITS) - 1)
        self._last_order = incarnation << ORDER_TAG_BITS
        self._max_concurrent = max_concurrent
        self._waiting: list[SubmitRequest] = []
        self._had_turn: list[SubmitRequest] = []
        """They were begun, and lost it through no fault of their own: they come before all that wait."""
        self._active: dict[int, _UnderWay] = {}
        """By order."""
        self._last_turn: dict[str, int] = {}
        """By client, the order of its request that was begun last."""
        self._pace = AnswerPace()
        self._floor = 0
        """Every request up to this order has ended."""
        self._ended_orders: set[int] = set()
        """And these above it."""
        self._ended_at: dict[str, float] = {}
        self._repeat_at = 0.0
        self._repeats = False
        """Is there a rank that must be asked, or told, until its status changes?"""
        self._hung_group = ("", 0)
        """Plan and attempt of the last group in which a step hung: its other ranks say so, too."""
        self.queue_times = QueueTimes()
        self.draining = False

    @property
    def active(self) -> tuple[BeginRequest, ...]:
        """What is under way, the oldest first."""
        return tuple(self._active[order].begin for order in sorted(self._active))

    def origins(self, request_id: str) -> set[NodeId]:
        """Who asked for a request that waits or is active."""
        waiting = {
            wait.origin for wait in (*self._had_turn, *self._waiting) if wait.request.request_id == request_id
        }
        active = (one for one in self._active.values() if one.client_request == request_id)
        return waiting | {one.begin.origin for one in active}

    @property
    def waiting(self) -> int:
        return len(self._had_turn) + len(self._waiting)

    # --- what is under way already --------------------------------------------------------------------------

    def take_over(self, begun: list[BeginRequest], last_order: int, now: float) -> None:
        """This node became coordinator: what its own rank was given and has not ended is active."""
        self._last_order = max(self._last_order, last_order)
        for begin in begun:
            self.adopt(begin, now)

    def adopt(self, begin: BeginRequest, now: float) -> None:
        """What a rank is at, begun by an earlier coordinator."""
        self._last_order = max(self._last_order, begin.order)
        if self._has_ended(begin.order) or begin.order in self._active:
            return
        request_id = client_id(begin.request.request_id)
        submitted = [wait for wait in (*self._had_turn, *self._waiting) if wait.request.request_id == request_id]
        self._active[begin.order] = adopted = _UnderWay(begin, now, repeat_at=now)
        for submit in submitted:
            adopted.claim(submit)
        self._drop_waiting(request_id)

    def members(self, members: Collection[NodeId], now: float) -> None:
        """Who is in the mesh: the client of an origin that is not may be gone for good."""
        for active in self._active.values():
            if active.begin.origin and active.begin.origin not in members:
                active.begin = msgspec.structs.replace(active.begin, origin=NodeId(""))
                active.unclaimed_since = now

    def give_up(self) -> None:
        """This node is no longer coordinator: origins submit what waits to the next one."""
        self._waiting.clear()
        self._had_turn.clear()
        self._active.clear()
        self._last_turn.clear()

    # --- what clients want ----------------------------------------------------------------------------------

    def submit(self, submit: SubmitRequest, now: float) -> list[SchedulerCommand]:
        """Queues a request, or refuses it. One that is known already is only confirmed."""
        request_id = submit.request.request_id
        if request_id in self._given_up:
            return [TellOrigin(submit.origin, self._given_up[request_id])]
        confirmed: list[SchedulerCommand] = [TellOrigin(submit.origin, Queued(request_id))]
        active = self._generation_of(request_id)
        if active is not None:
            if active.abandoned:
                return []  # too late for this generation: it is begun again when it has ended
            active.claim(submit)
            return confirmed
        if any(wait.request.request_id == request_id for wait in (*self._had_turn, *self._waiting)):
            return confirmed
        ended_at = self._ended_at.get(request_id)
        if ended_at is not None and now - ended_at < ENDED_GRACE_S:
            return []
        if submit.tokens or ended_at is not None:
            self._had_turn.append(submit)
            self.queue_times.preemptions += 1
            return confirmed
        if self.draining:
            text = "the engine is being drained and admits no more requests"
            return [self._refuse(submit, "draining", text, self._retry_after_s)]
        if len(self._waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} requests wait already; try again later"
            return [self._refuse(submit, "queue_full", text, self._next_end_s(now))]
        self._waiting.append(submit)
        self.queue_times.queued(request_id, now)
        return confirmed

    def _generation_of(self, request_id: str) -> _UnderWay | None:
        """The newest one of a client's request."""
        found = (order for order, active in self._active.items() if active.client_request == request_id)
        return self._active.get(max(found, default=-1))

    def _refuse(self, submit: SubmitRequest, code: str, text: str, retry_after_s: float) -> TellOrigin:
        return TellOrigin(submit.origin, SubmitRefused(submit.request.request_id, code, text, retry_after_s))

    def _next_end_s(self, now: float) -> float:
        """When the next place in the queue is free, as long as answers have taken of late."""
        if not self._active:
            return self._retry_after_s
        elapsed_s = now - min(active.begun_at for active in self._active.values())
        return self._pace.next_end_s(elapsed_s) or self._retry_after_s

    @property
    def _retry_after_s(self) -> float:
        return self._pace.between_ends_s(self._max_concurrent) or RETRY_AFTER_S

    def cancel(self, request_id: str) -> None:
        """Drops a waiting request; one that is under way ends through its ranks, which are told until it has. They
        are told at once where this is news alone: what they are told may make them cancel it once more.
        """
        self._drop_waiting(request_id)
        for active in self._active.values():
            if active.client_request == request_id and not active.cancelled:
                active.cancelled = True
                self._repeat_at = 0.0

    def _drop_waiting(self, request_id: str) -> None:
        self.queue_times.left(request_id)
        self._waiting = [wait for wait in self._waiting if wait.request.request_id != request_id]
        self._had_turn = [wait for wait in self._had_turn if wait.request.request_id != request_id]

    # --- what the ranks are told ----------------------------------------------------------------------------

    def advance(
        self, ranks: list[RankStatus], formed: bool, now: float, edges: Edges = ()
    ) -> list[SchedulerCommand]:
        """Ends what its ranks have ended, gives up what comes to nothing, begins what there is a place for once the
        group stands, repeats what got lost. `ranks` are the statuses of all of the plan's ranks, `edges` the paths
        between them.
        """
        if not ranks:
            return []
        self._last_order = max(self._last_order, *(rank.begun_order for rank in ranks))
        for active in self._active.values():
            if active.unclaimed_since is not None and now - active.unclaimed_since >= CLAIM_S:
                active.cancelled = active.abandoned = True
                active.unclaimed_since = None
        self._hear_progress(ranks)
        commands = self._end(ranks, formed, now)
        commands += self._give_up_stuck(ranks, edges if formed else None)
        unknown = [rank for rank in ranks if any(self._is_unknown(order) for order in rank.under_way)]
        while formed and not unknown and self.waiting and self._under_way < self._max_concurrent:
            commands += self._begin(ranks, now)
        if now >= self._repeat_at:
            self._repeat_at = now + REPEAT_S
            self._look_at_progress(now)
            commands += self._repeat(ranks, unknown, now)
        return commands

    @property
    def _under_way(self) -> int:
        """What is given up has no place any more, even while a rank still computes it."""
        return sum(active.client_request not in self._given_up for active in self._active.values())

    # --- what makes no progress -----------------------------------------------------------------------------

    def gave_up(self, status: RankStatus, plan: MeshPlan) -> None:
        """A rank gave its group up. Where a step took too long, no rank was seen to compute it."""
        group = (status.plan_hash, status.attempt)
        if status.gave_up != "deadline" or status.plan_hash != plan.hash or group == self._hung_group:
            return
        self._hung_group = group
        for active in self._active.values():
            active.progress.hung(edges_of(plan))

    def _hear_progress(self, ranks: list[RankStatus]) -> None:
        for rank in ranks:
            for order, position in zip(rank.under_way, rank.progress, strict=False):
                if order in self._active:
                    self._active[order].progress.heard(rank.sender, position)

    def _look_at_progress(self, now: float) -> None:
        some_move = any(active.progress.has_moved for active in self._active.values())
        for active in self._active.values():
            active.progress.look(now, some_move)

    def _give_up_stuck(self, ranks: list[RankStatus], edges: Edges | None) -> list[SchedulerCommand]:
        """`edges`: those of the group that stands; None where none does."""
        commands: list[SchedulerCommand] = []
        for active in self._active.values():
            progress = active.progress
            if active.cancelled:
                continue
            if edges is not None and progress.must_not_try(edges):
                text = (
                    f"a step at position {progress.position} did not end, twice on the same links; it is not tried "
                    "a third time. `exoctl doctor` on each node says what it finds"
                )
                commands += self._give_up_one(active, STEP_FAILED, text)
            elif progress.stalled_s >= self._recovery_deadline_s:
                commands += self._give_up_one(active, *self._why_stuck(progress, ranks))
        return commands

    def _why_stuck(self, progress: RequestProgress, ranks: list[RankStatus]) -> tuple[str, str]:
        deadline = f"engine.recovery_deadline_s = {self._recovery_deadline_s:g} s"
        computing = [rank for rank in ranks if rank.computing]
        if not computing:
            return RECOVERY_FAILED, f"the answer came no further than position {progress.position} for {deadline}"
        slowest = max(computing, key=lambda rank: rank.in_step_s)
        layers = slowest.layers
        share = f" for layers {layers[0]} to {layers[1] - 1}" if layers is not None else ""
        return TOO_SLOW, (
            f"the rank of {slowest.sender} has computed one step{share} for {slowest.in_step_s:.0f} s and is not "
            f"through (position {progress.position}, {deadline}): {slowest.model or 'the model'} is too slow on "
            "this machine. Load a smaller or less quantised model, or raise engine.recovery_deadline_s"
        )

    def _give_up_one(self, active: _UnderWay, code: str, text: str) -> list[SchedulerCommand]:
        """Its origin gets the reason, now and whenever it asks again; its ranks end it as one that is cancelled."""
        refused = SubmitRefused(active.client_request, code, text, retry_after_s=self._retry_after_s)
        self._given_up[active.client_request] = refused
        while len(self._given_up) > MAX_ENDED:
            del self._given_up[next(iter(self._given_up))]
        active.cancelled, self._repeat_at = True, 0.0
        return [TellOrigin(active.begin.origin, refused)] if active.begin.origin else []

    # --- what the ranks are told, again ---------------------------------------------------------------------

    def _begin(self, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        submit = self._next_turn()
        self.queue_times.begun(submit.request.request_id, now)
        self._last_order = ((self._last_order >> ORDER_TAG_BITS) + 1) << ORDER_TAG_BITS | self._tag
        generation = generation_id(submit.request.request_id, self._last_order)
        request = msgspec.structs.replace(submit.request, request_id=generation)
        begin = BeginRequest(
            self._me, self._last_order, submit.origin, request, submit.tokens, submit.client, self._floor
        )  # fmt: skip
        if not self._active:
            self._repeat_at = now + REPEAT_S
        self._active[begin.order] = _UnderWay(begin, now, repeat_at=now + REPEAT_S)
        self._last_turn[submit.client] = begin.order
        return [TellRank(rank.sender, begin) for rank in ranks]

    def _next_turn(self) -> SubmitRequest:
        if self._had_turn:
            return self._had_turn.pop(0)
        busy = Counter(active.begin.client for active in self._active.values())
        waiting = {wait.client for wait in self._waiting}
        self._last_turn = {one: turn for one, turn in self._last_turn.items() if one in waiting or one in busy}
        place = min(
            range(len(self._waiting)),
            key=lambda at: (
                busy[self._waiting[at].client], self._last_turn.get(self._waiting[at].client, 0), at
            ),
        )  # fmt: skip
        return self._waiting.pop(place)

    def _repeat(self, ranks: list[RankStatus], unknown: list[RankStatus], now: float) -> list[SchedulerCommand]:
        """What each rank's status shows that it lacks."""
        commands: list[SchedulerCommand] = [TellRank(rank.sender, TellBegun(self._me)) for rank in unknown]
        behind = [rank for rank in ranks if any(self._has_ended(order) for order in rank.under_way)]
        self._repeats = bool(unknown or behind)
        commands += [TellRank(rank.sender, self._ended_for(rank)) for rank in behind]
        for order, active in self._active.items():
            if any(rank.has_ended(order) for rank in ranks):
                commands += self._end_there_too(active, ranks, now)
                continue
            active.half_ended_since = None
            if now >= active.repeat_at:
                begin = msgspec.structs.replace(active.begin, sender=self._me, ended_order=self._floor)
                commands += [TellRank(rank.sender, begin) for rank in ranks if order not in rank.under_way]
            if active.cancelled:
                cancel = CancelRequest(active.begin.request.request_id)
                commands += [TellRank(rank.sender, cancel) for rank in ranks]
        return commands

    def _end_there_too(self, active: _UnderWay, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        """Two nodes that did not hear each other both had the request, and one side ended it. Its ranks may have
        forgotten it, and the group opens what any rank still has: told of it, they end it with the others.
        """
        order = active.begin.order
        if active.half_ended_since is None:
            active.half_ended_since = now
        lasts = now - active.half_ended_since >= REPEAT_S
        told = [rank for rank in ranks if rank.has_forgotten(order, lasts) and rank.sender != self._me]
        active.abandoned |= bool(told)
        begin = msgspec.structs.replace(
            active.begin, sender=self._me, tokens=(), ended_order=self._floor, only_to_end=True
        )
        return [TellRank(rank.sender, begin) for rank in told]

    def next_deadline(self) -> float | None:
        """When `advance` has something to do; None where only a rank's status or a submission changes anything."""
        candidates = [self._repeat_at] if self._active or self._repeats else []
        for active in self._active.values():
            if active.unclaimed_since is not None:
                candidates.append(active.unclaimed_since + CLAIM_S)
            if active.straggling_since is not None:
                candidates.append(active.straggling_since + STRAGGLER_S)
        return min(candidates, default=None)

    # --- what has ended -------------------------------------------------------------------------------------

    def _has_ended(self, order: int) -> bool:
        return order <= self._floor or order in self._ended_orders

    def _is_unknown(self, order: int) -> bool:
        """Is this a request that this coordinator has never heard of?"""
        return order not in self._active and not self._has_ended(order)

    def _ended_for(self, rank: RankStatus) -> RequestsEnded:
        orders = tuple(order for order in rank.under_way if order in self._ended_orders)
        return RequestsEnded(self._me, self._floor, orders)

    def _end(self, ranks: list[RankStatus], formed: bool, now: float) -> list[SchedulerCommand]:
        ended = [order for order in self._active if self._ends(order, ranks, formed, now)]
        for order in ended:
            active = self._active.pop(order)
            self._ended_orders.add(order)
            if active.begin.origin and not active.abandoned:
                self._ended_at[active.client_request] = now
            if not active.cancelled:
                self._pace = self._pace.after(now - active.begun_at)
        if not ended:
            return []
        self._raise_floor(ranks)
        while len(self._ended_at) > MAX_ENDED:
            del self._ended_at[next(iter(self._ended_at))]
        above = tuple(order for order in ended if order > self._floor)
        return [TellRank(rank.sender, RequestsEnded(self._me, self._floor, above)) for rank in ranks]

    def _ends(self, order: int, ranks: list[RankStatus], formed: bool, now: float) -> bool:
        active = self._active[order]
        if all(rank.has_ended(order) for rank in ranks):
            return True
        if not formed or not any(rank.has_ended(order) for rank in ranks):
            active.straggling_since = None
            return False
        if active.straggling_since is None:
            active.straggling_since = now
        return now - active.straggling_since >= STRAGGLER_S

    def _raise_floor(self, ranks: list[RankStatus]) -> None:
        """Below everything that is under way, here or on a rank that this coordinator has not asked yet."""
        going = [order for rank in ranks for order in rank.under_way if not self._has_ended(order)]
        lowest = min((*self._active, *going), default=max(self._ended_orders) + 1)
        self._floor = max(self._floor, min(lowest - 1, max(self._ended_orders)))
        self._ended_orders = {order for order in self._ended_orders if order > self._floor}
