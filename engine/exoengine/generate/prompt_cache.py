"""What a rank holds of one sequence: its caches, what it sent downstream, and whose request it is.

Outlives groups: after a fault the request goes on from here. Outlives its request too where the caches can be
trimmed and memory allows: a follow-up turn that begins with the same tokens goes on from them (the prompt cache).

Decides: whether a finished sequence stays in memory, and how much of it a new prompt can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

import psutil

from exoengine.generate.sent_activations import SentStates
from exoengine.model.cache_rollback import StageCaches
from exoengine.ring.pass_log import Course

MAX_IDLE_SHARE: Final = 0.25
"""Of the machine's memory that a finished sequence may occupy. The next request uses it or frees it before it
allocates, so it never adds to what a generation needs; it takes memory from other programs alone."""

MIN_FREE_SHARE: Final = 0.1
"""With less of the machine's memory available nothing stays for a turn that may never come."""


class Holding:
    def __init__(self, order: int, caches: StageCaches) -> None:
        self.order, self.caches, self.sent = order, caches, SentStates()
        self._sequence: list[int] = []
        self._course = Course()
        self._lost = False

    @property
    def is_usable(self) -> bool:
        """Are the arrays those of `caches.position` tokens? A fault may have left what never was computed."""
        return not self._lost and self.caches.can_roll_back(self.caches.position)

    def undo(self, position: int) -> None:
        """Before a step that began at `position`; caches that cannot go back there are lost."""
        if self.caches.can_roll_back(position):
            self.caches.roll_back(position)
        else:
            self._lost = True

    @property
    def nbytes(self) -> int:
        return self.caches.nbytes + self.sent.nbytes

    def go_back(self, order: int, position: int) -> None:
        """Now of request `order`, with the tokens up to `position`."""
        self.order, self._sequence = order, []
        self.caches.roll_back(position)
        self.sent.cut(position)

    def keep(self, sequence: Sequence[int], course: Course) -> bool:
        """Its request is finished: is the holding worth its memory until the next?"""
        memory = psutil.virtual_memory()
        self._sequence, self._course = list(sequence[: self.caches.position]), course
        return (
            not self._lost
            and self.caches.can_trim
            and self.nbytes <= MAX_IDLE_SHARE * memory.total
            and memory.available >= MIN_FREE_SHARE * memory.total
        )

    def common(self, prompt: Sequence[int]) -> tuple[int, Course]:
        """How many of the prompt's tokens, all but the last at most, the caches of a finished request hold, and how
        they were run.
        """
        pairs = zip(self._sequence, prompt[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._course.boundary(shared), self._course
