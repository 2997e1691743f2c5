"""The groups that fake workers form: who steps when, who knows a token first, and what a fault leaves behind.

Behaves as ranks of engine/exoengine do together. The token at a place of an answer follows from the client's
request and the place alone.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from exod.core.engine.engine_messages import client_id
from exoengine.protocol import GenerationRequest, Prepare

if TYPE_CHECKING:
    from tests.core.engine.fake_worker import FakeWorker

STEP_S = 0.05
STEP_DEADLINE_S = 5.0


def token_at(request_id: str, index: int) -> int:
    return zlib.crc32(f"{client_id(request_id)}/{index}".encode()) % 50_000


@dataclass
class Generation:
    order: int
    request: GenerationRequest
    tokens: list[int]
    cancelled: bool = False
    finished: str = ""


class Group:
    """Ranks that stand in one group. Alive until the first fault."""

    def __init__(self, hall: Hall, key: tuple[str, int], workers: list[FakeWorker]) -> None:
        self.hall, self.key, self.workers = hall, key, workers
        self.alive = True
        self.open: int | None = None
        self._on_the_way = 0
        self._moved_at = hall.loop.time()
        hall.loop.call_later(STEP_S, self._turn)

    def _turn(self) -> None:
        if not self.alive:
            return
        now = self.hall.loop.time()
        self.hall.loop.call_later(STEP_S, self._turn)
        if any(worker.is_stopped or self.hall.is_cut(self.key[0]) for worker in self.workers):
            if self.open is not None and now - self._moved_at > STEP_DEADLINE_S:
                self.fail("deadline", "a step took too long")
            return
        if self._on_the_way:
            return
        if any(worker.pause_wanted for worker in self.workers):
            self._pause()
            return
        lead = self.workers[0]
        if self.open is None:
            if not lead.waiting:
                self._moved_at = now
                return
            order = min(lead.waiting)
            if not all(worker.knows(order) for worker in self.workers):
                if now - self._moved_at > STEP_DEADLINE_S:
                    self.fail("deadline", f"opening {order} took too long")
                return
            self.open, self._moved_at = order, now
            self._agree(order)
        else:
            self._moved_at = now
            self._step(self.open)

    def _agree(self, order: int) -> None:
        standing = [worker.generation(order) for worker in self.workers]
        ids = {generation.request.request_id for generation in standing}
        assert len(ids) == 1, f"ranks know different requests by order {order}: {ids}"
        self.hall.opened(standing[0].request.request_id, order)
        longest = max((generation.tokens for generation in standing), key=len)
        cancelled = any(generation.cancelled or generation.finished == "cancelled" for generation in standing)
        for worker, generation in zip(self.workers, standing, strict=True):
            for token in longest[len(generation.tokens) :]:
                worker.add(generation, token)
            if cancelled:
                worker.finish(generation, "cancelled")
        self._close_where_finished(order)

    def _step(self, order: int) -> None:
        """The last rank knows first, then rank 0, then the others; a fault may come in between."""
        generations = [worker.generation(order) for worker in self.workers]
        if any(generation.cancelled for generation in generations):
            for worker, generation in zip(self.workers, generations, strict=True):
                worker.finish(generation, "cancelled")
            self._close_where_finished(order)
            return
        index = len(generations[0].tokens)
        token = token_at(generations[0].request.request_id, index)
        knowing = [self.workers[-1], *self.workers[:-1]]
        self._on_the_way = len(knowing)
        for place, worker in enumerate(knowing):
            self.hall.loop.call_later(0.001 * place, self._outcome, worker, order, index, token)

    def _outcome(self, worker: FakeWorker, order: int, index: int, token: int) -> None:
        if not self.alive:
            return
        if worker.is_stopped:
            self.hall.loop.call_later(STEP_S, self._outcome, worker, order, index, token)
            return
        worker.add(worker.generation(order), token)
        self._on_the_way -= 1
        if not self._on_the_way:
            self._close_where_finished(order)

    def _close_where_finished(self, order: int) -> None:
        if all(worker.generation(order).finished for worker in self.workers):
            self.open = None

    def _pause(self) -> None:
        self.alive = False
        for worker in self.workers:
            worker.paused()

    def fail(self, code: str, text: str, by: FakeWorker | None = None) -> None:
        if not self.alive:
            return
        self.alive = False
        for worker in self.workers:
            if worker is not by:
                self.hall.loop.call_later(0.01, worker.lost, self, code, text)


@dataclass
class Hall:
    """Where ranks meet."""

    loop: asyncio.AbstractEventLoop
    random: Random
    note: Callable[[str], None]
    cut_plans: set[str] = field(default_factory=set)
    meeting: dict[tuple[str, int], list[FakeWorker]] = field(default_factory=dict)
    shapes: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    generations: dict[str, set[int]] = field(default_factory=dict)
    form_s: float = 0.2
    load_s: tuple[float, float] = (0.3, 3.0)

    def is_cut(self, plan_hash: str) -> bool:
        return plan_hash in self.cut_plans

    def opened(self, request_id: str, order: int) -> None:
        self.generations.setdefault(client_id(request_id), set()).add(order)

    def arrive(self, worker: FakeWorker, prepare: Prepare) -> None:
        shape = self.shapes.setdefault(prepare.plan_hash, {})
        known = shape.setdefault(prepare.rank, (worker.name, prepare.size))
        assert known == (worker.name, prepare.size), f"two ranks {prepare.rank} in one plan: {known}, {worker.name}"
        key = (prepare.plan_hash, prepare.attempt)
        present = self.meeting.setdefault(key, [])
        present.append(worker)
        present.sort(key=lambda one: one.prepared.rank if one.prepared else 0)
        if len(present) == prepare.size and not self.is_cut(prepare.plan_hash):
            self.loop.call_later(self.form_s * self.random.uniform(0.1, 1.0), self._form, key)

    def depart(self, worker: FakeWorker) -> None:
        for present in self.meeting.values():
            if worker in present:
                present.remove(worker)

    def _form(self, key: tuple[str, int]) -> None:
        workers = self.meeting.get(key, [])
        if not workers or workers[0].prepared is None or len(workers) != workers[0].prepared.size:
            return
        if any(worker.is_stopped for worker in workers) or self.is_cut(key[0]):
            return
        del self.meeting[key]
        self.note(f"group {key[0]}/{key[1]} stands: {[worker.name for worker in workers]}")
        group = Group(self, key, workers)
        for worker in workers:
            worker.joined(group)
