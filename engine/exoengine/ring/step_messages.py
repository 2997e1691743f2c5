"""What the ranks of a group say to each other about the work: the messages of message_ring.py.

Rank 0 leads: it says what is run next, and a `Step` travels from rank to rank ahead of the hidden state, taking
each rank's votes with it. The last rank answers with an `Outcome`, which travels on from rank 0 so that every rank
learns every token. Rank 0 counts a step as done when its outcome is here, the others when they pass it on; so two
ranks never differ by more than the steps under way. A `BatchStep` is a step of several sequences, and its
`BatchOutcome` has the outcome of each.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from exoengine.ring.pass_log import SINGLY, PassLog


class Vote(enum.IntFlag):
    """What any one rank can ask for; gathered from all ranks with each step."""

    NONE = 0
    CANCEL = 1
    PAUSE = 2
    """Leave the group at this step's end: another plan waits, or this rank must go."""
    SAFE = 4
    """Evaluate the next step safely."""


class Likelihood(msgspec.Struct, frozen=True, array_like=True):
    """The log probability of a drawn token and of the likeliest ones, where the request asked for them."""

    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


NO_LIKELIHOOD = Likelihood()


class UnfinishedOrders(msgspec.Struct, frozen=True, array_like=True):
    """First in a group, from every rank: the requests that it has not finished."""

    orders: tuple[int, ...]


class Step(msgspec.Struct, frozen=True, tag="step", array_like=True):
    """Run tokens [start, start + count) of the sequence through the stages."""

    order: int
    start: int
    count: int
    grain: int
    """As pass_log.py has it. Of what was run when it was new: the caches come out the same to the last bit."""
    draw: int
    """The index of the answer's token to draw from the last position's logits; -1: none."""
    safe: bool
    votes: int
    ahead: bool = False
    """Rank 0 begins the next step before this one's outcome: the last rank sends it the token once it is drawn."""

    @property
    def singly(self) -> bool:
        """One token at a time?"""
        return self.grain == SINGLY


class Outcome(msgspec.Struct, frozen=True, tag="outcome", array_like=True):
    """A step is through all stages. `token` is -1 where none was drawn."""

    order: int
    position: int
    token: int
    votes: int
    likelihood: Likelihood = NO_LIKELIHOOD


class BatchRow(msgspec.Struct, frozen=True, array_like=True):
    """What a batch runs of one sequence: its token at `start`, which is the last one known."""

    order: int
    start: int
    draw: int
    """The index of the answer's token that is drawn."""
    votes: int
    """Of all ranks, to end this sequence."""


class BatchStep(msgspec.Struct, frozen=True, tag="batch", array_like=True):
    """Run a token each of several sequences through the stages in one pass, and draw the next one of each."""

    rows: tuple[BatchRow, ...]
    safe: bool
    votes: int
    """As a step's, for all of them."""
    ahead: bool = False
    """A rank alone begins the next batch of the same sequences before it has told what this one drew."""

    singly: ClassVar[bool] = True
    count: ClassVar[int] = 1

    @property
    def start(self) -> int:
        """Of the longest sequence."""
        return max(row.start for row in self.rows)


class BatchOutcome(msgspec.Struct, frozen=True, tag="outcomes", array_like=True):
    """A batch is through all stages: one outcome for each of its rows, in their order."""

    rows: tuple[Outcome, ...]


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """No step is under way; every rank acts on these votes now, at the same position."""

    order: int
    votes: int


class CachedSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence in a rank's caches, finished or not, that a new request may begin like."""

    order: int
    """Of its request."""
    position: int
    """How many of the new prompt's tokens can be taken from it; 0: none."""
    pass_log: PassLog
    """How they were run."""


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """How far one rank is with a request; resume.py makes of all ranks' standings where it goes on."""

    order: int
    request_id: str
    tokens: tuple[int, ...]
    likelihoods: tuple[Likelihood, ...]
    """Of each token where the request asked for them, else none. Without figures where this rank has the token from
    its daemon alone.
    """
    cancelled: bool
    started: bool
    """Did this rank open the request before? If not, nothing of it is in caches yet."""
    cached_tokens: int
    pass_log: PassLog
    position: int
    """How many of the sequence's tokens are in its caches."""
    can_trim: bool
    """Can the caches go back to any position?"""
    marks: tuple[int, ...]
    """Positions that they can go back to in any case."""
    sent_tokens: int
    """From the beginning on, for how many tokens it has kept what it sent downstream."""
    sources: tuple[CachedSequence, ...] = ()
    """Where the request is opened for the first time: all that this rank's caches hold of other sequences."""
    refusal: str = ""
    """Why this rank's memory can never hold it, where it is opened for the first time; empty where it can."""
    waits: bool = False
    """Must it wait, for the memory of others that are open here?"""
    alone: bool = False
    """Did a batch that it was in fail by itself here? Which sequence is at fault shows when each runs alone."""


class Open(msgspec.Struct, frozen=True, tag="open", array_like=True):
    """All ranks: say how far you are with this request. It goes from rank 0 to the last, gathering standings."""

    order: int
    standings: tuple[Standing, ...]


class Opened(msgspec.Struct, frozen=True, tag="opened", array_like=True):
    """From the last rank, round the ring: every rank's standing, by rank. From here on the request has steps."""

    order: int
    standings: tuple[Standing, ...]


Message = Open | Opened | Step | BatchStep | Outcome | BatchOutcome | Stop


def joined(step: Step, votes: int) -> Step:
    """The step with one more rank's votes."""
    return msgspec.structs.replace(step, votes=step.votes | votes)


def joined_batch(batch: BatchStep, cancelled: Sequence[bool], votes: int) -> BatchStep:
    """The batch with one more rank's votes: which of its rows it wants to end, and what it asks for all."""
    rows = tuple(
        msgspec.structs.replace(row, votes=row.votes | Vote.CANCEL) if ends else row
        for row, ends in zip(batch.rows, cancelled, strict=True)
    )
    return msgspec.structs.replace(batch, rows=rows, votes=batch.votes | votes)


def travels_on(message: Message, rank: int, size: int) -> bool:
    """Round the ring, up to the rank before the one that said it: the last rank says outcomes and what was opened,
    rank 0 all else.
    """
    ends_at = size - 2 if isinstance(message, Outcome | BatchOutcome | Opened) else size - 1
    return rank != ends_at
