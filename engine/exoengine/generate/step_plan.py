"""What a pass is, once it is known whose turn it is: how many tokens, in which mode, with which votes.

Decides that, on rank 0; and on every rank what it votes. Pure but for the clock that the figures come from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from exoengine.generate.active_request import Work
from exoengine.generate.pipeline import Drawn, Pass
from exoengine.generate.schedule import others_decode
from exoengine.generate.step_runner import StepRunner
from exoengine.generate.step_timing import Pace
from exoengine.ring.pass_log import SINGLY
from exoengine.ring.step_messages import (
    BatchOutcome,
    BatchRow,
    BatchStep,
    Outcome,
    Step,
    Vote,
    joined,
    joined_batch,
)


class StepPlan:
    def __init__(self, runner: StepRunner, pace: Pace, pause_wanted: Callable[[], bool]) -> None:
        self._runner, self._pace, self._pause_wanted = runner, pace, pause_wanted

    def step(self, work: Work, works: Collection[Work], alone: bool) -> Step:
        """The next one of `work`; where it is `alone`, rank 0 may begin the one after it before its outcome."""
        generation, start = work.generation, work.issued
        votes = self._votes(work, start, deciding=work.is_decoding)
        if not work.is_decoding:
            beside = others_decode(work, works)
            token_s, budget_s = self._pace.chunk_token_s, self._runner.policy.limit_s
            count, grain = work.next_pass(self._runner.stages, token_s, budget_s, beside)
            return Step(generation.order, start, count, grain, -1, True, votes)
        safe = work.ahead.safe if isinstance(work.ahead, Pass) else work.next_safe
        index = len(generation.tokens)
        goes_on = index + 1 < generation.max_tokens and not votes & (Vote.CANCEL | Vote.PAUSE)
        goes_on = goes_on and alone and self._runner.runs_ahead
        return Step(generation.order, start, 1, SINGLY, index, safe, votes, goes_on)

    def batch(self, works: Sequence[Work], alone: bool) -> BatchStep:
        """The next token of each; `alone`: no other request, on a rank that has all layers by itself."""
        rows = tuple(
            BatchRow(work.generation.order, work.issued, len(work.generation.tokens), _cancels(work))
            for work in works
        )
        goes_on = alone and not any(_cancels(work) or _ends_next(work) for work in works)
        batch = BatchStep(
            rows, any(work.next_safe for work in works), Vote.NONE, goes_on and not self._pause_wanted()
        )
        return joined_batch(batch, [False] * len(works), self._asks(batch.start, deciding=True))

    def voted(self, step: Step, work: Work) -> Step:
        """With this rank's votes."""
        return joined(step, self._votes(work, step.start, deciding=step.draw >= 0))

    def voted_batch(self, batch: BatchStep, works: Sequence[Work]) -> BatchStep:
        """With this rank's votes."""
        cancelled = [work.generation.cancelled for work in works]
        return joined_batch(batch, cancelled, self._asks(batch.start, deciding=True))

    def _votes(self, work: Work, start: int, deciding: bool) -> int:
        return _cancels(work) | self._asks(start, deciding)

    def _asks(self, start: int, deciding: bool) -> int:
        """What this rank wants of the group, whatever the sequence."""
        votes = Vote.PAUSE if self._pause_wanted() else Vote.NONE
        return votes | Vote.SAFE if deciding and self._runner.policy.choose(start).safe else votes


def _ends_next(work: Work) -> bool:
    return len(work.generation.tokens) + 1 >= work.generation.max_tokens


def _cancels(work: Work) -> Vote:
    return Vote.CANCEL if work.generation.cancelled else Vote.NONE


def outcomes_of(batch: BatchStep, drawn: Sequence[Drawn]) -> BatchOutcome:
    """What became of each row."""
    return BatchOutcome(
        tuple(
            Outcome(row.order, row.start + 1, one.token, batch.votes | row.votes, one.likelihood)
            for row, one in zip(batch.rows, drawn, strict=True)
        )
    )
