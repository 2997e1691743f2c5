"""Keeps a quiet stream alive: wraps an async generator and yields None whenever nothing came for a while.

Decides nothing about what a consumer writes then (an SSE comment, an empty line). The wrapped generator runs in
one task of its own from its first step to its close, and is closed when the consumer stops, for whatever reason
it stops. A generation needs none of it: its own KeepAlives come more often.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

KEEP_ALIVE_S: Final = 10.0
"""Below the shortest idle limit in common use (proxies close at 15-60 s), and rare enough to cost nothing."""


class _Arrived(Generic[Item]):
    def __init__(self, item: Item) -> None:
        self.item = item


async def paced(
    source: AsyncGenerator[Item, None], idle_s: float | Callable[[], float]
) -> AsyncGenerator[Item | None, None]:
    """The items of `source`, with a None after each `idle_s` seconds without one. A function says anew after each
    item, and each None, how long.

    What `source` raises is raised here. Close this generator (`aclose`), or cancel its consumer and close it, to
    close `source`.
    """
    queue: asyncio.Queue[_Arrived[Item] | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump() -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put(_Arrived(item))
        except Exception as error:  # carried over to the consumer, whatever it is
            await queue.put(error)
        else:
            await queue.put(None)

    task = asyncio.create_task(pump(), name="paced stream")
    try:
        while True:
            try:
                async with asyncio.timeout(idle_s() if callable(idle_s) else idle_s):
                    entry = await queue.get()
            except TimeoutError:
                yield None
                continue
            if entry is None:
                return
            if isinstance(entry, Exception):
                raise entry
            yield entry.item
    finally:
        task.cancel()
        await asyncio.wait({task})
