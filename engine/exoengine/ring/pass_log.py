"""How a sequence was cut into passes through the model, so that any part of it can be run again bit for bit.

A pass over several tokens gives other last bits than the same tokens one by one. A pass log says for every position
that was run which it was: the prompt went through in chunks, the answer token by token, and a follow-up turn that
goes on from an earlier turn's caches inherits that turn's pass log up to there. It grows with each step, alike on
every rank; where a step is run again, its pass log is followed. How large new chunks are is prefill_chunks.py's
decision.

Decides: where a pass that was run begins and ends. Pure: no MLX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

SINGLY: Final = 1
"""The grain of what went token by token."""

REPLAY_TOKENS: Final = 32
"""Tokens of the answer that are run one by one again, per message between stages."""

Segment = tuple[int, int]
"""Its end and its grain, the most tokens in a pass; it begins where the one before ends. Passes end at multiples of
the grain, so that equal beginnings are cut alike."""


def pass_end(start: int, grain: int, end: int) -> int:
    """Where the pass from `start` on ends in a stretch up to `end`. Of single tokens several make a message."""
    limit = start + REPLAY_TOKENS if grain == SINGLY else (start // grain + 1) * grain
    return min(limit, end)


class PassLog(msgspec.Struct, frozen=True, array_like=True):
    segments: tuple[Segment, ...] = ()

    @property
    def end(self) -> int:
        """From here on nothing was run yet."""
        return self.segments[-1][0] if self.segments else 0

    def next_pass(self, start: int) -> tuple[int, int]:
        """Where the pass from `start`, before the end, ended, and its grain."""
        end, grain = next(segment for segment in self.segments if start < segment[0])
        return pass_end(start, grain, end), grain

    def boundary(self, position: int) -> int:
        """The last position up to `position` at which a pass ends."""
        begin = 0
        for end, grain in self.segments:
            if position < end:
                return max(begin, position // grain * grain)
            begin = end
        return begin

    def agrees(self, other: PassLog, position: int) -> bool:
        """Are both the same up to `position`, at which a pass of both ends?"""
        ends_here = self.boundary(position) == other.boundary(position) == position
        return ends_here and self.up_to(position) == other.up_to(position)

    def up_to(self, position: int) -> PassLog:
        """The pass log of the tokens before the boundary `position`."""
        return PassLog(tuple(_joined((min(end, position), grain) for end, grain in self.segments)))

    def ran(self, start: int, end: int, grain: int) -> PassLog:
        """With one more step, of the tokens from `start` to `end`; what was run again is known already."""
        if end <= self.end:
            return self
        return PassLog(tuple(_joined((*self.up_to(start).segments, (end, grain)))))


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without empty segments and without joints that end no pass, so that equal courses look equal."""
    held: Segment | None = None
    begin = 0
    for end, grain in segments:
        if end <= begin:
            continue
        if held is not None and (held[1] != grain or begin % grain):
            yield held
        held, begin = (end, grain), end
    if held is not None:
        yield held
