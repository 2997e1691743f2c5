"""The hidden states of one sequence that a stage sent downstream, kept for a stage that lost its caches.

A rank whose process died runs its layers again from these, while the ranks before it compute nothing. The states
are kept in the dtype in which they were sent, from the sequence's beginning up to a limit.

Decides: what is kept. Evaluates only the pieces that it joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx

MAX_SENT_BYTES: Final = 1024 * 1024 * 1024
"""65,000 tokens of a model whose hidden state has 8,192 values of two bytes. The KV cache of such a stage is about
ten times as large, so this is never what fills a machine; a longer sequence is prefilled again from here on."""

JOINED_TOKENS: Final = 64
"""So many single tokens are joined into one array: a GPU's driver limits the number of buffers, not only their
size."""


class SentStates:
    """The hidden states of tokens [0, length), in pieces."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self.length = 0
        self.nbytes = 0

    @property
    def pieces(self) -> Sequence[Any]:
        return self._pieces

    def add(self, start: int, hidden: Any) -> None:
        """What was sent for the tokens from `start` on: (1, tokens, …), evaluated. Known tokens change nothing."""
        tokens = hidden.shape[1]
        if start != self.length or self.nbytes + hidden.nbytes > MAX_SENT_BYTES:
            return
        self._pieces.append(hidden)
        self.length += tokens
        self.nbytes += hidden.nbytes
        last = self._pieces[-JOINED_TOKENS:]
        if len(last) == JOINED_TOKENS and all(piece.shape[1] == 1 for piece in last):
            joined = mx.concatenate(last, axis=1)
            mx.eval(joined)
            self._pieces[-JOINED_TOKENS:] = [joined]

    def cut(self, length: int) -> None:
        """Forgets the tokens from `length` on."""
        while self.length > length:
            piece = self._pieces.pop()
            begin = self.length - piece.shape[1]
            self.nbytes -= piece.nbytes
            self.length = begin
            if begin < length:
                self.add(begin, _evaluated(piece[:, : length - begin]))

    def up_to(self, length: int) -> SentStates:
        """Those of the tokens before `length`, as far as they are kept. Whole pieces are shared, not copied."""
        copied = SentStates()
        for piece in self._pieces:
            if copied.length >= length:
                break
            kept = piece if copied.length + piece.shape[1] <= length else piece[:, : length - copied.length]
            copied.add(copied.length, kept if kept is piece else _evaluated(kept))
        return copied

    def part(self, start: int, count: int) -> Any:
        """The states of [start, start + count), which must lie within `length`; evaluated."""
        found, begin = [], 0
        for piece in self._pieces:
            end = begin + piece.shape[1]
            if begin < start + count and end > start:
                found.append(piece[:, max(0, start - begin) : start + count - begin])
            begin = end
        return _evaluated(mx.concatenate(found, axis=1) if len(found) > 1 else found[0])


def _evaluated(view: Any) -> Any:
    """A copy, so that the array that it was cut from can be freed."""
    own = mx.contiguous(view)
    mx.eval(own)
    return own


def split_rows(hidden: Any) -> list[Any]:
    """What was sent of each sequence of a batch, (1, tokens, …) each; evaluated together."""
    rows = [mx.contiguous(hidden[row : row + 1]) for row in range(hidden.shape[0])]
    mx.eval(rows)
    return rows
