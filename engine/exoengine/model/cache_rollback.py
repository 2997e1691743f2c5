"""The KV caches and states of one sequence on one stage, and how they go back to an earlier step.

A cache that only appends (the usual KV cache, quantised or not) goes back by its offset: what lies beyond it is
overwritten. Rotating, chunked, state-space and unknown caches overwrite what they would need, so each step keeps
references to the arrays before it; MLX arrays are immutable, so that is a copy only where MLX would otherwise have
written in place.

Decides: what can be rolled back and how. Never evaluates.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache

CHUNKS_KEPT: Final = 6
"""How many chunks back a cache of references can go: a prefill runs ahead by as many as there are stages, at most
this many."""

STEPS_KEPT: Final = 3
"""How many single tokens back: the step under way, the one that another rank may lack, and the one that the first
rank has begun ahead. Each costs a copy of what a rotating cache holds, in memory as well."""

COMMUNICATION: Final = ("Send", "Recv", "AllReduce", "AllGather")
"""Names of MLX's primitives that must never run again once their group is gone."""


State = dict[str, Any]
"""All attributes of one of mlx-lm's caches."""


class CacheBatch(Protocol):
    """Holds in its rows what the caches of several sequences held (cache_batch.py)."""

    def row(self, row: int) -> Iterator[State]: ...

    def dissolve(self) -> None: ...


class NotQuantisableError(Exception):
    """These caches cannot be quantised; `str(error)` is part of a line for people."""


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """How keys and values are kept: `bits` each, with a scale and a bias for `group_size` of them."""

    bits: int
    group_size: int


class StageCaches:
    """What the model sees as its list of caches, of which only `owned` are filled on this rank.

    The others stand in where a model builds a mask from a cache of another stage's layer: there the model gets an
    owned cache of the same kind, which has the same offset, or an empty one whose offset is kept up to date. One
    that no layer has (`outside`) stands in for itself alone, and is empty at each step: nothing evaluates what the
    model puts there.

    While the sequence runs in a batch the caches are empty and a row of the batch has what they held; whatever
    looks into them ends the batch.
    """

    def __init__(
        self, caches: list[Any], owned: frozenset[int] | None, outside: frozenset[int] = frozenset()
    ) -> None:
        self.position = 0
        """How many tokens the caches hold."""
        mine = [index for index in range(len(caches)) if owned is None or index in owned]
        self._owned = [caches[index] for index in mine]
        by_kind = {_kind(caches[index]): caches[index] for index in mine}
        self.stand_ins: list[Any] = []
        self.everything = list(caches)
        for index in set(range(len(caches))) - set(mine):
            same = None if index in outside else by_kind.get(_kind(caches[index]))
            if same is None:
                self.stand_ins.append(caches[index])
            else:
                self.everything[index] = same
        kept_empty = [leaf for index in outside - set(mine) for leaf in leaves_of(caches[index])]
        self._kept_empty = [(leaf, copied(vars(leaf))) for leaf in kept_empty]
        self.leaves = [leaf for cache in self._owned for leaf in leaves_of(cache)]
        self._appending = [leaf for leaf in self.leaves if type(leaf) in (KVCache, QuantizedKVCache)]
        self._by_reference = [leaf for leaf in self.leaves if type(leaf) not in (KVCache, QuantizedKVCache)]
        self._marks: deque[tuple[int, Iterable[State]]] = deque(maxlen=CHUNKS_KEPT)
        self.batch: CacheBatch | None = None
        self._row = 0
        self._lost = False

    def for_model(self, _tokens: int) -> list[Any]:
        """The list to hand to the model for its next tokens. Raises RuntimeError where what they held is lost."""
        self.settle()
        for cache in self.stand_ins:
            for leaf in leaves_of(cache):
                if hasattr(leaf, "offset"):
                    leaf.offset = self.position
        for leaf, empty in self._kept_empty:
            vars(leaf).update(copied(empty))
        return self.everything

    def advance(self, tokens: int) -> None:
        self.position += tokens

    def arrays(self) -> list[Any]:
        """Every array that a step must have evaluated before it counts as completed."""
        self._leave_batch()
        return [array for leaf in self.leaves for array in arrays_of(vars(leaf))]

    def references(self) -> list[State]:
        """How things are; while this is held, MLX copies what it would write in place otherwise."""
        self.settle()
        return [copied(vars(leaf)) for leaf in self.leaves]

    def put_back(self, references: list[State], position: int) -> None:
        """As `references` and the position were, before anything built since was evaluated."""
        for leaf, state in zip(self.leaves, references, strict=True):
            vars(leaf).clear()
            vars(leaf).update(state)
        self.position = position

    def mark(self, tokens: int) -> None:
        """Before a step of so many tokens: remember how things are, so that `roll_back` can return here."""
        if not self._by_reference:
            return
        self.settle()
        self.note_mark([copied(vars(leaf)) for leaf in self._by_reference], tokens)

    def note_mark(self, states: Iterable[State], tokens: int = 1) -> None:
        """As `mark`, where the states of the caches that go back by reference are known."""
        while self._marks and self._marks[-1][0] >= self.position:
            self._marks.pop()  # of a step that was given up
        self._marks.append((self.position, states))
        while tokens == 1 and len(self._marks) > STEPS_KEPT:
            self._marks.popleft()

    # --- batches ----------------------------------------------------------------------------------------

    def lend(self, batch: CacheBatch, row: int) -> None:
        """The caches are empty: `batch` has what they held in its row."""
        self.batch, self._row = batch, row

    def settle(self) -> None:
        """The caches hold the sequence themselves again. Raises RuntimeError where a batch has lost it."""
        self._leave_batch()
        if self._lost:
            raise RuntimeError("a batch that failed has taken the caches of its sequences with it")

    def _leave_batch(self) -> None:
        if self.batch is not None:
            self.batch.dissolve()

    def take_back(self, states: Iterable[State] | None) -> None:
        """Out of the batch; None: what it held is lost."""
        self.batch, self._lost = None, states is None
        for leaf, state in zip(self.leaves, states or (), strict=states is not None):
            vars(leaf).update(state)

    # --- going back -------------------------------------------------------------------------------------

    @property
    def can_trim(self) -> bool:
        """Can the caches go back to any position, not only to those marked?"""
        return not self._by_reference

    @property
    def marks(self) -> tuple[int, ...]:
        return tuple(at for at, _ in self._marks)

    def can_roll_back(self, position: int) -> bool:
        """Can the caches hold exactly `position` tokens again?"""
        self._leave_batch()
        if self._lost or position > self.position:
            return False
        if position == self.position:
            return not is_tainted(self.arrays())
        if self._by_reference and all(at != position for at, _ in self._marks):
            return False
        return not is_tainted([array for leaf in self._appending for array in arrays_of(vars(leaf))])

    @property
    def is_pending(self) -> bool:
        """Is anything in them not evaluated yet?"""
        return is_pending(self.arrays())

    def roll_back(self, position: int) -> None:
        """Makes the caches hold exactly `position` tokens; `can_roll_back` must have said yes. They may hold those
        already, and in some layers more: a pass that failed half-way was none.
        """
        while self._by_reference and (position < self.position or (self._marks and self._marks[-1][0] >= position)):
            at, states = self._marks.pop()
            if at == position:
                for leaf, state in zip(self._by_reference, states, strict=True):
                    vars(leaf).clear()
                    vars(leaf).update(state)
                break
        for leaf in self._appending:
            leaf.offset = position
        self.position = position

    def copy_from(self, other: StageCaches, position: int) -> None:
        """Becomes a copy of the first `position` tokens in `other`, which can be trimmed; these are empty."""
        self.fill([other.states()], position)

    def states(self) -> list[State]:
        """Leaf by leaf, as they are; of a sequence in a batch copies."""
        if self.batch is None:
            return [vars(leaf) for leaf in self.leaves]
        return list(self.batch.row(self._row))

    def fill(self, parts: Sequence[Sequence[State]], position: int) -> None:
        """These are empty, and become the first `position` tokens of states of caches that can be trimmed: one or
        more parts that follow each other, each leaf by leaf.
        """
        for mine, *states in zip(self.leaves, *parts, strict=True):
            whole = {key: _joined([state[key] for state in states]) for key in states[-1]}
            vars(mine).update(cut(whole, 0, position))
            mine.offset = position
        self.position = position

    def take_out(self, first: int, end: int) -> Iterator[tuple[State, list[Any]]]:
        """Leaf by leaf the state of the first tokens, of which a leaf keeps only those in [first, end), and the
        arrays of what it keeps. Both are to be evaluated before the next leaf's: then memory holds only one of them
        twice.
        """
        for leaf in self.leaves:
            state = cut(vars(leaf), 0, first)
            vars(leaf).update(cut(vars(leaf), first, end))
            yield state, list(arrays_of(vars(leaf)))

    def put_before(self, parts: Sequence[Sequence[State]]) -> Iterator[list[Any]]:
        """Leaf by leaf these hold the tokens of `parts`, too, before their own: the arrays, to be evaluated before
        the next leaf's, as in `take_out`.
        """
        for leaf, *states in zip(self.leaves, *parts, strict=True):
            own = vars(leaf)
            own.update({key: _joined([state[key] for state in (*states, own)]) for key in own})
            yield list(arrays_of(own))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays())


def leaves_of(cache: Any) -> Iterator[Any]:
    if isinstance(cache, CacheList):
        for inner in cache.caches:
            yield from leaves_of(inner)
    else:
        yield cache


def _kind(cache: Any) -> tuple[Any, ...]:
    """Caches of one kind see the same tokens and are built alike, so their masks are the same."""
    return tuple(
        (type(leaf), *sorted((key, value) for key, value in vars(leaf).items() if isinstance(value, int)))
        for leaf in leaves_of(cache)
    )


def quantised(caches: list[Any], how: Quantisation) -> list[Any]:
    """The same empty caches with quantised keys and values, as mlx-lm makes them; states that do not grow with the
    context stay as they are. Raises NotQuantisableError where a cache that grows cannot be quantised.
    """
    for leaf in (leaf for cache in caches if type(cache) is not KVCache for leaf in leaves_of(cache)):
        if not isinstance(leaf, ArraysCache):
            raise NotQuantisableError(f"mlx-lm cannot quantise its caches of the kind {type(leaf).__name__}")
    if not any(type(cache) is KVCache for cache in caches):
        raise NotQuantisableError("nothing in it grows with the context, so there is nothing to quantise")
    return [
        QuantizedKVCache(group_size=how.group_size, bits=how.bits) if type(cache) is KVCache else cache
        for cache in caches
    ]


def arrays_of(value: Any) -> Iterator[Any]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from arrays_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from arrays_of(inner)


def copied(state: State) -> State:
    """Lists and arrays are copied because caches assign into them: an array's copy shares its memory, but is not
    seen to change when the original is assigned into.
    """
    return {key: _copy(value) for key, value in state.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(inner) for inner in value)
    return copy.copy(value) if isinstance(value, mx.array) else value


def cut(state: State, first: int, end: int) -> State:
    """An appending cache's state with the tokens [first, end) only, in memory of their own."""
    return {key: _cut(value, first, end) for key, value in state.items()}


def _cut(value: Any, first: int, end: int) -> Any:
    """Of arrays (…, tokens, features)."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cut(inner, first, end) for inner in value)
    return mx.contiguous(value[..., first:end, :]) if isinstance(value, mx.array) else value


def _joined(values: Sequence[Any]) -> Any:
    """Consecutive tokens of an appending cache; what is no array has the last one's value."""
    if len(values) == 1 or not isinstance(values[-1], (list, tuple, mx.array)):
        return values[-1]
    if isinstance(values[-1], mx.array):
        return mx.concatenate(list(values), axis=-2)
    return type(values[-1])(_joined(inner) for inner in zip(*values, strict=True))


def is_pending(arrays: list[Any]) -> bool:
    """Is any of these not evaluated yet? MLX shows it in no other way than in the picture of the graph, in which
    operations are boxes.
    """
    return "shape=rectangle" in _picture(arrays)


def is_tainted(arrays: list[Any]) -> bool:
    """Would evaluating these run a communication of a group that is gone? True for what an aborted evaluation
    had not come to.
    """
    picture = _picture(arrays)
    return any(name in picture for name in COMMUNICATION)


def _picture(arrays: list[Any]) -> str:
    if not arrays:
        return ""
    picture = io.StringIO()
    mx.export_to_dot(picture, *arrays)
    return picture.getvalue()
