"""Which requests the ranks generate: the coordinator's queue.

Up to `max_concurrent` are under way at once. Clients take turns: the next place goes to the one with the fewest
requests under way, and among those to the one whose last turn is longest ago; of one client, first come, first
served. An order names one generation for ever: orders rise on all ranks, over restarts and changes of the
coordinator, and no two coordinators give the same. A coordinator that finds a rank at work on what it does not know
asks that rank; a request that got lost altogether is submitted again by its origin, with what it has of the answer.

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
from exod.model import NodeId

MAX_WAITING: Final = 64
"""Of 64 requests of a few seconds each the last waits for minutes, longer than clients do: later ones are told
to come again."""

RETRY_AFTER_S: Final = 10.0
"""While no answer has shown how long they take."""

LONGEST_RETRY_S: Final = 60.0
"""Later than this a client is never told to come again: answers may be shorter by then."""

TOOK_WEIGHT: Final = 0.25
"""Of the newest answer in the mean of how long they take."""

REPEAT_S: Final = 0.5
"""A message to a rank may be lost with its connection: repeated while its status does not show it."""

STRAGGLER_S: Final = 3.0
"""A rank that is still at a request that others ended: it had a fault in the very last step, and the next group
ends it there too; or its daemon is new and does not know of it. Past this the request counts as ended."""

ENDED_GRACE_S: Final = 10.0
"""A submission on its way when the request ended is no wish to have it generated again. One that still comes after
this is: the answer's end was lost."""

CLAIM_S: Final = 3.0
"""Of a request that outlived the daemon of its client, or its node. An origin that lives submits again within a
second of each new coordinator; past this nobody waits for the answer, and others wait for their turn."""

MAX_ENDED: Final = 256

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
        self.cancelled = False
        self.abandoned = False
        """Was it cancelled because no origin claimed it? One that still does may have it again."""

    @property
    def client_request(self) -> str:
        return client_id(self.begin.request.request_id)

    def claim(self, submit: SubmitRequest) -> None:
        if self.unclaimed_since is not None:
            self.begin = msgspec.structs.replace(self.begin, origin=submit.origin, client=submit.client)
            self.unclaimed_since = None


class Scheduler:
    """The queue of this node, used while it is coordinator. `incarnation` rises with each of its lives."""

    def __init__(self, me: NodeId, incarnation: int, max_concurrent: int = 8) -> None:
        self._me = me
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
        self._took_s = 0.0
        self._floor = 0
        """Every request up to this order has ended."""
        self._ended_orders: set[int] = set()
        """And these above it."""
        self._ended_at: dict[str, float] = {}
        self._repeat_at = 0.0
        self._repeats = False
        """Is there a rank that must be asked, or told, until its status changes?"""
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
            return confirmed
        if self.draining:
            return [self._refuse(submit, "draining", "the engine is being drained and admits no more requests")]
        if len(self._waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} requests wait already; try again later"
            return [self._refuse(submit, "queue_full", text)]
        self._waiting.append(submit)
        return confirmed

    def _generation_of(self, request_id: str) -> _UnderWay | None:
        """The newest one of a client's request."""
        found = (order for order, active in self._active.items() if active.client_request == request_id)
        return self._active.get(max(found, default=-1))

    def _refuse(self, submit: SubmitRequest, code: str, text: str) -> TellOrigin:
        return TellOrigin(
            submit.origin, SubmitRefused(submit.request.request_id, code, text, retry_after_s=self._retry_after_s)
        )

    @property
    def _retry_after_s(self) -> float:
        """When the next place in the queue is free, as long as answers have taken of late."""
        if self._took_s == 0.0:
            return RETRY_AFTER_S
        return min(max(1.0, self._took_s / self._max_concurrent), LONGEST_RETRY_S)

    def cancel(self, request_id: str) -> None:
        """Drops a waiting request; one that is under way ends through its ranks, which are told until it has."""
        self._drop_waiting(request_id)
        for active in self._active.values():
            if active.client_request == request_id:
                active.cancelled = True
                self._repeat_at = 0.0

    def _drop_waiting(self, request_id: str) -> None:
        self._waiting = [wait for wait in self._waiting if wait.request.request_id != request_id]
        self._had_turn = [wait for wait in self._had_turn if wait.request.request_id != request_id]

    # --- what the ranks are told ----------------------------------------------------------------------------

    def advance(self, ranks: list[RankStatus], formed: bool, now: float) -> list[SchedulerCommand]:
        """Ends what its ranks have ended, begins what there is a place for once the group stands, repeats what got
        lost. `ranks` are the statuses of all of the plan's ranks.
        """
        if not ranks:
            return []
        self._last_order = max(self._last_order, *(rank.begun_order for rank in ranks))
        for active in self._active.values():
            if active.unclaimed_since is not None and now - active.unclaimed_since >= CLAIM_S:
                active.cancelled = active.abandoned = True
                active.unclaimed_since = None
        commands = self._end(ranks, now)
        unknown = [rank for rank in ranks if any(self._is_unknown(order) for order in rank.under_way)]
        while formed and not unknown and self.waiting and len(self._active) < self._max_concurrent:
            commands += self._begin(ranks, now)
        if now >= self._repeat_at:
            self._repeat_at = now + REPEAT_S
            commands += self._repeat(ranks, unknown, now)
        return commands

    def _begin(self, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        submit = self._next_turn()
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
                continue
            if now >= active.repeat_at:
                begin = msgspec.structs.replace(active.begin, sender=self._me, ended_order=self._floor)
                commands += [TellRank(rank.sender, begin) for rank in ranks if order not in rank.under_way]
            if active.cancelled:
                cancel = CancelRequest(active.begin.request.request_id)
                commands += [TellRank(rank.sender, cancel) for rank in ranks]
        return commands

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

    def _end(self, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        ended = [order for order in self._active if self._ends(order, ranks, now)]
        for order in ended:
            active = self._active.pop(order)
            self._ended_orders.add(order)
            if not active.abandoned:
                self._ended_at[active.client_request] = now
            if not active.cancelled:
                took_s = now - active.begun_at
                self._took_s += (took_s - self._took_s) * (TOOK_WEIGHT if self._took_s else 1.0)
        if not ended:
            return []
        self._raise_floor(ranks)
        while len(self._ended_at) > MAX_ENDED:
            del self._ended_at[next(iter(self._ended_at))]
        above = tuple(order for order in ended if order > self._floor)
        return [TellRank(rank.sender, RequestsEnded(self._me, self._floor, above)) for rank in ranks]

    def _ends(self, order: int, ranks: list[RankStatus], now: float) -> bool:
        active = self._active[order]
        if not any(rank.has_ended(order) for rank in ranks):
            active.straggling_since = None
            return False
        if all(rank.has_ended(order) for rank in ranks):
            return True
        if active.straggling_since is None:
            active.straggling_since = now
        return now - active.straggling_since >= STRAGGLER_S

    def _raise_floor(self, ranks: list[RankStatus]) -> None:
        """Below everything that is under way, here or on a rank that this coordinator has not asked yet."""
        going = [order for rank in ranks for order in rank.under_way if not self._has_ended(order)]
        lowest = min((*self._active, *going), default=max(self._ended_orders) + 1)
        self._floor = max(self._floor, min(lowest - 1, max(self._ended_orders)))
        self._ended_orders = {order for order in self._ended_orders if order > self._floor}
