"""Answers that are a list of blocks: reasoning, text, and each call, in the order in which they come.

Decides where a block begins and ends. The two dialects that have such answers decide how it is written.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, Literal

import msgspec

from exod.daemon_api.interface import GenerationEnd, TextDelta
from exod.http.dialects.ask import Ask
from exod.http.dialects.openai_answers import Answer
from exod.http.dialects.shown_tokens import ShownToken
from exoengine.protocol import CallDelta

BlockKind = Literal["thought", "said", "called"]


@dataclasses.dataclass
class Block:
    kind: BlockKind
    index: int
    id: str = ""
    name: str = ""
    """Of a call."""
    pieces: list[str] = dataclasses.field(default_factory=list)
    tokens: list[ShownToken] = dataclasses.field(default_factory=list)
    """Of what is said, where log probabilities are wanted."""

    @property
    def text(self) -> str:
        """Of a call its arguments, as JSON."""
        return "".join(self.pieces)


class BlockAnswer(Answer):
    """A dialect says what is sent as a block is `opened`, gets `more`, and is `closed`."""

    def __init__(self, ask: Ask, model: str, created: int) -> None:
        super().__init__(ask, model, created)
        self.blocks: list[Block] = []
        self._open: Block | None = None

    @abstractmethod
    def opened(self, block: Block) -> bytes: ...

    @abstractmethod
    def more(self, block: Block, text: str) -> bytes: ...

    @abstractmethod
    def closed(self, block: Block) -> bytes: ...

    @abstractmethod
    def finished(self, end: GenerationEnd) -> bytes:
        """After the last block."""

    def added(self, at: int, delta: TextDelta) -> bytes:
        return self._blocks_of(delta)

    def ended(self, at: int, end: GenerationEnd) -> bytes:
        return self._blocks_of(end) + self._close_block() + self.finished(end)

    def gather(self) -> None:
        """Makes the blocks of an answer that was not streamed."""
        choice = self.choices[0]
        if choice.reasoning:
            self._add("thought", choice.reasoning)
        if choice.text or not choice.calls:
            choice.new_tokens = choice.tokens
            self._add("said", choice.text)
        for call in choice.calls:
            self._switch("called", CallDelta(0, "", call.id, call.name))
            self._add("called", call.arguments)

    def _blocks_of(self, delta: TextDelta | GenerationEnd) -> bytes:
        data = b""
        if delta.reasoning:
            data += self._add("thought", delta.reasoning)
        if delta.text:
            data += self._add("said", delta.text)
        for call in delta.calls:
            if call.id:
                data += self._switch("called", call)
            if call.arguments:
                data += self._add("called", call.arguments)
        return data

    def _add(self, kind: BlockKind, text: str) -> bytes:
        data = b"" if self._open is not None and self._open.kind == kind else self._switch(kind)
        assert self._open is not None
        self._open.pieces.append(text)
        if kind == "said":
            self._open.tokens += self.choices[0].new_tokens
        return data + self.more(self._open, text)

    def _switch(self, kind: BlockKind, call: CallDelta | None = None) -> bytes:
        data = self._close_block()
        block = Block(kind, len(self.blocks))
        if call is not None:
            block.id, block.name = call.id, call.name
        self.blocks.append(block)
        self._open = block
        return data + self.opened(block)

    def _close_block(self) -> bytes:
        block, self._open = self._open, None
        return self.closed(block) if block is not None else b""


def named_event(kind: str, value: dict[str, Any]) -> bytes:
    """One server-sent event with its name, which its data repeats as `type`."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode({"type": kind, **value}) + b"\n\n"
