"""The loop over requests: schedule, step, token, replay.

Rank 0 leads (see step_messages.py): it opens each request with all ranks, prefills what their caches lack, and runs
one step per token. Several requests are open at once, and steps of several are under way at once (schedule.py);
messages and hidden states come in one order on every rank, so all ranks see the same. A step either counts on every
rank or on none: after a fault each rank's caches go back to before the steps that failed, and when the next group
has been formed each request is opened again: the ranks take the longest history that any of them has, and a rank
that is behind catches up by itself (see resume.py). Steps that are run again give the same tokens to the last bit:
they are cut alike (pass_log.py), and draws are keyed by (seed, step).

Of several answers that decode, the next tokens go through in one pass as a `BatchStep`, grouped by schedule.py; it
has an outcome for each. Beside others an answer's last bits depend on the batch, as in every engine; the tokens
that were given stay, and what follows is computed from exactly those.

Where one request is open alone, rank 0 does not wait for a step's outcome before it starts the next one: it runs
its own layers ahead (see step_runner.py). When the outcome arrives, rank 0 either sends the step to the others or
drops it, which they do not notice. The others build their part of the step meanwhile.

Decides: what is run next. Runs on the MLX thread: `turn` does one piece of work and returns, so that commands are
seen between steps.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import mlx.core as mx

from exoengine.generate.active_request import Work
from exoengine.generate.outbox import Outbox
from exoengine.generate.pipeline import Built, Drawn
from exoengine.generate.prompt_cache import Holding, Holdings
from exoengine.generate.queue import Backlog, Faults, wait_for_begin
from exoengine.generate.rank_progress import Openings, admission, check_alike, history, unfinished_anywhere
from exoengine.generate.request import Generation
from exoengine.generate.schedule import next_pass, note_said
from exoengine.generate.step_plan import StepPlan, outcomes_of
from exoengine.generate.step_runner import StepRunner
from exoengine.generate.step_timing import Pace, WorkProgress
from exoengine.model.loading import LoadedModel
from exoengine.process.shared_state import SharedState
from exoengine.protocol import Begin, FromWorker, RequestFailed, Serving, StepCosts, SyncSettings
from exoengine.ring.group import RingGroup
from exoengine.ring.message_ring import RingLostError, TokenRing, decode, encode
from exoengine.ring.step_messages import (
    BatchOutcome,
    BatchStep,
    Message,
    Open,
    Opened,
    Outcome,
    Standing,
    Step,
    Stop,
    Vote,
    travels_on,
)  # fmt: skip


class Paused(Exception):  # noqa: N818 - no error: the ranks agreed to leave the group at a step's end
    """Every rank raises this at the same positions of the same requests."""


class Generations:
    """All requests of one loaded model, over any number of groups."""

    def __init__(
        self, model: LoadedModel, group: RingGroup, shared: SharedState,
        emit: Callable[[Sequence[FromWorker]], None], settings: SyncSettings, serving: Serving, costs: StepCosts,
    ) -> None:  # fmt: skip
        self._model, self._group, self._shared, self._outbox = model, group, shared, Outbox(emit)
        self._runner = StepRunner(model, group, shared, self._outbox, settings)
        self.policy = self._runner.policy
        self._pace = Pace(settings, costs)
        self._progress = WorkProgress(shared, self._pace, model.kv_room)
        self._plan = StepPlan(self._runner, self._pace, lambda: self.pause_wanted)
        self._backlog = Backlog(model, self._outbox.add)
        self._max_concurrent = serving.max_concurrent
        self._works: dict[int, Work] = {}
        """The requests that are open, by order."""
        self._awaited: Open | None = None
        """An `Open` message for a request that this rank has not got from its daemon yet."""
        self._holdings = Holdings(serving.prompt_cache, model.stage.new_caches)
        self._openings = Openings(self._holdings, model.kv_room)
        self._running: Sequence[Generation] = ()
        """The requests whose step was run last: an error that is not the ring's is counted against them."""
        self._faults = Faults()
        self._rank, self._size = 0, 1
        self._roll_called = True
        self._pausing = False
        self.pause_wanted = False

    # --- requests ---------------------------------------------------------------------------------------

    def begin(self, message: Begin) -> None:
        """Takes a request; one that is known already is left alone, so that it can be sent again."""
        self._backlog.begin(message)
        self._outbox.flush()

    def cancel(self, request_id: str) -> None:
        """Marks it; all ranks end it after the same step."""
        self._backlog.cancel(request_id)

    @property
    def next_step(self) -> int:
        """The first step that will be run next in the oldest request; -1 where there is none."""
        waiting = self._backlog.first
        return len(waiting.tokens) if waiting is not None else -1

    # --- the group --------------------------------------------------------------------------------------

    def joined(self, rank: int, size: int) -> None:
        """A group was formed: every request is opened again in it."""
        self._rank, self._size = rank, size
        self._runner.joined(rank, size)
        self._forget_open()
        self._roll_called = size == 1
        self.pause_wanted = False

    def parted(self) -> None:
        """The group is gone; caches and requests stay."""
        self._outbox.flush()
        for work in self._works.values():
            self._runner.give_up_ahead(work)
        self._runner.parted()
        self._forget_open()
        self._pace.interrupted(self._backlog.first is not None)
        self._shared.end()

    def _forget_open(self) -> None:
        self._works, self._awaited = {}, None
        self._openings.forget()
        self._pausing = False

    def failed(self, text: str) -> None:
        """A step failed, and not because of the ring. If it fails twice at the same place, the request is ended."""
        found = self._faults.note(self._running)
        if found is None:
            return
        generation, times = found
        if self._size == 1:
            self._retire(generation)
            self._outbox.add(RequestFailed(generation.request.request_id, "engine", text))
        elif times > 1:
            generation.cancelled = True

    @property
    def is_idle(self) -> bool:
        """Is no request open? Then the group can be left without agreement."""
        return not self._works and not self._openings.orders and self._awaited is None

    # --- turns ------------------------------------------------------------------------------------------

    def turn(self, wake: socket.socket) -> None:
        """Does one piece of work. Without any it sleeps until `wake` or a neighbour has something. Raises
        RingLostError or RuntimeError at a fault, Paused where all ranks agreed to leave.
        """
        had_work = self.has_work
        if not self._roll_called:
            self._exchange_unfinished()
        elif self._rank > 0:
            self._follow(wake)
        elif not self._lead() and self._size > 1:
            self._outbox.flush()
            if had_work and not self.has_work:
                return  # so that the daemon first sees that this rank is idle
            message = self._ring().receive_or_wake(wake)
            if message is not None:
                self._hear(message)

    def _exchange_unfinished(self) -> None:
        """The first exchange in each group: which requests are unfinished on any rank? After a fault in a last
        step only some ranks have finished the request, and rank 0, which opens requests, may be one of them.
        """
        self._shared.begin("the first exchange of a new group", self._pace.step_deadline_s)
        self._backlog.recall(unfinished_anywhere(self._ring(), self._backlog.waiting))
        self._roll_called = True
        self._shared.end()

    @property
    def has_work(self) -> bool:
        """Will a turn do something without waiting? Only rank 0 can know."""
        return self._rank == 0 and (not self.is_idle or self._backlog.first is not None)

    def _ring(self) -> TokenRing:
        if self._group.tokens is None:
            raise RingLostError("the group was left")
        return self._group.tokens

    def _lead(self) -> bool:
        """Rank 0: sends and runs what comes next. False where it must receive something first."""
        while self._size > 1 and (message := self._ring().arrived()) is not None:
            self._hear(message)
        self._stop_cancelled()
        if self.pause_wanted or self._pausing:
            self._pausing = True
            self._pause_when_settled()
            return False
        if len(self._works) + len(self._openings.orders) < self._max_concurrent:
            generation = self._backlog.next_beside({*self._works, *self._openings.orders})
            if generation is not None and (not self._openings.is_full or generation.cancelled):
                self._say_open(generation)
                return True
        works = next_pass(self._works.values(), self._runner.stages, self._runner.takes_batches)
        if not works:
            return False
        if len(works) > 1:
            self._lead_batch(works)
        else:
            self._lead_step(works[0])
        return True

    def _stop_cancelled(self) -> None:
        for work in list(self._works.values()):
            if work.generation.cancelled:
                work.stop |= Vote.CANCEL
            if Vote.CANCEL in work.stop and not work.outstanding:
                self._runner.sit_out_ahead(work)
                self._say(Stop(work.generation.order, Vote.CANCEL))
                self._stop(work)

    def _pause_when_settled(self) -> None:
        """Raises Paused once no step is under way and no request is being opened."""
        if self._openings.orders or any(work.outstanding for work in self._works.values()):
            return
        for work in self._works.values():
            self._runner.sit_out_ahead(work)
        self._say(Stop(-1, Vote.PAUSE))
        raise Paused

    def _lead_step(self, work: Work) -> None:
        step = self._plan.step(work, self._works.values(), self._is_alone)
        note_said([work], self._works.values())
        work.outstanding += 1
        work.issued += step.count
        outcome = self._run_and_tell(step, work)
        if self._size == 1:
            self._take(outcome)
        elif step.ahead:
            self._runner.run_ahead(work)

    def _lead_batch(self, works: Sequence[Work]) -> None:
        others = len(works) < len(self._works) or self._openings.orders or self._backlog.next_beside(self._works)
        batch = self._plan.batch(works, self._size == 1 and not others)
        note_said(works, self._works.values())
        for work in works:
            work.outstanding += 1
            work.issued += 1
        outcomes = self._run_batch_and_tell(batch, works)
        if self._size == 1:
            self._take(*outcomes.rows)

    @property
    def _is_alone(self) -> bool:
        """Is one request open, and no other about to be?"""
        opened = {*self._works, *self._openings.orders}
        return len(opened) == 1 and self._backlog.next_beside(opened) is None

    def _follow(self, wake: socket.socket) -> None:
        if self._awaited is not None:
            generation = self._backlog.get(self._awaited.order)
            if generation is not None:
                opening, self._awaited = self._awaited, None
                self._answer_open(opening, generation)
            else:
                self._outbox.flush()
                wait_for_begin(wake)  # it is on its way; the deadline is running
            return
        message = self._ring().arrived()
        if message is None:
            self._outbox.flush()
            if self.pause_wanted and self.is_idle:
                raise Paused
            if any(self._build_ahead(work) for work in self._works.values()):
                return
            message = self._ring().receive_or_wake(wake)
        if message is not None:
            self._hear(message)

    def _build_ahead(self, work: Work) -> bool:
        """Builds the next step before its message comes. False where there was nothing to build."""
        before, self._running = work.ahead, (work.generation,)
        self._runner.build_ahead(work)
        return work.ahead is not before

    def _hear(self, message: bytes) -> None:
        said: Message = decode(message, Message)
        if self._rank == 0 and not isinstance(said, Outcome | BatchOutcome | Opened):
            raise RingLostError("the last rank sent a message that only rank 0 sends")
        match said:
            case Open(order):
                self._progress.begin_opening()
                generation = self._backlog.get(order)
                if generation is None:
                    self._awaited = said
                else:
                    self._answer_open(said, generation)
            case Opened():
                self._pass_on(said)
                self._open(said)
            case Step():
                self._follow_step(said)
            case BatchStep():
                self._follow_batch(said)
            case Outcome():
                self._pass_on(said)
                self._take(said)
            case BatchOutcome():
                self._pass_on(said)
                self._take(*said.rows)
            case Stop(order, votes):
                self._pass_on(said)
                if Vote.PAUSE in Vote(votes):
                    raise Paused
                self._stop(self._work(order))

    def _work(self, order: int) -> Work:
        if order not in self._works:
            raise RingLostError("a neighbour sent a message about a request that is not open")
        return self._works[order]

    def _follow_step(self, step: Step) -> None:
        work = self._work(step.order)
        outcome = self._run_and_tell(self._plan.voted(step, work), work)
        if self._rank == self._size - 1:
            self._say(outcome)
            self._take(outcome)

    def _follow_batch(self, batch: BatchStep) -> None:
        works = [self._work(row.order) for row in batch.rows]
        if not works or len({row.order for row in batch.rows}) < len(works):
            raise RingLostError("rank 0 asks for a batch of nothing, or of one sequence twice")
        outcomes = self._run_batch_and_tell(self._plan.voted_batch(batch, works), works)
        if self._rank == self._size - 1:
            self._say(outcomes)
            self._take(*outcomes.rows)

    # --- one step ---------------------------------------------------------------------------------------

    def _run_and_tell(self, step: Step, work: Work) -> Outcome:
        """The step goes on to the next rank ahead of the hidden state. Where the next rank has no part in it, it
        follows the work instead: so the last rank's answer always means that all are done.
        """
        self._running = (work.generation,)
        runs, next_runs = (
            rank < self._size and work.resumption.runs(rank, step.start) for rank in (self._rank, self._rank + 1)
        )
        if not runs or next_runs:
            self._pass_on(step)
        self._progress.begin_pass(decoding=step.draw >= 0)
        drawn = Drawn()
        if runs:
            drawn = self._runner.run(step, work, next_runs)
        elif next_runs:
            self._runner.send_again(step, work)
        if runs and not next_runs:
            self._pass_on(step)
        self._watch()
        return Outcome(step.order, step.start + step.count, drawn.token, step.votes, drawn.likelihood)

    def _run_batch_and_tell(self, batch: BatchStep, works: Sequence[Work]) -> BatchOutcome:
        """All ranks run it: a sequence that some rank has to catch up with is in no batch."""
        self._running = [work.generation for work in works]
        self._pass_on(batch)
        self._progress.begin_pass(decoding=True)
        drawn = self._runner.run_batch(batch, works)
        self._watch()
        return outcomes_of(batch, drawn)

    def _take(self, *outcomes: Outcome) -> None:
        """A pass's outcomes have arrived: their tokens count from now on."""
        for outcome in outcomes:
            self._count(outcome)
        self._watch()

    def _count(self, outcome: Outcome) -> None:
        work = self._work(outcome.order)
        work.outstanding -= 1
        work.done = outcome.position
        votes = Vote(outcome.votes)
        if outcome.token >= 0:
            self._progress.count_token(work.generation, outcome.order)
            work.generation.add(outcome.token, outcome.likelihood)
            self._runner.tidy(len(work.generation.tokens))
            work.next_safe = Vote.SAFE in votes  # a chunk of the prefill says nothing about steps
            self._runner.show_mode(work.next_safe)
        else:
            self._progress.count_chunk(work, outcome)
            mx.clear_cache()
        self._pausing |= Vote.PAUSE in votes
        work.stop |= votes & Vote.CANCEL
        finished = work.generation.finished is not None
        if finished or votes & (Vote.CANCEL | Vote.PAUSE):
            self._runner.sit_out_ahead(work)
        if finished:
            self._close(work.generation)

    def _watch(self) -> None:
        self._progress.watch(self._works.values(), self.is_idle)
        if self.is_idle:
            self._runner.rests()

    def _stop(self, work: Work) -> None:
        """All ranks end the request here because it was cancelled."""
        self._runner.give_up_ahead(work)
        work.generation.cancel()
        self._close(work.generation)
        self._watch()

    # --- opening and closing ----------------------------------------------------------------------------

    def _say_open(self, generation: Generation) -> None:
        self._outbox.flush()
        self._progress.begin_opening()
        standing = self._openings.tell(generation, self._works.values())
        if self._size == 1:
            self._open(Opened(generation.order, (standing,)))
        else:
            self._say(Open(generation.order, (standing,)))

    def _answer_open(self, opening: Open, generation: Generation) -> None:
        standings = (*opening.standings, self._openings.tell(generation, self._works.values()))
        check_alike(standings)
        if self._rank < self._size - 1:
            self._say(Open(opening.order, standings))
            self._watch()
        else:
            opened = Opened(opening.order, standings)
            self._say(opened)
            self._open(opened)

    def _open(self, message: Opened) -> None:
        """All ranks agree on the history and on the position from which each continues."""
        generation, told = self._backlog.get(message.order), self._openings.close(message.order)
        if generation is None or len(message.standings) != self._size:
            raise RingLostError("the ranks opened a request that this one does not know")
        self._running = (generation,)
        found, (refusal, waits) = history(message.standings), admission(message.standings)
        if found is None:
            text = "the ranks were given different beginnings of this answer"
            self._refuse(generation, "histories_differ", text)
        elif refusal:
            self._refuse(generation, "context_length_exceeded", refusal)
        elif waits:
            self._openings.is_full = bool(self._works)
        else:
            generation.adopt(*found)
            generation.alone |= any(standing.alone for standing in message.standings)
            if any(standing.cancelled for standing in message.standings):
                generation.cancel()
            if generation.finished is None:
                self._start(generation, message.standings, told)
            else:
                self._close(generation)
        self._watch()

    def _start(self, generation: Generation, standings: tuple[Standing, ...], told: dict[int, Holding]) -> None:
        """Brings this rank's caches to the position that the ranks agreed on."""
        for work in self._works.values():
            if isinstance(work.ahead, Built):  # its input, which nobody sends yet, would be copied with its caches
                self._runner.give_up_ahead(work)
        self._works[generation.order] = self._openings.start(generation, standings, self._rank, told, self._model)
        self._pace.opened(len(generation.tokens), generation.order)

    def _refuse(self, generation: Generation, code: str, text: str) -> None:
        """All ranks find the same, and the request fails."""
        self._retire(generation)
        self._outbox.add(RequestFailed(generation.request.request_id, code, text))

    def _retire(self, generation: Generation) -> None:
        """Ends the request without an answer; nothing of it is kept."""
        self._openings.is_full = False
        self._backlog.drop(generation)
        self._holdings.forget(generation.order)
        self._faults.forget(generation.order)
        self._pace.closed(generation.order)

    def _close(self, generation: Generation) -> None:
        """The request is finished on every rank, or the next opening will show that it is."""
        order = generation.order
        self._works.pop(order, None)
        self._openings.is_full = False
        self._holdings.finish(generation)
        self._progress.kept(self._holdings.idle_bytes)
        self._faults.forget(order)
        self._backlog.finished(generation)
        self._pace.closed(order)
        mx.clear_cache()

    # --- messages ---------------------------------------------------------------------------------------

    def _say(self, message: Message) -> None:
        if self._group.tokens is not None:
            self._group.tokens.send(encode(message))

    def _pass_on(self, message: Message) -> None:
        if travels_on(message, self._rank, self._size):
            self._say(message)
