"""Which request the ranks generate next: the coordinator's queue.

First come, first served, one at a time: a pipeline of ranks is busy with one. An order names one generation for
ever: orders rise on all ranks, over restarts and changes of the coordinator, and no two coordinators give the same.
A coordinator that finds a rank at work on what it does not know asks that rank; a request that got lost altogether
is submitted again by its origin, with what it has of the answer.

Empty on every node but the coordinator. Times in monotonic seconds.
"""

from __future__ import annotations

from collections import deque
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


class Scheduler:
    """The queue of this node, used while it is coordinator. `incarnation` rises with each of its lives."""

    def __init__(self, me: NodeId, incarnation: int) -> None:
        self._me = me
        self._tag = int(me, 16) & ((1 << ORDER_TAG_BITS) - 1)
        self._last_order = incarnation << ORDER_TAG_BITS
        self._waiting: deque[SubmitRequest] = deque()
        self._active: BeginRequest | None = None
        self._cancelled = False
        self._unclaimed_since: float | None = None
        self._abandoned = False
        """Was the active request cancelled because no origin claimed it? One that still does may have it again."""
        self._ended_order = 0
        self._ended_at: dict[str, float] = {}
        self._straggling_since: float | None = None
        self._repeat_at = 0.0
        self._repeats = False
        """Is there a rank that must be asked, or told, until its status changes?"""
        self.draining = False

    @property
    def active(self) -> BeginRequest | None:
        return self._active

    def origins(self, request_id: str) -> set[NodeId]:
        """Who asked for a request that waits or is active."""
        found = {wait.origin for wait in self._waiting if wait.request.request_id == request_id}
        if self._active is not None and client_id(self._active.request.request_id) == request_id:
            found.add(self._active.origin)
        return found

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take_over(self, begun: list[BeginRequest], last_order: int, now: float) -> None:
        """This node became coordinator: what its own rank was given and has not ended is active."""
        self._last_order = max(self._last_order, last_order)
        for begin in begun:
            self.adopt(begin, now)

    def adopt(self, begin: BeginRequest, now: float) -> None:
        """What a rank is at, begun by an earlier coordinator. The highest order is the present one."""
        self._last_order = max(self._last_order, begin.order)
        if begin.order > max(self._ended_order, self._active.order if self._active is not None else 0):
            request_id = client_id(begin.request.request_id)
            submitted = [wait.origin for wait in self._waiting if wait.request.request_id == request_id]
            origin = begin.origin or next(iter(submitted), NodeId(""))
            self._activate(msgspec.structs.replace(begin, origin=origin))
            self._drop_waiting(request_id)
            self._unclaimed_since = None if origin else now

    def members(self, members: Collection[NodeId], now: float) -> None:
        """Who is in the mesh: the client of an origin that is not may be gone for good."""
        active = self._active
        if active is not None and active.origin and active.origin not in members:
            self._active = msgspec.structs.replace(active, origin=NodeId(""))
            self._unclaimed_since = now

    def _activate(self, begin: BeginRequest) -> None:
        self._active, self._cancelled, self._abandoned = begin, False, False
        self._straggling_since = self._unclaimed_since = None

    def give_up(self) -> None:
        """This node is no longer coordinator: origins submit what waits to the next one."""
        self._waiting.clear()
        self._active = self._unclaimed_since = None

    def submit(self, submit: SubmitRequest, now: float) -> list[SchedulerCommand]:
        """Queues a request, or refuses it. One that is known already is only confirmed."""
        request_id = submit.request.request_id
        active = self._active
        if active is not None and client_id(active.request.request_id) == request_id:
            if self._abandoned:
                return []  # too late for this generation: it is begun again when it has ended
            if self._unclaimed_since is not None:
                self._active, self._unclaimed_since = msgspec.structs.replace(active, origin=submit.origin), None
        if self._knows(request_id):
            return [TellOrigin(submit.origin, Queued(request_id))]
        ended_at = self._ended_at.get(request_id)
        if ended_at is not None and now - ended_at < ENDED_GRACE_S:
            return []
        has_begun = bool(submit.tokens) or ended_at is not None
        if self.draining and not has_begun:
            return [self._refuse(submit, "draining", "the engine is being drained and admits no more requests")]
        if len(self._waiting) >= MAX_WAITING and not has_begun:
            text = f"{MAX_WAITING} requests wait already; try again later"
            return [self._refuse(submit, "queue_full", text)]
        if has_begun:
            self._waiting.appendleft(submit)  # it had its turn, and lost it through no fault of its own
        else:
            self._waiting.append(submit)
        return [TellOrigin(submit.origin, Queued(request_id))]

    def _knows(self, request_id: str) -> bool:
        if self._active is not None and client_id(self._active.request.request_id) == request_id:
            return True
        return any(waiting.request.request_id == request_id for waiting in self._waiting)

    def _refuse(self, submit: SubmitRequest, code: str, text: str) -> TellOrigin:
        return TellOrigin(
            submit.origin, SubmitRefused(submit.request.request_id, code, text, retry_after_s=RETRY_AFTER_S)
        )

    def cancel(self, request_id: str) -> None:
        """Drops a waiting request; the active one ends through its ranks, which are told until it has."""
        self._drop_waiting(request_id)
        if self._active is not None and client_id(self._active.request.request_id) == request_id:
            self._cancelled = True
            self._repeat_at = 0.0

    def _drop_waiting(self, request_id: str) -> None:
        self._waiting = deque(wait for wait in self._waiting if wait.request.request_id != request_id)

    def advance(self, ranks: list[RankStatus], formed: bool, now: float) -> list[SchedulerCommand]:
        """Ends the active request once its ranks have, begins the next once the group stands, repeats what got
        lost. `ranks` are the statuses of all of the plan's ranks.
        """
        if not ranks:
            return []
        self._last_order = max(self._last_order, *(rank.begun_order for rank in ranks))
        if self._unclaimed_since is not None and now - self._unclaimed_since >= CLAIM_S:
            self._cancelled = self._abandoned = True
            self._unclaimed_since = None
        commands = self._end(ranks, now)
        unknown = [rank for rank in ranks if self._is_unknown(rank)]
        if self._active is None and not unknown and formed and self._waiting:
            return commands + self._begin(ranks, now)
        if now >= self._repeat_at:
            self._repeat_at = now + REPEAT_S
            commands += self._repeat(ranks, unknown)
        return commands

    def _begin(self, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        submit = self._waiting.popleft()
        self._last_order = ((self._last_order >> ORDER_TAG_BITS) + 1) << ORDER_TAG_BITS | self._tag
        generation = generation_id(submit.request.request_id, self._last_order)
        request = msgspec.structs.replace(submit.request, request_id=generation)
        self._activate(BeginRequest(self._me, self._last_order, submit.origin, request, submit.tokens))
        self._repeat_at = now + REPEAT_S
        assert self._active is not None
        return [TellRank(rank.sender, self._active) for rank in ranks]

    def _repeat(self, ranks: list[RankStatus], unknown: list[RankStatus]) -> list[SchedulerCommand]:
        """What each rank's status shows that it lacks."""
        commands: list[SchedulerCommand] = [TellRank(rank.sender, TellBegun(self._me)) for rank in unknown]
        behind = [rank for rank in ranks if rank.finished_order < rank.begun_order <= self._ended_order]
        self._repeats = bool(unknown or behind)
        commands += [TellRank(rank.sender, RequestsEnded(self._me, self._ended_order)) for rank in behind]
        active = self._active
        if active is None or any(rank.finished_order >= active.order for rank in ranks):
            return commands
        begin = msgspec.structs.replace(active, sender=self._me)
        commands += [TellRank(rank.sender, begin) for rank in ranks if rank.begun_order < active.order]
        if self._cancelled:
            cancel = CancelRequest(active.request.request_id)
            commands += [TellRank(rank.sender, cancel) for rank in ranks]
        return commands

    def next_deadline(self) -> float | None:
        """When `advance` has something to do; None where only a rank's status or a submission changes anything."""
        candidates = []
        if self._active is not None or self._repeats:
            candidates.append(self._repeat_at)
        if self._unclaimed_since is not None:
            candidates.append(self._unclaimed_since + CLAIM_S)
        if self._straggling_since is not None:
            candidates.append(self._straggling_since + STRAGGLER_S)
        return min(candidates, default=None)

    def _is_unknown(self, rank: RankStatus) -> bool:
        """Is this rank at a request that this coordinator has never heard of?"""
        known = max(self._ended_order, self._active.order if self._active is not None else 0)
        return rank.finished_order < rank.begun_order and rank.begun_order > known

    def _end(self, ranks: list[RankStatus], now: float) -> list[SchedulerCommand]:
        active = self._active
        if active is None or not any(rank.finished_order >= active.order for rank in ranks):
            self._straggling_since = None
            return []
        if not all(rank.finished_order >= active.order for rank in ranks):
            if self._straggling_since is None:
                self._straggling_since = now
            if now - self._straggling_since < STRAGGLER_S:
                return []
        if not self._abandoned:
            self._ended_at[client_id(active.request.request_id)] = now
        self._active = self._straggling_since = self._unclaimed_since = None
        self._ended_order = active.order
        while len(self._ended_at) > MAX_ENDED:
            del self._ended_at[next(iter(self._ended_at))]
        return [TellRank(rank.sender, RequestsEnded(self._me, active.order)) for rank in ranks]
