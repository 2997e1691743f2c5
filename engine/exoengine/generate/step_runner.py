"""A rank's part in one step: started, run, measured, and undone where it fails or is not needed.

What a step leaves in the caches either counts or is undone: the position is marked before a step is built, and if
anything in it raises, the caches go back there. Rank 0 starts a step ahead of its turn here, and the others build
theirs. Until its `Step` message is sent no other rank knows of it, and it can be dropped.

Decides: when caches go back. Which step is run, in which mode, and what its outcome means is decided in loop.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx

from exoengine.generate.active_request import BatchAhead, Work
from exoengine.generate.outbox import Outbox
from exoengine.generate.pipeline import Built, Draw, Drawn, Pass, Pipeline, Result
from exoengine.generate.sent_activations import split_rows
from exoengine.generate.step_timing import StageTimes
from exoengine.generate.sync_mode import ALONE, NOTHING_MEASURED, SyncPolicy, WatchdogModel
from exoengine.model.cache_batch import OneByOne, StageBatch, batched
from exoengine.model.loading import LoadedModel
from exoengine.model.sampling import PENALTY_CONTEXT_TOKENS, draw_likeliest
from exoengine.process.shared_state import SharedState
from exoengine.protocol import SyncSettings
from exoengine.ring.group import RingGroup
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.pass_log import SINGLY
from exoengine.ring.step_messages import BatchStep, Step
from mlx_patches.switch import find_switch

CUDA_IS_FASTER_SAFE: Final = "with MLX's CUDA build a safe step takes less time"
"""A tenth less, on two GPUs (docs/benchmarks.md): even within a graph a thread of the host waits there."""

TENSOR_STAGES: Final = "each stage is a tensor group, whose ranks hand their input on between evaluations"

CLEAR_CACHE_STEPS: Final = 256
"""How often MLX's pool of free buffers is given back, as mlx-lm does."""


class StepRunner:
    """Runs the steps of one loaded model, over any number of groups."""

    def __init__(
        self, model: LoadedModel, group: RingGroup, shared: SharedState, outbox: Outbox, settings: SyncSettings
    ) -> None:
        self.policy: Final = SyncPolicy(settings)
        self._model, self._group, self._shared, self._outbox = model, group, shared, outbox
        self._times = StageTimes(shared)
        self._watchdog = WatchdogModel(settings.watchdog_s)
        shared.longest_gpu_wait_s, shared.gpu_wait_violations = 0.0, 0
        shared.safe, shared.sync_reason = NOTHING_MEASURED.safe, NOTHING_MEASURED.reason
        self._switch = find_switch()
        self._size = 1
        self._pipeline: Pipeline | None = None

    # --- the group --------------------------------------------------------------------------------------

    def joined(self, rank: int, size: int) -> None:
        self._pipeline = Pipeline(self._model.stage, self._group, rank, size, self._switch, self._model.parts)
        self._size = size
        self.policy.forget()
        no_fast = self._group.no_graphs
        if self.stages > 1 and self._model.is_divided:
            no_fast = no_fast or TENSOR_STAGES
        self.policy.forbid_fast(no_fast)
        in_pipeline = size > 1 and not self._model.is_divided
        self.policy.prefer_safe(CUDA_IS_FASTER_SAFE if in_pipeline and mx.cuda.is_available() else "")
        if size == 1 and not no_fast and self.policy.settings.sync == "dynamic":
            self._shared.safe, self._shared.sync_reason = ALONE.safe, ALONE.reason

    def parted(self) -> None:
        if self._group.waited_too_long:
            self.policy.gave_up_in_a_graph()
        self._pipeline = None

    @property
    def _joined(self) -> Pipeline:
        assert self._pipeline is not None, "steps are run in a group, or alone as one of one rank"
        return self._pipeline

    @property
    def draws_itself(self) -> bool:
        """Does this rank hold all layers, whole or its part of each?"""
        return self._model.stage.is_whole

    @property
    def _divided(self) -> bool:
        """In a tensor group either all ranks start the next step ahead or none, and only where it is one graph: a
        step that is evaluated layer by layer would block here. All ranks know the same modes.
        """
        return self._size > 1 and self.draws_itself

    @property
    def stages(self) -> int:
        """Over how many stages a prompt flows."""
        return 1 if self.draws_itself else self._size // self._model.parts

    @property
    def runs_ahead(self) -> bool:
        """May rank 0 begin a step before the last one's outcome? Not where its layers need another rank's parts:
        that one would hear nothing of a step that is taken back.
        """
        return self.draws_itself or not self._model.is_divided

    @property
    def takes_batches(self) -> bool:
        """Can a token each of several sequences go through this stage in one pass?"""
        return self._model.stage.takes_batches

    # --- a step -----------------------------------------------------------------------------------------

    def run(self, step: Step, work: Work, sends: bool) -> Drawn:
        """Runs this rank's part of `step` to its end. Without `sends` the next rank has the tokens already. Raises
        RingLostError or RuntimeError; the caches are then as they were before the step, or lost (prompt_cache.py).
        """
        generation, holding = work.generation, work.holding
        caches = holding.caches
        ahead, said = work.ahead, (step.start, step.count, step.singly, step.safe)
        if isinstance(ahead, BatchAhead) or (ahead and said != (ahead.start, 1, True, ahead.safe)):
            self.give_up_ahead(work)
            ahead = None
        work.ahead = None
        if (caches.position if ahead is None else ahead.start) != step.start:
            raise RingLostError("rank 0 asks for a step that does not fit this rank's caches")
        decoding = step.draw >= 0
        draw = _draw(work, step.draw) if decoding else None
        if ahead is None:
            caches.mark(step.count)

        def meanwhile() -> None:
            self._outbox.flush()
            if step.ahead and self.draws_itself and not (self._divided and (step.safe or work.next_safe)):
                self._begin_ahead(work)

        at = time.monotonic()
        try:
            result = self._joined.run(
                step, [generation.sequence(step.start, step.count)], caches, draw,
                [generation.request.sampling.logprobs], sends, ahead, meanwhile,
            )  # fmt: skip
        except BaseException:
            holding.undo(step.start)
            work.ahead = None  # what was begun upon this step went with it
            raise
        work.ran(step.start, step.count, step.grain)
        work.coming_safe = work.next_safe
        if result.sent is not None:
            holding.sent.add(step.start, result.sent)
        self._note(result, at, int(decoding))
        shared = self._shared
        shared.kv_tokens = step.start + step.count
        shared.replayed_tokens += max(0, min(work.resumption.furthest - step.start, step.count))
        return result.drawn[0]

    def run_batch(self, batch: BatchStep, works: Sequence[Work]) -> tuple[Drawn, ...]:
        """Runs this rank's part of a step of all `works`, in one pass where the stage takes batches. Raises as
        `run`; the caches of each are then as they were, or lost.
        """
        at, begun = time.monotonic(), self._take_batch_ahead(works)
        for work, row in zip(works, batch.rows, strict=True):
            if work.holding.caches.position != row.start + (begun is not None):
                raise RingLostError("rank 0 asks for a batch that does not fit this rank's caches")
        try:
            caches = begun.caches if begun is not None else self._bring_together(works)
            tokens = [work.generation.sequence(row.start, 1) for work, row in zip(works, batch.rows, strict=True)]
            likely = [work.generation.request.sampling.logprobs for work in works]

            def meanwhile() -> None:
                self._outbox.flush()
                if batch.ahead and self.draws_itself and isinstance(caches, StageBatch):
                    self._begin_batch_ahead(works, caches)

            passing = begun.passing if begun is not None else None
            result = self._joined.run(batch, tokens, caches, _draw_each(works), likely, True, passing, meanwhile)
        except BaseException:
            for work, row in zip(works, batch.rows, strict=True):
                work.holding.undo(row.start)
                work.ahead = None  # what was begun upon this pass went with it
            raise
        sent = split_rows(result.sent) if result.sent is not None else [None] * len(works)
        for work, row, hidden in zip(works, batch.rows, sent, strict=True):
            work.ran(row.start, 1, SINGLY)
            work.coming_safe = work.next_safe
            if hidden is not None:
                work.holding.sent.add(row.start, hidden)
        self._note(result, at, len(works))
        return result.drawn

    def _take_batch_ahead(self, works: Sequence[Work]) -> BatchAhead | None:
        """What this rank has begun of the batch of exactly those already. Anything else is given up."""
        ahead = works[0].ahead
        if isinstance(ahead, BatchAhead) and ahead.works == tuple(works) and ahead.caches.is_ahead:
            for work in works:
                work.ahead = None
            ahead.caches.is_ahead = False
            return ahead
        for work in works:
            self.give_up_ahead(work)
        return None

    def _bring_together(self, works: Sequence[Work]) -> StageBatch | OneByOne:
        members = [work.holding.caches for work in works]
        caches = batched(members) if self.takes_batches else OneByOne(members)
        caches.mark()
        return caches

    def _begin_batch_ahead(self, works: Sequence[Work], caches: StageBatch) -> None:
        """As `_begin_ahead`, on a rank that has all layers by itself."""
        caches.mark()
        passing = self._joined.run_ahead(any(work.next_safe for work in works), caches)
        caches.is_ahead = True
        ahead = BatchAhead(passing, caches, tuple(works))
        for work in works:
            work.ahead = ahead

    def rests(self) -> None:
        """No request is open."""
        self._times.rests()

    def _note(self, result: Result, begun: float, sequences: int) -> None:
        """What a pass showed of waits; so many `sequences` drew a token in it."""
        self._times.ran(begun, result.waited_s or 0.0, sequences)
        self._watchdog.record(result.gpu_waited_s)
        if sequences and result.waited_s is not None:
            self.policy.observe(result.waited_s)
        shared = self._shared
        shared.longest_gpu_wait_s = self._watchdog.longest_wait_s
        shared.gpu_wait_violations = self._watchdog.violations
        shared.memory_bytes = mx.get_active_memory()

    def send_again(self, step: Step, work: Work) -> None:
        """What this rank sent of the step's tokens before, to a rank that needs it again."""
        self._joined.send_again(work.holding.sent.part(step.start, step.count))

    def run_ahead(self, work: Work) -> None:
        """Starts the next step in the first rank's layers while another rank draws its token. Where this rank draws
        it, `run` has done so.
        """
        if not self.draws_itself:
            self._begin_ahead(work)

    def _begin_ahead(self, work: Work) -> None:
        caches = work.holding.caches
        start = caches.position
        caches.mark(1)
        try:
            work.ahead = self._joined.run_ahead(work.next_safe, caches)
        except BaseException:
            work.holding.undo(start)
            raise

    def build_ahead(self, work: Work) -> None:
        """Builds the next step of an answer, if all its inputs are known, while this rank waits for the `Step`
        message.
        """
        generation, caches = work.generation, work.holding.caches
        last = generation.length - 1
        if caches.batch is not None:
            return  # its next step is the batch's
        if work.ahead is None and generation.tokens and caches.position == last and self._joined.can_build:
            caches.mark(1)
            draw = _draw(work, len(generation.tokens))
            work.ahead = self._joined.build(generation.tokens[-1], work.coming_safe, caches, draw)

    @staticmethod
    def give_up_ahead(work: Work) -> None:
        """Drops the step that was started or built ahead; no other rank knows of it."""
        ahead, work.ahead = work.ahead, None
        if isinstance(ahead, Built):
            ahead.undo()
        elif isinstance(ahead, BatchAhead):
            for other in ahead.works:
                other.ahead = None
            if ahead.caches.is_ahead:
                ahead.caches.step_back()
        elif ahead is not None:
            work.holding.undo(ahead.start)

    def sit_out_ahead(self, work: Work) -> None:
        """As `give_up_ahead`, where the token of that step was drawn already, and so was sent."""
        if isinstance(work.ahead, Pass) and work.ahead.arrival is not None:
            work.ahead.arrival.sit_out()
        self.give_up_ahead(work)

    @staticmethod
    def tidy(tokens: int) -> None:
        """An answer has so many tokens now."""
        if tokens % CLEAR_CACHE_STEPS == 0:
            mx.clear_cache()

    # --- the mode ---------------------------------------------------------------------------------------

    def show_mode(self, safe: bool) -> None:
        """Reports a change at once, with the step that it follows: the next heartbeat may come too late."""
        if not self.policy.has_measured:
            return
        shared = self._shared
        changed, shared.safe, shared.sync_reason = safe != shared.safe, safe, self.policy.reason_of(safe)
        if changed:
            self._outbox.add(shared.heartbeat())


def _draw(work: Work, index: int) -> Draw:
    """Draws the answer's token `index`, the next one."""
    sampling = work.generation.request.sampling
    history = work.generation.recent(max(sampling.repetition_context_tokens, PENALTY_CONTEXT_TOKENS))
    return lambda logits: work.sampler.draw(logits, history, index)


def _draw_each(works: Sequence[Work]) -> Draw:
    """Draws the next token of each answer, from logits of as many rows; in one go where each is the likeliest."""
    indices = [len(work.generation.tokens) for work in works]
    if all(work.sampler.takes_likeliest(index) for work, index in zip(works, indices, strict=True)):
        return draw_likeliest
    draws = [_draw(work, index) for work, index in zip(works, indices, strict=True)]

    def draw(logits: Any) -> tuple[Any, Any]:
        drawn = [one(logits[row : row + 1]) for row, one in enumerate(draws)]
        return mx.concatenate([token for token, _ in drawn]), mx.concatenate([logprobs for _, logprobs in drawn])

    return draw
