"""Which request the ranks generate next: the coordinator's queue.

First come, first served, one at a time: a pipeline of ranks is busy with one. Orders rise by one for each begun
request, on all ranks alike, also under the next coordinator. Called by the engine host of the coordinator; on
other nodes it stays empty.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from exod.core.engine_messages import BeginRequest, Queued, RankStatus, SubmitRefused, SubmitRequest
from exod.model import NodeId

MAX_WAITING: Final = 64
"""Of 64 requests of a few seconds each the last waits for minutes, longer than clients do: later ones are told
to come again."""

RETRY_AFTER_S: Final = 10.0
REPEAT_S: Final = 0.5
"""A BeginRequest may be lost with its connection: said again to ranks whose status does not show it."""


class TellOrigin(msgspec.Struct, frozen=True):
    """Command: to the node that the client spoke to."""

    to: NodeId
    message: Queued | SubmitRefused


class BeginOn(msgspec.Struct, frozen=True):
    """Command: to a rank's node."""

    to: NodeId
    message: BeginRequest


SchedulerCommand = TellOrigin | BeginOn


class Scheduler:
    """The queue of this node, used while it is coordinator."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._waiting: deque[SubmitRequest] = deque()
        self._active: BeginRequest | None = None
        self._repeat_at = 0.0
        self._last_order = 0
        self.draining = False

    @property
    def active(self) -> BeginRequest | None:
        return self._active

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take_over(self, begun: list[BeginRequest], last_order: int) -> None:
        """This node became coordinator: what its own rank was given and has not ended is active."""
        self._last_order = max(self._last_order, last_order, *(begin.order for begin in begun), 0)
        unfinished = max(begun, key=lambda begin: begin.order, default=None)
        if unfinished is not None and self._active is None:
            self._active = unfinished

    def give_up(self) -> None:
        """This node is no longer coordinator: origins submit what waits to the next one."""
        self._waiting.clear()
        self._active = None

    def submit(self, submit: SubmitRequest) -> list[SchedulerCommand]:
        """Queues a request, or refuses it. One that is known already is only confirmed."""
        request_id = submit.request.request_id
        known = (self._active is not None and self._active.request.request_id == request_id) or any(
            waiting.request.request_id == request_id for waiting in self._waiting
        )
        if known:
            return [TellOrigin(submit.origin, Queued(request_id))]
        if self.draining:
            return [self._refuse(submit, "draining", "the engine is being drained and admits no more requests")]
        if len(self._waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} requests wait already; try again later"
            return [self._refuse(submit, "queue_full", text)]
        self._waiting.append(submit)
        return [TellOrigin(submit.origin, Queued(request_id))]

    def _refuse(self, submit: SubmitRequest, code: str, text: str) -> TellOrigin:
        return TellOrigin(
            submit.origin, SubmitRefused(submit.request.request_id, code, text, retry_after_s=RETRY_AFTER_S)
        )

    def cancel(self, request_id: str) -> None:
        """Drops a waiting request; the active one ends through its ranks."""
        self._waiting = deque(wait for wait in self._waiting if wait.request.request_id != request_id)

    def advance(self, ranks: list[RankStatus], formed: bool, now: float) -> list[SchedulerCommand]:
        """Ends the active request once its ranks have, begins the next once the group stands, repeats what got
        lost. `ranks` are the statuses of the plan's ranks.
        """
        if not ranks:
            return []
        self._last_order = max(self._last_order, *(rank.begun_order for rank in ranks))
        if self._active is not None and self._has_ended(self._active.order, ranks):
            self._active = None
        if self._active is None:
            if not formed or not self._waiting:
                return []
            submit = self._waiting.popleft()
            self._last_order += 1
            self._active = BeginRequest(self._me, self._last_order, submit.origin, submit.request)
            self._repeat_at = now + REPEAT_S
            return [BeginOn(rank.sender, self._active) for rank in ranks]
        if now < self._repeat_at:
            return []
        self._repeat_at = now + REPEAT_S
        order = self._active.order
        if any(rank.finished_order >= order for rank in ranks):
            return []
        return [BeginOn(rank.sender, self._active) for rank in ranks if rank.begun_order < order]

    def next_deadline(self) -> float | None:
        return self._repeat_at if self._active is not None else None

    @staticmethod
    def _has_ended(order: int, ranks: list[RankStatus]) -> bool:
        """One rank ended it, and every other one has too or never began it (a new daemon whose rank is new)."""
        return any(rank.finished_order >= order for rank in ranks) and all(
            rank.finished_order >= order or rank.begun_order < order for rank in ranks
        )
