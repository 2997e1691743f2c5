"""What a rank holds of each sequence (its caches, and what it sent downstream), and which finished ones it keeps.

A holding outlives groups: after a fault its request continues from it. It also outlives its request where the
caches can be trimmed and memory allows: a prompt with the same beginning continues from it (the prompt cache).
Where that sequence still runs, the prompt gets a copy.

What several finished sequences begin with is held once, where one was begun from the other (stretches): a running
one needs all its tokens side by side, and has them to itself.

Decides: which finished sequences stay in memory, and how much of one a new prompt can use. Which one is used is
decided in resume.py, alike on all ranks. Runs on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import mlx.core as mx
import psutil

from exoengine.generate.request import Generation
from exoengine.generate.sent_activations import SentStates
from exoengine.model.cache_rollback import StageCaches, State, arrays_of, cut
from exoengine.model_files.memory_fit import amount_bytes
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.pass_log import PassLog
from exoengine.ring.step_messages import CachedSequence

MIN_FREE_SHARE: Final = 0.1
"""With less of the machine's memory available no finished sequence is kept: its next turn may never come."""

MOST_IDLE: Final = 64
"""Finished sequences that are kept at most: each one is listed in a message whenever a request is opened."""

CUT_LOSS_TOKENS: Final = 128
"""A common beginning is cut at the end of a pass, unless that would lose this many tokens, or half of it. A chunk
that is cut in two rounds differently, if a replaced rank has to run it again."""

FEW_TOKENS: Final = 3
"""A finished sequence is not kept if it has at most this many tokens that a newer one lacks: an end token that the
template writes in another way, and the like."""

SHARED_TOKENS: Final = 32
"""A beginning in common that is shorter is held by each: little would be saved."""


class Stretch:
    """The caches' states, leaf by leaf, of the tokens [start, end) of one or more finished sequences. Nothing ever
    writes to them.
    """

    def __init__(self, start: int, end: int, states: list[State]) -> None:
        self.start, self.end, self.states = start, end, states

    def split(self, at: int) -> tuple[Stretch, Stretch]:
        """In two, with memory of their own; evaluated."""
        one = Stretch(self.start, at, [cut(state, 0, at - self.start) for state in self.states])
        other = Stretch(at, self.end, [cut(state, at - self.start, self.end - self.start) for state in self.states])
        mx.eval(one.arrays, other.arrays)
        return one, other

    @property
    def arrays(self) -> list[Any]:
        return list(arrays_of(self.states))


class Holding:
    def __init__(self, order: int, caches: StageCaches, sent: SentStates | None = None) -> None:
        self.order, self.caches, self.sent = order, caches, sent or SentStates()
        self._sequence: list[int] = []
        self._pass_log = PassLog()
        self._lost = False
        self._is_whole = False
        """Was it seen whole since its request finished? Nothing is written to it before it is used again."""
        self._stretches: tuple[Stretch, ...] = ()
        """Of a finished request: its first tokens, which `caches` hold no more. Others may have them, too."""
        self._origins: dict[int, int] = {}
        """So many of the first tokens have the bits of that beginning in common."""
        self.may_share = False
        """Finished, and not yet compared with the others."""

    @property
    def is_usable(self) -> bool:
        """Do the arrays hold `caches.position` tokens? After a fault some may never have been computed."""
        if self._is_whole:
            return True
        usable = not self._lost and self.caches.can_roll_back(self.caches.position)
        self._is_whole = usable and bool(self._sequence) and not self.caches.is_pending
        return usable

    @property
    def is_seen_whole(self) -> bool:
        return self.is_usable and self._is_whole

    def undo(self, position: int) -> None:
        """Goes back to before a step that began at `position`; caches that cannot do that are lost."""
        self._is_whole = False
        self._forget_bits(position)
        if self.caches.can_roll_back(position):
            self.caches.roll_back(position)
        else:
            self._lost = True

    def kept_arrays(self) -> Iterator[Any]:
        """What a finished request holds in memory; others may hold some of them, too."""
        yield from self.caches.arrays()
        yield from self.sent.pieces
        for stretch in self._stretches:
            yield from stretch.arrays

    def _forget_bits(self, position: int) -> None:
        """What lies beyond is computed anew, and may be rounded differently."""
        self._origins = {origin: min(end, position) for origin, end in self._origins.items()}

    def go_back(self, order: int, position: int) -> None:
        """Now of request `order`, with the tokens up to `position`."""
        self.order, self._sequence, self._is_whole, self.may_share = order, [], False, False
        self._forget_bits(position)
        self.caches.roll_back(position)
        self.sent.cut(position)

    def keep(self, sequence: Sequence[int], pass_log: PassLog) -> bool:
        """Its request is finished: should the holding be kept?"""
        memory = psutil.virtual_memory()
        self._sequence, self._pass_log = list(sequence[: self.caches.position]), pass_log
        self.may_share = True
        return not self._lost and self.caches.can_trim and memory.available >= MIN_FREE_SHARE * memory.total

    def offer(self, prompt: Sequence[int]) -> CachedSequence:
        """What the caches of a finished request hold of the prompt, and how it was run."""
        return _source(self.order, self._sequence, self._pass_log, prompt)

    def adds_little_to(self, other: Holding) -> bool:
        """Are all but a few tokens of this one a beginning of the other?"""
        return len(self._sequence) - _beginning(self._sequence, other._sequence) < FEW_TOKENS

    def branch(self, order: int, position: int, caches: StageCaches) -> Holding:
        """A copy of the first `position` tokens for request `order`, in `caches`, which are empty. Raises
        RingLostError where this rank never ran so many: what lies beyond is no token's.
        """
        if position > self.caches.position:
            raise RingLostError("the ranks agreed on more of a sequence than this one holds")
        parts = [stretch.states for stretch in self._stretches if stretch.start < position]
        if position > self._own_from or not parts:
            parts.append(self.caches.states())
        caches.fill(parts, position)
        mx.eval(caches.arrays())
        branch = Holding(order, caches, self.sent.up_to(position))
        self._origins[order] = position
        branch._origins = {origin: min(end, position) for origin, end in self._origins.items()}
        return branch

    # --- what finished requests have in common --------------------------------------------------------------

    def make_whole(self) -> None:
        """Its caches hold all its tokens again. What others hold, too, is copied."""
        for arrays in self.caches.put_before([stretch.states for stretch in self._stretches]):
            mx.eval(arrays)
        self._stretches = ()

    @property
    def _own_from(self) -> int:
        """The first token that the caches themselves hold."""
        return self._stretches[-1].end if self._stretches else 0

    def in_common(self, other: Holding) -> int:
        """So many of the first tokens have the same bits in both."""
        ends = [min(end, other._origins.get(origin, 0)) for origin, end in self._origins.items()]
        return min(max(ends, default=0), self.caches.position - 1, other.caches.position - 1)

    def divide(self, at: int, everyone: Collection[Holding]) -> tuple[Stretch, ...]:
        """Makes a stretch end at token `at`, and returns those up to there. `everyone` may hold them, too."""
        if at > self._own_from:
            self._stretches += (Stretch(self._own_from, at, self._take_out(at)),)
        for stretch in self._stretches:
            if stretch.start < at < stretch.end:
                halves = stretch.split(at)
                for holding in everyone:
                    holding._replace(stretch, halves)
        return tuple(stretch for stretch in self._stretches if stretch.end <= at)

    def stand_on(self, stretches: tuple[Stretch, ...]) -> None:
        """Holds its first tokens in another one's stretches, which have the same bits."""
        for _, kept in self.caches.take_out(stretches[-1].end, self.caches.position):
            mx.eval(kept)
        self._stretches = stretches

    def _take_out(self, at: int) -> list[State]:
        """The tokens up to `at`, which the caches hold no more."""
        begin, states = self._own_from, []
        for state, kept in self.caches.take_out(at - begin, self.caches.position - begin):
            mx.eval(list(arrays_of(state)), kept)
            states.append(state)
        return states

    def _replace(self, stretch: Stretch, halves: tuple[Stretch, Stretch]) -> None:
        if stretch in self._stretches:
            place = self._stretches.index(stretch)
            self._stretches = (*self._stretches[:place], *halves, *self._stretches[place + 1 :])


def offer_of_running(generation: Generation, held: int, prompt: Sequence[int]) -> CachedSequence:
    """The part of a running sequence that this rank has completed: its caches hold `held` tokens. A rank that was
    replaced holds fewer than the pass log has until it has caught up.
    """
    pass_log = generation.pass_log or PassLog()
    return _source(generation.order, generation.sequence(0, min(held, pass_log.end)), pass_log, prompt)


def _source(order: int, sequence: Sequence[int], pass_log: PassLog, prompt: Sequence[int]) -> CachedSequence:
    shared = _beginning(sequence, prompt[:-1])
    whole = pass_log.boundary(shared)
    if shared - whole < min(CUT_LOSS_TOKENS, shared // 2 + 1):
        return CachedSequence(order, whole, pass_log.up_to(whole))
    _, grain = pass_log.next_pass(whole)
    return CachedSequence(order, shared, pass_log.up_to(whole).ran(whole, shared, grain))


def _beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with. Compares halves, which is faster than token by token in Python."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if list(one[low:middle]) == list(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


class Holdings:
    """Those of unfinished requests, and of finished ones as many as are kept."""

    def __init__(self, limit: str, new_caches: Callable[[], StageCaches]) -> None:
        """`limit`: of the memory that finished ones may occupy (`Serving.prompt_cache`)."""
        self._limit = amount_bytes(limit, psutil.virtual_memory().total)
        self._new_caches = new_caches
        self._unfinished: dict[int, Holding] = {}
        self._idle: dict[int, Holding] = {}
        """By order, the one that was used longest ago first."""

    def usable(self, order: int) -> Holding | None:
        """That of an unfinished request. Caches that a fault has spoiled are dropped."""
        holding = self._unfinished.get(order)
        if holding is not None and not holding.is_usable:
            holding = None
            del self._unfinished[order]
        return holding

    def forget(self, order: int) -> None:
        self._unfinished.pop(order, None)

    @property
    def idle_bytes(self) -> int:
        """What several of them hold counts once."""
        arrays = {id(array): array for holding in self._idle.values() for array in holding.kept_arrays()}
        return sum(array.nbytes for array in arrays.values())

    def finish(self, generation: Generation) -> None:
        """Keeps what a finished request leaves. Over the limit, the ones used longest ago are dropped."""
        holding = self._unfinished.pop(generation.order, None)
        if holding is None or generation.pass_log is None or self._limit == 0:
            return
        if not holding.keep(generation.sequence(0, generation.length), generation.pass_log):
            return
        for order in [one.order for one in self._idle.values() if one.adds_little_to(holding)]:
            del self._idle[order]
        self._idle[holding.order] = holding
        self._share()
        while len(self._idle) > MOST_IDLE or self.idle_bytes > self._limit:
            del self._idle[next(iter(self._idle))]

    def idle(self) -> dict[int, Holding]:
        """What finished requests left, by order. Caches that a fault has spoiled are dropped."""
        self._idle = {order: holding for order, holding in self._idle.items() if holding.is_usable}
        self._share()
        return dict(self._idle)

    def _share(self) -> None:
        """What a finished sequence has in common with another one is held once. One of which something is not
        evaluated yet is looked at again.
        """
        for holding in [one for one in self._idle.values() if one.may_share and one.is_seen_whole]:
            holding.may_share = False
            others = [one for one in self._idle.values() if one is not holding and one.is_seen_whole]
            best = max(others, key=holding.in_common, default=None)
            if best is not None and (common := holding.in_common(best)) >= SHARED_TOKENS:
                holding.stand_on(best.divide(common, self._idle.values()))

    def drop(self, orders: Iterable[int]) -> None:
        """Of finished requests."""
        for order in orders:
            self._idle.pop(order, None)

    def go_on(self, order: int, position: int) -> Holding:
        """Of request `order`: its own caches as they were at `position`, or new ones."""
        own = self._unfinished.pop(order, None)
        if own is not None and position > 0:
            own.go_back(order, position)
        else:
            own = None  # its memory is free before the new caches need it
            self._make_room()
            own = Holding(order, self._new_caches())
        self._unfinished[order] = own
        return own

    def begin_from(self, source: Holding, order: int, position: int) -> Holding:
        """For request `order`: `source` itself where it is finished and used whole, else a copy."""
        finished = self._idle.pop(source.order, None)
        if finished is source and source.caches.position == position:
            source.make_whole()
            source.go_back(order, position)
            found = source
        else:
            if finished is not None:
                self._idle[finished.order] = finished  # it was used just now
            self._make_room()
            found = source.branch(order, position, self._new_caches())
        self._unfinished[order] = found
        return found

    def _make_room(self) -> None:
        """Before caches are made: with little memory left, finished sequences are dropped, oldest first."""
        while self._idle:
            memory = psutil.virtual_memory()
            if memory.available >= MIN_FREE_SHARE * memory.total:
                return
            del self._idle[next(iter(self._idle))]
            mx.clear_cache()


def not_everywhere(mine: Iterable[int], told: Iterable[tuple[CachedSequence, ...]]) -> set[int]:
    """Of `mine`, the orders that some rank does not hold: no request can go on from them any more."""
    orders = set(mine)
    return orders.difference(orders.intersection(*({source.order for source in sources} for sources in told)))
