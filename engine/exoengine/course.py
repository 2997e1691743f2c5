"""How a sequence was cut into passes through the model, so that any part of it can be run again bit for bit.

A pass over several tokens gives other last bits than the same tokens one by one. A course says for every position
which it was: the prompt goes through in chunks, the answer token by token, and a follow-up turn that goes on from
an earlier turn's caches inherits that turn's course up to there.

Decides: where a pass begins and ends. Pure: no MLX. Called by generation.py and resume.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

CHUNK_TOKENS: Final = 512
"""Of a prefill. Large enough to keep a GPU busy, small enough that stages overlap on usual prompts and a chunk
ends far below a watchdog's limit. Chunks end at multiples of it, so that equal beginnings are cut alike."""

REPLAY_TOKENS: Final = 32
"""Tokens of the answer that are run one by one again, per message between stages."""

Segment = tuple[int, bool]
"""Its end, and whether it goes token by token; it begins where the one before ends."""


class Course(msgspec.Struct, frozen=True, array_like=True):
    """Beyond the last segment tokens go one by one."""

    segments: tuple[Segment, ...]

    def next_pass(self, start: int) -> tuple[int, bool]:
        """How many tokens from `start` on go together in one message, and whether one by one."""
        for end, singly in self.segments:
            if start < end:
                limit = start + REPLAY_TOKENS if singly else (start // CHUNK_TOKENS + 1) * CHUNK_TOKENS
                return min(limit, end) - start, singly
        return REPLAY_TOKENS, True

    def boundary(self, position: int) -> int:
        """The last position up to `position` at which a pass ends."""
        begin = 0
        for end, singly in self.segments:
            if position < end:
                return position if singly else max(begin, position // CHUNK_TOKENS * CHUNK_TOKENS)
            begin = end
        return position

    def agrees(self, other: Course, position: int) -> bool:
        """Are both the same up to `position`, at which a pass of both ends?"""
        ends_here = self.boundary(position) == other.boundary(position) == position
        return ends_here and self._up_to(position) == other._up_to(position)

    def branch(self, position: int, prompt_end: int) -> Course:
        """This course up to the boundary `position`, then chunks to `prompt_end`."""
        return Course(tuple(_joined((*self._up_to(position), (prompt_end, False)))))

    def _up_to(self, position: int) -> tuple[Segment, ...]:
        cut = [(min(end, position), singly) for end, singly in (*self.segments, (position, True))]
        return tuple(_joined(cut))


def fresh(prompt_end: int) -> Course:
    """Of a prompt that is prefilled from its beginning."""
    return Course(()).branch(0, prompt_end)


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without empty segments and without joints that end no pass, so that equal courses look equal."""
    held: Segment | None = None
    begin = 0
    for end, singly in segments:
        if end <= begin:
            continue
        if held is not None and (held[1] != singly or (not singly and begin % CHUNK_TOKENS)):
            yield held
        held, begin = (end, singly), end
    if held is not None:
        yield held
