"""A request that is open on a rank: what it needs to run its steps, and how far it is.

Decides: which tokens its next pass runs, and whether rank 0 may start a pass before the next outcome has arrived.
Tokens that were run before are cut as they were then; new ones are cut by prefill_chunks.py. Which request comes
first is decided in schedule.py.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from exoengine.generate.pipeline import Built, Pass
from exoengine.generate.prefill_chunks import LARGEST_TOKENS, chunk_tokens
from exoengine.generate.prompt_cache import Holding
from exoengine.generate.request import Generation
from exoengine.generate.resume import Resumption
from exoengine.model.cache_batch import StageBatch
from exoengine.model.sampling import Sampler
from exoengine.ring.pass_log import SINGLY, PassLog, pass_end
from exoengine.ring.step_messages import Vote

CHUNKS_AHEAD: Final = 4
"""How many chunks of a prompt the first stage may be ahead of the last one's answer, whatever the number of stages:
fewer than CHUNKS_KEPT of cache_rollback.py, so that every rank can go back to where the slowest is."""


@dataclasses.dataclass(eq=False, frozen=True)
class BatchAhead:
    """The next pass of a batch that a rank alone has begun before the outcomes of the last one."""

    passing: Pass
    caches: StageBatch
    works: tuple[Work, ...]


@dataclasses.dataclass(eq=False)
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
    """Rank 0: steps whose outcome has not arrived yet."""
    chunk_tokens: int = LARGEST_TOKENS
    """Rank 0: the size of new chunks. It only becomes smaller, so that a prompt is cut in few ways."""
    next_safe: bool = True
    """The mode of the next step that starts."""
    coming_safe: bool = True
    """The mode of the step that rank 0 starts ahead: from the votes before the newest step's were counted."""
    ahead: Pass | Built | BatchAhead | None = None
    """The part of the next step that exists before its `Step` message: rank 0 has started its pass, the other ranks
    have built theirs."""
    stop: Vote = Vote.NONE
    said_at: int = 0
    """Rank 0: when a step of it was sent last, counted in steps."""
    overtaken: int = 0
    """Rank 0: how many chunks of other sequences were sent since."""

    @property
    def has_begun_ahead(self) -> bool:
        """Is a pass of its next step under way in this rank's layers?"""
        return isinstance(self.ahead, Pass | BatchAhead)

    @property
    def is_decoding(self) -> bool:
        """Rank 0: is the whole prompt run, so that only drawn tokens remain?"""
        return self.issued >= self.generation.length - 1

    @property
    def is_drawing(self) -> bool:
        """Rank 0: is a step under way that draws?"""
        return self.outstanding > 0 and self.issued >= self.generation.length

    @property
    def can_share(self) -> bool:
        """Rank 0: may its next token go through in a batch? The caches hold something, on all ranks as much."""
        return not self.generation.alone and self.issued >= max(1, self.resumption.reached)

    @property
    def can_go_on(self) -> bool:
        """Rank 0: can a step be sent before the next outcome arrives?"""
        if self.stop:
            return False
        return self.outstanding == 0 if self.is_decoding else self.outstanding < CHUNKS_AHEAD

    @property
    def pass_log(self) -> PassLog:
        assert self.generation.pass_log is not None, "it was set when the request was opened"
        return self.generation.pass_log

    def ran(self, start: int, count: int, grain: int) -> None:
        """This rank has run the tokens [start, start + count)."""
        self.generation.pass_log = self.pass_log.ran(start, start + count, grain)

    def next_pass(self, stages: int, token_s: float, budget_s: float, beside: bool) -> tuple[int, int]:
        """How many tokens from `issued` on form the next pass, and its grain; the other arguments are those of
        `chunk_tokens`.
        """
        start, end = self.issued, self.generation.length - 1
        pass_log, prompt_end = self.pass_log, len(self.generation.prompt) - 1
        if start < pass_log.end:
            until, grain = pass_log.next_pass(start)
        elif start < prompt_end:
            new = prompt_end + 1 - self.generation.cached_tokens
            self.chunk_tokens = min(self.chunk_tokens, chunk_tokens(new, stages, token_s, budget_s, beside))
            until, grain = pass_end(start, self.chunk_tokens, prompt_end), self.chunk_tokens
        else:
            until, grain = pass_end(start, SINGLY, end), SINGLY
        return self.resumption.pass_end(start, min(until, end)) - start, grain
