"""The request that is open on a rank: what it needs to run its steps, and how far it is.

Decides: which tokens the next pass runs, as they were run before or, where they are new, as prefill_chunks.py says.
Made and used by loop.py; only rank 0 asks for passes.
"""

from __future__ import annotations

import dataclasses

from exoengine.generate.pipeline import Built, Pass
from exoengine.generate.prefill_chunks import LARGEST_TOKENS, chunk_tokens
from exoengine.generate.prompt_cache import Holding
from exoengine.generate.request import Generation
from exoengine.generate.resume import Resumption
from exoengine.model.sampling import Sampler
from exoengine.ring.pass_log import SINGLY, Course, pass_end
from exoengine.ring.step_messages import Step, Vote


@dataclasses.dataclass
class Work:
    generation: Generation
    sampler: Sampler
    holding: Holding
    resumption: Resumption
    issued: int
    """Rank 0: up to which position steps were sent out."""
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

    @property
    def course(self) -> Course:
        assert self.generation.course is not None, "it was set when the request was opened"
        return self.generation.course

    def ran(self, step: Step) -> None:
        """This rank has run `step`."""
        self.generation.course = self.course.ran(step.start, step.start + step.count, step.grain)

    def next_pass(self, stages: int, token_s: float, budget_s: float) -> tuple[int, int]:
        """How many tokens from `issued` on go together, and the grain; prefill_chunks.py has the rest."""
        start, end = self.issued, self.generation.length - 1
        course, prompt_end = self.course, len(self.generation.prompt) - 1
        if start < course.end:
            until, grain = course.next_pass(start)
        elif start < prompt_end:
            new = prompt_end + 1 - self.generation.cached_tokens
            self.chunk_tokens = min(self.chunk_tokens, chunk_tokens(new, stages, token_s, budget_s))
            until, grain = pass_end(start, self.chunk_tokens, prompt_end), self.chunk_tokens
        else:
            until, grain = pass_end(start, SINGLY, end), SINGLY
        return self.resumption.pass_end(start, min(until, end)) - start, grain
