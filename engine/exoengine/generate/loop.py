"""The loop over requests: schedule, step, token, replay.

Rank 0 leads (see step_messages.py): it takes the requests in their order, opens each with all ranks, prefills what
their caches lack, and runs one step per token. The others follow. A step either counts on every rank or on none:
after a fault each rank's caches go back to before the step that failed, and when the next group has been formed the
request is opened again: the ranks take the longest history that any of them has, and whoever is behind catches up
alone (see resume.py). Steps that are run again give the same tokens to the last bit: they are cut alike
(pass_log.py), and draws are keyed by (seed, step).

Rank 0 does not wait for a step's outcome before it begins the next: it runs ahead into its own layers (see
step_runner.py), and when the outcome is here it says the step to the others, who never know, or gives it up. The
others build theirs meanwhile.

Decides: what is run next.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import mlx.core as mx

from exoengine.generate.active_request import Work
from exoengine.generate.outbox import Words
from exoengine.generate.pipeline import Drawn, Pass
from exoengine.generate.prompt_cache import Holding
from exoengine.generate.queue import Backlog
from exoengine.generate.rank_progress import gather, history, standing_of, unfinished_anywhere
from exoengine.generate.request import Generation
from exoengine.generate.resume import resume
from exoengine.generate.step_runner import StepRunner
from exoengine.generate.step_timing import Pace
from exoengine.model.loading import LoadedModel
from exoengine.model.sampling import Sampler
from exoengine.process.shared_state import Board
from exoengine.protocol import Begin, FromWorker, RequestFailed, SyncSettings
from exoengine.ring.group import RingGroup
from exoengine.ring.message_ring import RingLostError, TokenRing, decode, encode
from exoengine.ring.pass_log import SINGLY
from exoengine.ring.step_messages import Message, Open, Outcome, Standing, Step, Stop, Vote, joined

CHUNKS_AHEAD: Final = 4
"""How many chunks the first stage may be ahead of the last one's answer, whatever the number of stages: fewer
than caches.CHUNKS_KEPT, so that every rank can go back to where the slowest is."""

CLEAR_CACHE_STEPS: Final = 256
"""How often MLX's pool of free buffers is given back, as mlx-lm does."""


class Paused(Exception):  # noqa: N818 - no error: the ranks agreed to leave the group at a step's end
    """Every rank raises this at the same position of the same request."""


class Generations:
    """All requests of one loaded model, over any number of groups."""

    def __init__(
        self, model: LoadedModel, group: RingGroup, board: Board, emit: Callable[[FromWorker], None],
        settings: SyncSettings,
    ) -> None:  # fmt: skip
        self._model, self._group, self._board, self._words = model, group, board, Words(emit)
        self._runner = StepRunner(model, group, board, self._words, settings)
        self.policy = self._runner.policy
        self._pace = Pace(settings)
        self._backlog = Backlog(model, self._words.say)
        self._holding: Holding | None = None
        self._work: Work | None = None
        self._opening: int | None = None
        self._rank, self._size = 0, 1
        self._roll_called = True
        self._failures: tuple[int, int, int] = (-1, -1, 0)
        self.pause_wanted = False

    # --- requests ---------------------------------------------------------------------------------------

    def begin(self, message: Begin) -> None:
        """Takes a request; one that is known already is left alone, so that it can be sent again."""
        self._backlog.begin(message)
        self._words.let_out()

    def cancel(self, request_id: str) -> None:
        """Marks it; all ranks end it after the same step."""
        self._backlog.cancel(request_id)

    @property
    def next_step(self) -> int:
        """The first step that will be run next in the request whose turn it is; -1 where there is none."""
        waiting = self._backlog.first
        return len(waiting.tokens) if waiting is not None else -1

    # --- the group --------------------------------------------------------------------------------------

    def joined(self, rank: int, size: int) -> None:
        """A group was formed: every request is opened again in it."""
        self._rank, self._size = rank, size
        self._runner.joined(rank, size)
        self._work = self._opening = None
        self._roll_called = size == 1
        self.pause_wanted = False

    def parted(self) -> None:
        """The group is gone; caches and requests stay."""
        self._words.let_out()
        self._give_up_ahead()
        self._runner.parted()
        self._work = self._opening = None
        self._pace.interrupted(self._backlog.first is not None)
        self._board.end()

    def failed(self, text: str) -> None:
        """A step failed by itself, not by the ring. Twice at the same place: the request is at fault."""
        generation = self._backlog.first
        if generation is None:
            return
        place = (generation.order, generation.length)
        count = self._failures[2] + 1 if self._failures[:2] == place else 1
        self._failures = (*place, count)
        if self._size == 1:
            self._backlog.drop(generation)
            self._holding = None
            self._words.say(RequestFailed(generation.request.request_id, "engine", text))
        elif count > 1:
            generation.cancelled = True

    @property
    def is_idle(self) -> bool:
        """Is no request open, so that the group can be left without agreement?"""
        return self._work is None and self._opening is None

    # --- turns ------------------------------------------------------------------------------------------

    def turn(self, wake: socket.socket) -> None:
        """One piece of work; sleeps where there is none until `wake` or a neighbour has something. Raises
        RingLostError or RuntimeError at a fault, Paused where all ranks agreed to leave.
        """
        if not self._roll_called:
            self._call_roll()
        elif self._size == 1:
            self._lead(None)
        elif self._rank == 0:
            self._lead_or_wait(wake)
        else:
            self._follow(wake)

    def _call_roll(self) -> None:
        """First in each group: which requests has any rank not finished? A fault in the last step leaves them to
        some ranks only, and rank 0, which opens requests, may have finished them.
        """
        self._board.begin("the roll call of a new group", self._pace.step_deadline_s)
        self._backlog.recall(unfinished_anywhere(self._ring(), self._backlog.waiting))
        self._roll_called = True
        self._board.end()

    @property
    def has_work(self) -> bool:
        """Will a turn do something without waiting? Only rank 0 knows by itself."""
        return self._rank == 0 and (self._work is not None or self._backlog.first is not None)

    def _ring(self) -> TokenRing:
        if self._group.tokens is None:
            raise RingLostError("the group was left")
        return self._group.tokens

    def _lead_or_wait(self, wake: socket.socket) -> None:
        if not self.has_work:
            self._words.let_out()
            if self.pause_wanted:
                self._say(Stop(-1, Vote.PAUSE))
                raise Paused
            if self._ring().receive_or_wake(wake) is not None:
                raise RingLostError("the last rank spoke out of turn")
            return
        self._lead(self._ring())

    def _lead(self, ring: TokenRing | None) -> None:
        work = self._work
        if work is None:
            first = self._backlog.first
            assert first is not None
            self._words.let_out()
            self._board.begin("opening a request", self._pace.step_deadline_s)
            self._say(Open(first.order))
            self._open(first)
            return
        if work.stop and not work.outstanding:
            self._say(Stop(work.generation.order, work.stop))
            self._stop(work.stop)
            return
        step = None if work.stop else self._next_step(work)
        if step is not None:
            work.outstanding += 1
            work.issued += step.count
            outcome = self._run_and_tell(step, work)
            if ring is None:
                self._take(outcome)
            if step.draw < 0 and work.outstanding < CHUNKS_AHEAD:
                return
            if step.ahead and ring is not None:
                self._runner.run_ahead(work)
        if ring is not None:
            self._take(decode(ring.receive(), Message))

    def _next_step(self, work: Work) -> Step | None:
        """What to send out next; None where the outcome of what is under way must come first."""
        generation, start = work.generation, work.issued
        end = generation.length - 1
        votes = self._votes(work, start, deciding=start == end)
        if start < end:
            count, grain = work.next_pass(self._runner.stages, self._pace.chunk_token_s, self.policy.limit_s)
            return Step(generation.order, start, count, grain, -1, True, votes)
        if work.outstanding or start > end:
            return None
        safe = work.ahead.safe if isinstance(work.ahead, Pass) else work.next_safe
        index = len(generation.tokens)
        ahead = index + 1 < generation.max_tokens and not votes & (Vote.CANCEL | Vote.PAUSE)
        return Step(generation.order, start, 1, SINGLY, index, safe, votes, ahead)

    def _follow(self, wake: socket.socket) -> None:
        self._words.let_out()
        if self._opening is not None:
            generation = self._backlog.get(self._opening)
            if generation is not None:
                self._open(generation)
            else:
                _wait(wake)  # the daemon's Begin is on its way; the deadline is running
            return
        if self.pause_wanted and self.is_idle:
            raise Paused
        if self._work is not None:
            self._runner.build_ahead(self._work)
        message = self._ring().receive_or_wake(wake)
        if message is None:
            return
        received = decode(message, Message)
        if not isinstance(received, Step | Outcome):
            self._give_up_ahead()
        match received:
            case Open(order):
                self._board.begin("opening a request", self._pace.step_deadline_s)
                self._pass_on(received)
                self._opening = order
            case Step():
                self._follow_step(received)
            case Outcome():
                self._take(received)
            case Stop(_, votes):
                self._pass_on(received)
                self._stop(Vote(votes))

    def _follow_step(self, step: Step) -> None:
        work = self._work
        if work is None or work.generation.order != step.order:
            raise RingLostError("rank 0 asks for a step of another request")
        outcome = self._run_and_tell(joined(step, self._votes(work, step.start, deciding=step.draw >= 0)), work)
        if self._rank == self._size - 1:
            self._say(outcome)
            self._take(outcome)

    # --- one step ---------------------------------------------------------------------------------------

    def _run_and_tell(self, step: Step, work: Work) -> Outcome:
        """The step goes on to the next rank ahead of the hidden state. Where the next rank has no part in it, it
        follows the work instead: so the last rank's answer always means that all are done.
        """
        runs, next_runs = (
            rank < self._size and work.resumption.runs(rank, step.start) for rank in (self._rank, self._rank + 1)
        )
        if not runs or next_runs:
            self._pass_on(step)
        decoding = step.draw >= 0
        deadline = self._pace.step_deadline_s if decoding else self._pace.chunk_deadline_s
        self._board.begin("a step" if decoding else "a chunk of the prefill", deadline)
        drawn = Drawn()
        if runs:
            drawn = self._runner.run(step, work, next_runs)
        elif next_runs:
            self._runner.send_again(step, work)
        if runs and not next_runs:
            self._pass_on(step)
        return Outcome(step.order, step.start + step.count, drawn.token, step.votes, drawn.likelihood)

    def _take(self, message: Message) -> None:
        """An outcome is here: its token counts from now on."""
        work = self._work
        if work is None or not isinstance(message, Outcome) or message.order != work.generation.order:
            raise RingLostError("an outcome came for another request")
        if self._rank < self._size - 1:
            self._pass_on(message)
        work.outstanding -= 1
        generation = work.generation
        if message.token >= 0:
            gap_ms = self._pace.token()
            self._board.step = len(generation.tokens) + 1
            self._board.tokens_per_s = self._pace.tokens_per_s
            self._board.baseline_tokens_per_s = self._pace.baseline_tokens_per_s
            self._board.last_gap_ms = gap_ms
            generation.prefill_s, generation.decode_s = self._pace.durations_s()
            generation.add(message.token, message.likelihood)
            if len(generation.tokens) % CLEAR_CACHE_STEPS == 0:
                mx.clear_cache()
        else:
            new = work.resumption.furthest < message.position < len(generation.prompt)
            self._pace.chunk(message.position if new else None)
            mx.clear_cache()
        votes = Vote(message.votes)
        if message.token >= 0:  # a chunk of the prefill says nothing about steps
            work.next_safe = Vote.SAFE in votes
            self._runner.show_mode(work.next_safe)
        work.stop |= votes & (Vote.CANCEL | Vote.PAUSE)
        if work.stop or generation.finished is not None:
            self._runner.sit_out_ahead(work)
        self._board.end()
        if generation.finished is not None:
            self._close(generation)
            if self._rank == 0 and Vote.PAUSE in work.stop:
                self._say(Stop(-1, Vote.PAUSE))
                raise Paused
        else:
            decoding = message.position >= generation.length - 1
            deadline = self._pace.step_deadline_s if decoding else self._pace.chunk_deadline_s
            self._board.begin("the wait for the next step", deadline)

    def _give_up_ahead(self) -> None:
        if self._work is not None:
            self._runner.give_up_ahead(self._work)

    def _stop(self, votes: Vote) -> None:
        if Vote.CANCEL in votes and self._work is not None:
            self._work.generation.cancel()
            self._close(self._work.generation)
        if Vote.PAUSE in votes:
            self._work = None
            raise Paused
        if self._work is not None:
            self._work.stop = Vote.NONE

    def _votes(self, work: Work, start: int, deciding: bool) -> int:
        votes = Vote.NONE
        if work.generation.cancelled:
            votes |= Vote.CANCEL
        if self.pause_wanted:
            votes |= Vote.PAUSE
        if deciding and self.policy.choose(start).safe:
            votes |= Vote.SAFE
        return votes

    # --- opening and closing ----------------------------------------------------------------------------

    def _open(self, generation: Generation) -> None:
        """All ranks agree on the history and on where each goes on from."""
        standings = [self._standing(generation)]
        if self._group.tokens is not None:
            standings = gather(self._ring(), standings[0])
            found = history(standings)
            if found is None:
                self._disagree(generation)
                return
            generation.adopt(*found)
        self._opening = None
        self._board.end()
        if any(standing.cancelled for standing in standings):
            generation.cancel()
        if generation.finished is None:
            self._start(generation, standings)
            self._board.begin("the first step", self._pace.chunk_deadline_s)
        else:
            self._close(generation)

    def _start(self, generation: Generation, standings: list[Standing]) -> None:
        """This rank's caches go to where the ranks agreed to go on."""
        together = self._model.is_divided
        resumption = resume(standings, len(generation.prompt) - 1, generation.length - 1, together)
        generation.course, generation.cached_tokens = resumption.course, resumption.cached_tokens
        start = resumption.starts[self._rank]
        holding, self._holding = self._holding, None
        if holding is not None and start > 0:
            holding.go_back(generation.order, start)
        else:
            holding = None  # its memory is free before the new caches need it
            holding = Holding(generation.order, self._model.stage.new_caches())
        self._holding = holding
        request, size = generation.request, self._model.summary.vocab_size
        sampler = Sampler(request.sampling, size, generation.given, generation.mask)
        issued = min(resumption.starts)
        self._work = Work(generation, sampler, holding, resumption, issued)
        self._pace.opened(len(generation.tokens))

    def _disagree(self, generation: Generation) -> None:
        """The ranks were told different beginnings of one answer: all find so, and none goes on with either."""
        self._opening = None
        self._backlog.drop(generation)
        self._board.end()
        text = "the ranks were given different beginnings of this answer"
        self._words.say(RequestFailed(generation.request.request_id, "histories_differ", text))

    def _standing(self, generation: Generation) -> Standing:
        """Of this rank. Drops caches that a fault has left unusable."""
        if self._holding is not None and not self._holding.is_usable:
            self._holding = None
        return standing_of(generation, self._holding)

    def _close(self, generation: Generation) -> None:
        """It is finished on every rank, or will be found so when it is opened again."""
        self._work = None
        holding = self._holding
        if holding is not None and holding.order == generation.order and generation.course is not None:
            sequence = generation.sequence(0, generation.length)
            if not holding.keep(sequence, generation.course):
                self._holding = None
        self._backlog.finished(generation)
        self._board.end()
        self._board.kv_tokens = 0
        mx.clear_cache()

    # --- messages ---------------------------------------------------------------------------------------

    def _say(self, message: Message) -> None:
        if self._group.tokens is not None:
            self._group.tokens.send(encode(message))

    def _pass_on(self, message: Message) -> None:
        """Round the ring, up to the rank before the one that said it: the last rank says outcomes, rank 0 all
        else, so the chain ends before rank 0 or before the last rank.
        """
        ends_at = self._size - 2 if isinstance(message, Outcome) else self._size - 1
        if self._rank != ends_at:
            self._say(message)


def _wait(wake: socket.socket) -> None:
    """Sleeps until the other thread has something, or a little: the caller looks again either way."""
    wake.setblocking(True)
    wake.settimeout(WAIT_S)
    try:
        wake.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        pass
    finally:
        wake.setblocking(False)


WAIT_S: Final = 0.05
"""How soon a lost neighbour is noticed while this rank waits for its daemon's Begin."""
