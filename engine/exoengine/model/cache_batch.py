"""The caches of several sequences as one, so that one pass through a stage runs a token of each.

mlx-lm's batched caches hold the sequences side by side, padded on the left to the longest one. While sequences stay
together their own caches (`StageCaches`) are empty: a row of the batch holds what they held. What needs a
sequence's own caches, to go back after a fault or to copy a beginning, ends the batch first, and each has its own
again. So going back, replay and the prompt cache know nothing of batches.

Decides: which caches can be batched, and what of a batch goes back to its sequences. Evaluates only when sequences
are brought together or parted. Where an architecture has no batched caches, `OneByOne` takes the same place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList, KVCache, RotatingKVCache

from exoengine.model.cache_rollback import StageCaches, State, arrays_of, copied, is_tainted, leaves_of

APPENDING: Final = BatchKVCache
"""Of the batched caches the only one that goes back by its offset."""


def can_be_batched(caches: StageCaches) -> bool:
    """Has mlx-lm a batched cache for each? Of a layer of another rank only what a mask is built from is needed."""
    owned = all(_is_of_known_kind(leaf) for leaf in caches.leaves)
    return owned and all(type(leaf) in (KVCache, ArraysCache) for leaf in _leaves(caches.stand_ins))


def _is_of_known_kind(leaf: Any) -> bool:
    """mlx-lm's batched window keeps no first tokens, and states in a batch are not padded."""
    if type(leaf) is RotatingKVCache:
        return bool(leaf.keep == 0)
    if type(leaf) is ArraysCache:
        return leaf.left_padding is None and leaf.lengths is None
    return type(leaf) is KVCache


class StageBatch:
    """Of sequences that each hold a token at least, in the order of the rows of tokens and hidden states."""

    def __init__(self, members: Sequence[StageCaches]) -> None:
        """Nothing is taken from the members before `take_over`."""
        self.members = tuple(members)
        self._began_at = tuple(member.position for member in members)
        self._longest = max(self._began_at)
        self.position = 0
        """How many passes the members have had together."""
        self._leaves: list[Any] = [_merged(leaves) for leaves in zip(*(one.leaves for one in members), strict=True)]
        self._by_reference = [leaf for leaf in self._leaves if type(leaf) is not APPENDING]
        by_identity = {id(leaf): mine for leaf, mine in zip(members[0].leaves, self._leaves, strict=True)}
        self._before: list[State] = []
        """Of the caches that go back by reference, before the last pass."""
        self.is_ahead = False
        """Was the last pass begun ahead, so that it may be given up?"""
        self._stand_ins: list[Any] = []
        self._all = [self._stand_for(cache, by_identity) for cache in members[0].everything]

    def _stand_for(self, cache: Any, by_identity: dict[int, Any]) -> Any:
        """What the model sees in the place of a member's cache."""
        if isinstance(cache, CacheList):
            return CacheList(*(self._stand_for(inner, by_identity) for inner in cache.caches))
        if id(cache) in by_identity:
            return by_identity[id(cache)]
        if type(cache) is not KVCache:
            return ArraysCache(len(cache.cache))
        padded = BatchKVCache([self._longest - length for length in self._began_at])
        self._stand_ins.append((padded, padded.offset))
        return padded

    def take_over(self) -> None:
        """The members' own caches are empty from here on, and their memory is free, layer by layer."""
        try:
            for index, leaf in enumerate(self._leaves):
                mx.eval(list(arrays_of(vars(leaf))))
                for member in self.members:
                    member.leaves[index].__dict__.update(_emptied(vars(member.leaves[index])))
        except BaseException:
            for member in self.members:
                member.take_back(None)
            raise
        for row, member in enumerate(self.members):
            member.lend(self, row)

    # --- what a pass needs --------------------------------------------------------------------------------

    def for_model(self, _tokens: int) -> list[Any]:
        for padded, offset in self._stand_ins:
            padded._idx = self._longest + self.position
            padded.offset = offset + padded._idx
        return self._all

    def advance(self, tokens: int) -> None:
        self._go_to(self.position + tokens)

    def _go_to(self, position: int) -> None:
        self.position = position
        for member, begin in zip(self.members, self._began_at, strict=True):
            member.position = begin + position

    def arrays(self) -> list[Any]:
        return [array for leaf in self._leaves for array in arrays_of(vars(leaf))]

    def references(self) -> list[State]:
        return [copied(vars(leaf)) for leaf in self._leaves]

    def put_back(self, references: list[State], position: int) -> None:
        for leaf, state in zip(self._leaves, references, strict=True):
            vars(leaf).clear()
            vars(leaf).update(state)
        self._go_to(position)

    def mark(self) -> None:
        """Before a pass: each member can go back to here."""
        if self._by_reference:
            self._before = [copied(vars(leaf)) for leaf in self._by_reference]
            kinds = [type(leaf) for leaf in self._by_reference]
            states = list(zip(kinds, self._before, strict=True))
            for row, member in enumerate(self.members):
                member.note_mark(_Row(states, row))

    def step_back(self) -> None:
        """Before the last pass, which was begun ahead; nobody else knows of it."""
        self.is_ahead = False
        for leaf in self._leaves:
            if type(leaf) is APPENDING:
                leaf.trim(1)
        for leaf, state in zip(self._by_reference, self._before, strict=True):
            vars(leaf).clear()
            vars(leaf).update(copied(state))
        self._go_to(self.position - 1)

    # --- its end ------------------------------------------------------------------------------------------

    def is_of(self, members: Sequence[StageCaches]) -> bool:
        return len(members) == len(self.members) and all(
            mine is theirs for mine, theirs in zip(self.members, members, strict=True)
        )

    def row(self, row: int) -> Iterator[State]:
        """What a member's own caches would hold, leaf by leaf, not evaluated."""
        return iter(_Row([(type(leaf), vars(leaf)) for leaf in self._leaves], row))

    def dissolve(self) -> None:
        """Each member has its own caches again; lost where a fault left what must not be evaluated."""
        if self.is_ahead:
            self.step_back()
        members, leaves = self.members, self._leaves
        self._leaves, self._by_reference, self._all = [], [], []
        states: list[list[State]] = [[] for _ in members]
        try:
            lost = is_tainted([array for leaf in leaves for array in arrays_of(vars(leaf))])
            while leaves and not lost:
                leaf = leaves.pop(0)
                for row, found in enumerate(states):
                    found.extend(_Row([(type(leaf), vars(leaf))], row))
                mx.eval([list(arrays_of(found[-1])) for found in states])
        except RuntimeError:
            lost = True
        for member, found in zip(members, states, strict=True):
            member.take_back(None if lost else found)


class _Row:
    """One sequence's part of batched caches. It is cut out when it is looked at: most marks never are."""

    def __init__(self, leaves: Sequence[tuple[Any, State]], row: int) -> None:
        self._leaves, self._row = leaves, row

    def __iter__(self) -> Iterator[State]:
        for kind, state in self._leaves:
            batched = kind.__new__(kind)
            vars(batched).update(state)
            own = vars(batched.extract(self._row))
            if kind is ArraysCache:
                own["cache"] = [mx.contiguous(array) for array in own["cache"]]
            yield own


class OneByOne:
    """Several sequences in one pass where their caches cannot be batched: the stage runs one after the other."""

    def __init__(self, members: Sequence[StageCaches]) -> None:
        self.members = tuple(members)

    position = 0
    """Each member has its own."""

    def arrays(self) -> list[Any]:
        return [array for member in self.members for array in member.arrays()]

    def references(self) -> list[tuple[list[State], int]]:
        return [(member.references(), member.position) for member in self.members]

    def put_back(self, references: list[tuple[list[State], int]], _position: int) -> None:
        for member, (state, position) in zip(self.members, references, strict=True):
            member.put_back(state, position)

    def mark(self) -> None:
        for member in self.members:
            member.mark(1)


def batched(members: Sequence[StageCaches]) -> StageBatch:
    """The batch of exactly these, new where they have not run together so far."""
    known = members[0].batch
    if isinstance(known, StageBatch) and known.is_of(members):
        return known
    for member in members:
        member.settle()
    made = StageBatch(members)
    made.take_over()
    return made


def _merged(leaves: Sequence[Any]) -> Any:
    return type(leaves[0]).merge(list(leaves))


def _emptied(state: State) -> State:
    return {
        key: None if isinstance(value, mx.array) else [None] * len(value) if isinstance(value, list) else value
        for key, value in state.items()
    }


def _leaves(caches: Iterable[Any]) -> Iterator[Any]:
    for cache in caches:
        yield from leaves_of(cache)
