"""A request that is open on a rank: what it needs to run its steps, and how far it is.

Decides: which tokens its next pass runs, as they were run before or, where they are new, as prefill_chunks.py says,
and whether it can have a pass at all before an outcome is here; only rank 0 asks. Whose pass comes first is
schedule.py's decision.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from exoengine.generate.pipeline import Built, Pass
from exoengine.generate.prefill_chunks import LARGEST_TOKENS, chunk_tokens
from exoengine.generate.prompt_cache import Holding
from exoengine.generate.request import Generation
from exoengine.generate.resume import Resumption
from exoengine.model.sampling import Sampler
from exoengine.ring.pass_log import SINGLY, Course, pass_end
from exoengine.ring.step_messages import Step, Vote

CHUNKS_AHEAD: Final = 4
"""How many chunks of a prompt the first stage may be ahead of the last one's answer, whatever the number of stages:
fewer than CHUNKS_KEPT of cache_rollback.py, so that every rank can go back to where the slowest is."""


@dataclasses.dataclass
class Work:
    generation: Generation
    sampler: Sampler
    holding: Holding
    resumption: Resumption
    issued: int
    """Rank 0: up to which position steps were sent out."""
    done: int
    """Up to which position all ranks have run it."""
    outstanding: int = 0
    """Rank 0: steps whose outcome is not here yet."""
    chunk_tokens: int = LARGEST_TOKENS
    """Rank 0: of new chunks; they only become smaller, so that a prompt is cut in few ways."""
    next_safe: bool = True
    """The mode of a step that is begun now."""
    coming_safe: bool = True
    """Of the step that rank 0 began ahead: before the votes of the step that came last were counted."""
    ahead: Pass | Built | None = None
    """What there is of the next step before it is said: rank 0 has begun its pass, the others have built theirs."""
    stop: Vote = Vote.NONE
    said_at: int = 0
    """Rank 0: when a step of it was said last, counted in steps."""
    overtaken: int = 0
    """Rank 0: how many chunks of other sequences were said since."""

    @property
    def has_begun_ahead(self) -> bool:
        """Is a pass of its next step under way in this rank's layers?"""
        return isinstance(self.ahead, Pass)

    @property
    def is_decoding(self) -> bool:
        """Rank 0: is nothing left to run but tokens that are drawn?"""
        return self.issued >= self.generation.length - 1

    @property
    def can_go_on(self) -> bool:
        """Rank 0: can a step be said before the next outcome is here?"""
        if self.stop:
            return False
        return self.outstanding == 0 if self.is_decoding else self.outstanding < CHUNKS_AHEAD

    @property
    def course(self) -> Course:
        assert self.generation.course is not None, "it was set when the request was opened"
        return self.generation.course

    def ran(self, step: Step) -> None:
        """This rank has run `step`."""
        self.generation.course = self.course.ran(step.start, step.start + step.count, step.grain)

    def next_pass(self, stages: int, token_s: float, budget_s: float, beside: bool) -> tuple[int, int]:
        """How many tokens from `issued` on go together, and the grain; the others are chunk_tokens's."""
        start, end = self.issued, self.generation.length - 1
        course, prompt_end = self.course, len(self.generation.prompt) - 1
        if start < course.end:
            until, grain = course.next_pass(start)
        elif start < prompt_end:
            new = prompt_end + 1 - self.generation.cached_tokens
            self.chunk_tokens = min(self.chunk_tokens, chunk_tokens(new, stages, token_s, budget_s, beside))
            until, grain = pass_end(start, self.chunk_tokens, prompt_end), self.chunk_tokens
        else:
            until, grain = pass_end(start, SINGLY, end), SINGLY
        return self.resumption.pass_end(start, min(until, end)) - start, grain
