"""The answers of one request while they come: what each has so far, and several of them at once.

Decides how many generations of one request are under way at once, and keeps the data that a dialect builds its
answer from. It knows no dialect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from exod.daemon_api.interface import GenerationEnd, TextDelta, Usage
from exod.http.dialects.shown_tokens import ShownToken, ShownTokens
from exoengine.protocol import CallDelta, ToolCall

AT_ONCE: Final = 4
"""Generations of one request at once: half of the default for all requests, so that a request with many choices
leaves room for others."""

Item = TypeVar("Item")


async def together(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """The items of all `sources`, each with its source's index, `AT_ONCE` sources at a time. An exception of one
    source is raised here and ends all. Closing this generator closes them.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(maxsize=1)
    room = asyncio.Semaphore(AT_ONCE)

    async def pump(at: int) -> None:
        try:
            async with room, aclosing(sources[at]) as source:
                async for item in source:
                    await queue.put((at, item))
        except Exception as error:  # carried over to the consumer, whatever it is
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(at), name=f"choice {at}") for at in range(len(sources))]
    try:
        left = len(tasks)
        while left:
            entry = await queue.get()
            if isinstance(entry, Exception):
                raise entry
            if entry is None:
                left -= 1
            else:
                yield entry
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Choice:
    """One answer so far."""

    def __init__(self, echo: str = "", *, wants_tokens: bool = False) -> None:
        self.text_pieces: list[str] = [echo] if echo else []
        self.reasoning_pieces: list[str] = []
        self.calls: list[ToolCall] = []
        self.tokens: list[ShownToken] = []
        """Those of the text that was shown, without those of reasoning and calls; none where nobody wants them."""
        self.new_tokens: list[ShownToken] = []
        """Those that the newest delta added."""
        self._shown = ShownTokens() if wants_tokens else None
        self.end: GenerationEnd | None = None

    def take(self, delta: TextDelta | GenerationEnd) -> None:
        if delta.text:
            self.text_pieces.append(delta.text)
        if delta.reasoning:
            self.reasoning_pieces.append(delta.reasoning)
        for call in delta.calls:
            self._take_call(call)
        if isinstance(delta, GenerationEnd):
            self.end = delta
        if self._shown is not None:
            self.new_tokens = self._shown.take(delta)
            self.tokens += self.new_tokens

    def _take_call(self, delta: CallDelta) -> None:
        if delta.index >= len(self.calls):
            self.calls.append(ToolCall(delta.id, delta.name, delta.arguments))
            return
        call = self.calls[delta.index]
        self.calls[delta.index] = ToolCall(call.id, call.name, call.arguments + delta.arguments)

    @property
    def text(self) -> str:
        return "".join(self.text_pieces)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasoning_pieces)

    @property
    def usage(self) -> Usage:
        return self.end.usage if self.end is not None else Usage(0, 0)


def usage_of(choices: Sequence[Choice], prompts: int) -> Usage:
    """Of all choices together: each prompt counts once, however many choices it has."""
    per_prompt = max(1, len(choices) // max(1, prompts))
    usages = [choice.usage for choice in choices]
    firsts = usages[::per_prompt]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
