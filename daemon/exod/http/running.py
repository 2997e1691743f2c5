"""The requests under way through this node: by their ids, so that they can be cancelled over another connection,
and how far each is, for the page.

Decides nothing about them. A request that a client made of another node is that node's. Times are Unix seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final

import msgspec

from exod.daemon_api.interface import GenerationDelta, KeepAlive, TextDelta
from exod.errors import ExitCode, RequestError

MOST_SHOWN: Final = 32
"""Of the requests under way on the page, the oldest first: as many as are computed at once, at most."""

BEGINNING: Final = "the first token is awaited"


class RunningRequest(msgspec.Struct, frozen=True):
    """One request that this node answers."""

    id: str
    since: float
    tokens: int
    """That were generated so far."""
    max_tokens: int
    """The most that it may have."""
    text: str
    """What it waits for, where nothing came for a while; else empty."""


class _RequestProgress:
    def __init__(self, name: str, max_tokens: int) -> None:
        self.name, self.max_tokens = name, max_tokens
        self.since = time.time()
        self.tokens = 0
        self.text = BEGINNING

    def heard(self, delta: GenerationDelta) -> None:
        if isinstance(delta, KeepAlive):
            self.text = delta.text or self.text
        elif isinstance(delta, TextDelta):
            self.tokens, self.text = self.tokens + 1, ""


class Running:
    """`keyed`: clients have keys, and a request is only its own client's to cancel. Without keys whoever reaches
    the API may.
    """

    def __init__(self, *, keyed: bool) -> None:
        self._keyed = keyed
        self._tasks: dict[tuple[str, str], list[asyncio.Task[Any]]] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._progress: dict[int, _RequestProgress] = {}
        self._numbers = itertools.count()

    def cancel(self, client: str, request_id: str) -> bool:
        """Cancels all of the client's requests with this id, which it may have given to several; False where none
        is under way here.
        """
        tasks = self._tasks.get((client if self._keyed else "", request_id), ())
        for task in tasks:
            self._cancelled.add(task)
            task.cancel()
        return bool(tasks)

    @contextmanager
    def hold(self, client: str, *request_ids: str) -> Iterator[None]:
        """The task that this runs in answers the client's request. Raises RequestError where it is cancelled."""
        task = asyncio.current_task()
        assert task is not None
        names = {(client if self._keyed else "", name) for name in request_ids if name}
        for name in names:
            self._tasks.setdefault(name, []).append(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cancelled:
                raise
            task.uncancel()
            raise RequestError("cancelled", "the request was cancelled by /v1/cancel", ExitCode.DEGRADED) from None
        finally:
            for name in names:
                self._tasks[name].remove(task)
                if not self._tasks[name]:
                    del self._tasks[name]
            self._cancelled.discard(task)

    async def followed(
        self, deltas: AsyncGenerator[GenerationDelta, None], name: str, max_tokens: int
    ) -> AsyncGenerator[GenerationDelta, None]:
        """Passes the deltas on and notes how far they are. Closing it closes `deltas`."""
        number = next(self._numbers)
        progress = self._progress[number] = _RequestProgress(name, max_tokens)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    progress.heard(delta)
                    yield delta
        finally:
            del self._progress[number]

    def lines(self) -> tuple[RunningRequest, ...]:
        """The oldest first."""
        return tuple(
            RunningRequest(one.name, one.since, one.tokens, one.max_tokens, one.text)
            for one in itertools.islice(self._progress.values(), MOST_SHOWN)
        )
