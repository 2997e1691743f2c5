"""The requests of a rank: those that wait, in their order, and the last ones that are finished.

Decides: which request is opened next, which are refused before anything is computed, and which is at fault where
steps fail by themselves. No MLX.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from exoengine.generate.request import Generation, accept
from exoengine.protocol import Begin, FromWorker, RequestFailed

if TYPE_CHECKING:
    from exoengine.model.loading import LoadedModel

FINISHED_KEPT: Final = 64
"""A rank keeps its finished requests for ranks that had a fault in their last step: twice as many as can be open at
once (`engine.max_concurrent`). At least as many as the control thread reports again (TOLD_KEPT), so that a request
that is sent again is never generated again."""

WAIT_S: Final = 0.05
"""How soon a lost neighbour is noticed while this rank waits for its daemon's Begin."""


class Backlog:
    def __init__(self, model: LoadedModel, emit: Callable[[FromWorker], None]) -> None:
        self._model, self._emit = model, emit
        self._waiting: dict[int, Generation] = {}
        self._finished: dict[int, Generation] = {}
        self._orders: dict[str, int] = {}
        self._ended: deque[str] = deque()
        """The requests that wait no longer, oldest first."""

    @property
    def first(self) -> Generation | None:
        """The request that has waited longest, whether it was opened or not."""
        return self._waiting[min(self._waiting)] if self._waiting else None

    def next_beside(self, opened: Container[int]) -> Generation | None:
        """The request that is opened next where those with the orders `opened` are open."""
        return next((self._waiting[order] for order in sorted(self._waiting) if order not in opened), None)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The orders of the requests that this rank has not finished."""
        return tuple(self._waiting)

    def recall(self, orders: Iterable[int]) -> None:
        """These are unfinished on other ranks: they are queued here again, so that they are opened for those."""
        for order in orders:
            if order in self._finished:
                self._waiting[order] = self._finished.pop(order)

    def get(self, order: int) -> Generation | None:
        return self._waiting.get(order) or self._finished.get(order)

    def begin(self, message: Begin) -> None:
        """Takes a request; one that is known already is left alone."""
        request_id = message.request.request_id
        if request_id in self._orders:
            return
        self._orders[request_id] = message.order
        accepted = accept(
            message.order, message.request, message.tokens, self._model.tokenizer, self._model.summary.vocab_size,
            self._model.max_context_tokens, self._emit,
        )  # fmt: skip
        if isinstance(accepted, RequestFailed):
            self._retire(request_id)
            self._emit(accepted)
        elif accepted.finished is not None:
            self.finished(accepted)
        else:
            self._waiting[message.order] = accepted

    def cancel(self, request_id: str) -> None:
        generation = self._waiting.get(self._orders.get(request_id, -1))
        if generation is not None:
            generation.cancelled = True

    def finished(self, generation: Generation) -> None:
        self.drop(generation)
        self._finished[generation.order] = generation

    def drop(self, generation: Generation) -> None:
        """It is answered, well or badly, and waits no longer."""
        self._waiting.pop(generation.order, None)
        self._retire(generation.request.request_id)

    def _retire(self, request_id: str) -> None:
        if request_id not in self._ended:
            self._ended.append(request_id)
        while len(self._ended) > FINISHED_KEPT:
            self._finished.pop(self._orders.pop(self._ended.popleft()), None)


class Faults:
    """Of steps that failed by themselves, not by the ring. Twice at the same place: the request is at fault. Of a
    batch each goes on alone, so it shows which.
    """

    def __init__(self) -> None:
        self._failures: dict[int, tuple[int, int]] = {}
        """By order, where a step failed, and how often there."""

    def note(self, running: Sequence[Generation]) -> tuple[Generation, int] | None:
        """A step of those failed; where it was of one alone, that one, and how often it has failed here."""
        if len(running) != 1:
            for generation in running:
                generation.alone = True
            return None
        generation = running[0]
        place, times = self._failures.get(generation.order, (-1, 0))
        times = times + 1 if place == generation.length else 1
        self._failures[generation.order] = (generation.length, times)
        return generation, times

    def forget(self, order: int) -> None:
        self._failures.pop(order, None)


def wait_for_begin(wake: socket.socket) -> None:
    """Sleeps until the other thread has something, or for a short time: the caller checks again either way."""
    wake.setblocking(True)
    wake.settimeout(WAIT_S)
    try:
        wake.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        pass
    finally:
        wake.setblocking(False)
