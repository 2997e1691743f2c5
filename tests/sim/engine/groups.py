"""The groups that modelled workers form: who steps when, who knows a token first, and what a fault leaves behind.

Behaves as ranks of engine/exoengine do together: several requests are open at once, up to the `max_concurrent` of
rank 0's load. Rank 0 opens them in their order; each turn runs a step of each, and every rank sees the outcomes in
the same order. A group's connections run between the addresses that its workers were told: while one of them
carries nothing the group stands still, and where its address goes away it breaks. The token at a place of an answer
follows from the client's request and the place alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from exod.core.engine.engine_messages import client_id
from exoengine.protocol import GenerationRequest, Prepare

if TYPE_CHECKING:
    from tests.sim.engine.surroundings import Surroundings
    from tests.sim.engine.worker import Worker

STEP_S = 0.05
STEP_DEADLINE_S = 5.0
"""As `SyncSettings.step_deadline_s`."""
FORM_S = 0.2
FORM_AGAIN_S = 0.2
OUTCOME_S = 0.001
"""From one rank to the next."""
BETWEEN_STEPS_S = 0.0002
"""Between the steps of two requests: a fault in between leaves one of them done and the other not."""
NOTICED_S = 0.01
"""How long the end of a connection takes to reach its other end."""
BAD_PROMPT = ""
"""Every rank refuses a request with this one when it is opened."""

End = Literal["", "length", "cancelled", "failed"]
GroupKey = tuple[str, int]


def token_at(request_id: str, index: int) -> int:
    return zlib.crc32(f"{client_id(request_id)}/{index}".encode()) % 50_000


@dataclass
class Generation:
    """One request on one rank."""

    order: int
    request: GenerationRequest
    tokens: list[int]
    cancelled: bool = False
    finished: End = ""


class Group:
    """Ranks that stand in one group, in rank order. Alive until the first fault."""

    def __init__(self, world: Surroundings, key: GroupKey, workers: list[Worker]) -> None:
        self.world, self.key, self.workers = world, key, workers
        self.ways = ring_ways([worker.prepared for worker in workers if worker.prepared is not None])
        self.alive = True
        self.open: set[int] = set()
        """The orders of the requests whose steps are run."""
        load = workers[0].model
        self._max_concurrent = load.serving.max_concurrent if load is not None else 1
        self._on_the_way = 0
        self._moved_at = world.now
        self._recall()
        world.after(STEP_S, self._turn)

    def _recall(self) -> None:
        """A fault in a last step left requests unfinished on some ranks only: all open them again."""
        unfinished = {order for worker in self.workers for order in worker.waiting}
        for worker in self.workers:
            for order in sorted(unfinished):
                worker.recall(order)

    def _turn(self) -> None:
        if not self.alive:
            return
        world = self.world
        world.after(STEP_S + world.ring_delay_s(self.ways), self._turn)
        if world.has_lost_address(self.ways):
            self.fail("peer_lost", "the connection to a peer was lost")
        elif any(worker.is_stopped for worker in self.workers) or not world.group_carries(self.key, self.ways):
            self._wait(f"a step of {sorted(self.open)}", idle=not self.open)
        elif self._on_the_way:
            return
        elif self.open and any(worker.computes for worker in self.workers):
            self._wait(f"a step of {sorted(self.open)}")
        elif any(worker.pause_wanted for worker in self.workers):
            self._pause()
        elif self._opens_next() and self._is_computed():
            self._run_steps()

    def _is_computed(self) -> bool:
        """Are the slow ranks through the step that they are at?"""
        for worker in self.workers if self.open else ():
            worker.compute()
        if any(worker.computes for worker in self.workers):
            return False
        for worker in self.workers:
            worker.computed = False
        return True

    def _wait(self, what: str, idle: bool = False) -> None:
        if idle:
            self._moved_at = self.world.now
        elif self.world.now - self._moved_at > STEP_DEADLINE_S and any(
            not self._waits_on(worker) for worker in self.workers
        ):
            self.world.witness.hung()
            self.fail("deadline", f"{what} took too long")

    def _waits_on(self, worker: Worker) -> bool:
        return worker.waits_until > self.world.now

    @property
    def in_step_s(self) -> float:
        return self.world.now - self._moved_at if self.open else 0.0

    def _opens_next(self) -> bool:
        """Opens a request, if there is one and a place for it. False where a rank does not know it yet: the ranks
        take messages in order, so all wait.
        """
        order = min((order for order in self.workers[0].waiting if order not in self.open), default=None)
        if order is None or len(self.open) >= self._max_concurrent:
            self._moved_at = self.world.now
            return True
        if not all(worker.knows(order) for worker in self.workers):
            self._wait(f"opening {order}")
            return False
        self.open.add(order)
        self._moved_at = self.world.now
        self._agree(order)
        return True

    def _agree(self, order: int) -> None:
        """Every rank learns what any of them has of the answer, and whether it is wanted."""
        standing = [worker.generation(order) for worker in self.workers]
        self.world.witness.opened(order, [one.request for one in standing])
        longest = max((generation.tokens for generation in standing), key=len)
        end: End = ""
        if any(generation.cancelled or generation.finished == "cancelled" for generation in standing):
            end = "cancelled"
        elif standing[0].request.prompt == BAD_PROMPT:
            end = "failed"
        for worker, generation in zip(self.workers, standing, strict=True):
            for token in longest[len(generation.tokens) :]:
                worker.add(generation, token)
            if end:
                worker.finish(generation, end)
        self._close_where_finished(order)

    def _run_steps(self) -> None:
        """One of each open request. The last rank knows first, then rank 0, then the others; a fault may come in
        between.
        """
        knowing = [self.workers[-1], *self.workers[:-1]]
        for slot, order in enumerate(sorted(self.open)):
            generations = [worker.generation(order) for worker in self.workers]
            if any(generation.cancelled for generation in generations):
                for worker, generation in zip(self.workers, generations, strict=True):
                    worker.finish(generation, "cancelled")
                self._close_where_finished(order)
                continue
            token = token_at(generations[0].request.request_id, len(generations[0].tokens))
            self._on_the_way += len(knowing)
            for place, worker in enumerate(knowing):
                delay_s = OUTCOME_S * place + BETWEEN_STEPS_S * slot
                self.world.after(delay_s, self._outcome, worker, order, token)

    def _outcome(self, worker: Worker, order: int, token: int) -> None:
        if not self.alive:
            return
        if worker.is_stopped:
            self.world.after(STEP_S, self._outcome, worker, order, token)
            return
        worker.add(worker.generation(order), token)
        self._on_the_way -= 1
        self._close_where_finished(order)

    def _close_where_finished(self, order: int) -> None:
        generations = [worker.generation(order) for worker in self.workers]
        if all(generation.finished for generation in generations):
            for worker, generation in zip(self.workers, generations, strict=True):
                worker.finish(generation, generation.finished)
            self.open.discard(order)

    def _pause(self) -> None:
        self.alive = False
        for worker in self.workers:
            worker.paused()

    def fail(self, code: str, text: str, by: Worker | None = None) -> None:
        if not self.alive:
            return
        self.alive = False
        for worker in self.workers:
            if worker is not by:
                self.world.after(NOTICED_S, worker.lost, self, code, text)


class Rendezvous:
    """Where ranks meet to form a group."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._meeting: dict[GroupKey, list[Worker]] = {}
        self.newest: Group | None = None
        """The last group that was formed."""

    def arrive(self, worker: Worker, prepare: Prepare) -> None:
        self._world.witness.arrived(worker.node, prepare)
        key = (prepare.plan_hash, prepare.attempt)
        present = self._meeting.setdefault(key, [])
        present.append(worker)
        if len(present) == prepare.size:
            self._world.after(FORM_S * self._world.engine_rng.uniform(0.1, 1.0), self._form, key)

    def depart(self, worker: Worker) -> None:
        for key, present in list(self._meeting.items()):
            if worker in present:
                present.remove(worker)
                if not present:
                    del self._meeting[key]

    def awaits(self, worker: Worker) -> bool:
        return any(worker in present for present in self._meeting.values())

    def _form(self, key: GroupKey) -> None:
        """Until one of them gives up."""
        workers = self._meeting.get(key, [])
        prepares = sorted((one.prepared for one in workers if one.prepared is not None), key=lambda one: one.rank)
        if not prepares or len(prepares) != prepares[0].size:
            return
        ways = ring_ways(prepares)
        if any(worker.is_stopped for worker in workers) or not self._world.group_carries(key, ways):
            self._world.after(FORM_AGAIN_S, self._form, key)
            return
        del self._meeting[key]
        workers.sort(key=lambda one: one.prepared.rank if one.prepared is not None else 0)
        self._world.witness.formed(key, workers)
        self.newest = group = Group(self._world, key, workers)
        for worker in workers:
            worker.joined(group)


def ring_ways(prepares: list[Prepare]) -> list[tuple[str, str]]:
    """From where and whereto each rank connects, as the ranks were told. Empty for a single rank."""
    listeners = prepares[0].hosts
    return [
        (prepare.connect_from, listeners[(prepare.rank + 1) % prepare.size].partition(":")[0])
        for prepare in prepares
        if prepare.size > 1
    ]
