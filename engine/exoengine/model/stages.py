"""A stage: the span of a model's layers that one rank runs, for any architecture of mlx-lm.

The model's own `__call__` runs unmodified on every rank: its masks, scalings and loops over layers stay its own.
Only the layers change their class, each object in place: those outside the span hand on their input, the first of
the span takes the hidden state that came from the stage before, the last one notes what it hands on. MLX is lazy,
so whatever else the call builds (an embedding that no one reads, a head on an early stage) is never evaluated, and
its weights are never read from the disk.

Decides: which layers, caches and other weights are this rank's, and whether a model can be split at all. Never
communicates; never evaluates, but for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from exoengine.model.cache_batch import StageBatch, can_be_batched
from exoengine.model.cache_rollback import Quantisation, StageCaches, is_pending, quantised

PROBE_TOKENS: Final = (0, 1, 0)
"""What a model is run on to see how it is made. More than one, so that masks are built as in a prefill; no
larger ids, so that any vocabulary has them."""

PROBE_SEQUENCES: Final = 13
"""Of a batch that is built to see whether a model takes one. No model repeats its heads so often: where it mistakes
the batch for them, shapes do not fit."""


class NotSplittableError(Exception):
    """This model's layers cannot be divided at the ends of the span; `str(error)` is one line for people."""


@dataclasses.dataclass(frozen=True)
class HiddenSignature:
    """What crosses from one stage to the next: (sequences, tokens, *tail) of `dtype`."""

    tail: tuple[int, ...]
    dtype: Any

    def shape(self, tokens: int, sequences: int = 1) -> tuple[int, ...]:
        return (sequences, tokens, *self.tail)


class RunCaches(Protocol):
    """Of one sequence (StageCaches) or of several (StageBatch)."""

    def for_model(self, _tokens: int) -> list[Any]: ...

    def advance(self, tokens: int) -> None: ...


@dataclasses.dataclass
class _Trace:
    """What one layer did while the whole model's graph was built once."""

    index: int
    takes: HiddenSignature | None = None
    gives: HiddenSignature | None = None
    extras: tuple[Any, ...] | None = None
    """What it gave besides the hidden state, if it gave a tuple."""
    cache_ids: set[int] = dataclasses.field(default_factory=set)
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class StageGraph:
    """One pass through a stage, not evaluated."""

    out: Any
    """The logits (sequences, n, vocabulary) on the last stage, else the hidden state as `Stage.gives` says."""
    first: Any
    """What the first layer gives: evaluated first, it is at work while MLX looks through the rest. None where no
    other layer of this stage needs it, as the last one's output is of no use to a prefill; and of a whole model.
    """


@dataclasses.dataclass
class _Slot:
    """Where layers whose class was changed exchange the hidden state with `Stage.run`."""

    received: Any = None
    first: Any = None
    given: Any = None
    poison: Any = None
    """NaN while the stage is probed."""
    between: Callable[[Any], None] | None = None
    """Takes the hidden state that a layer gave, before the next layer's graph is built upon it."""


class Stage:
    """Layers [first, last) of `model`, which must be loaded lazily: nothing of it evaluated yet.

    Raises NotSplittableError where the span is not the whole and the layers hand on more than one hidden state.
    """

    def __init__(self, model: Any, first: int, last: int) -> None:
        self.layers: Sequence[Any] = list(model.layers)
        self.first, self.last, self.total = first, last, len(self.layers)
        if not 0 <= first < last <= self.total:
            raise NotSplittableError(f"layers {first} to {last} are not a span of the model's {self.total}")
        self.model = model
        self._slot = _Slot()
        self.takes: HiddenSignature | None = None
        self.gives: HiddenSignature | None = None
        self._owned_caches: frozenset[int] | None = None
        self._outside: frozenset[int] = frozenset()
        """Caches that no layer of the model has: what it keeps in front of them, so the first stage's."""
        self.quantisation: Quantisation | None = None
        """Of the KV caches made from now on."""
        self.looks_at_values = False
        """Does the model's code read values of its own graph while building it? Known once the stage is probed."""
        self.takes_batches = False
        """Can a token each of several sequences go through in one pass? Known once the stage is probed."""
        if not self.is_whole:
            self._divide()

    @property
    def is_first(self) -> bool:
        return self.first == 0

    @property
    def is_last(self) -> bool:
        return self.last == self.total

    @property
    def is_whole(self) -> bool:
        return self.is_first and self.is_last

    @property
    def span(self) -> Sequence[Any]:
        """The layers of this rank."""
        return self.layers[self.first : self.last]

    def new_caches(self) -> StageCaches:
        """Empty caches for one sequence. Raises NotQuantisableError where `quantisation` cannot be."""
        caches = make_prompt_cache(self.model)
        if self.quantisation is not None:
            caches = quantised(caches, self.quantisation)
        return StageCaches(caches, self._owned_caches, self._outside)

    def run(
        self, tokens: Any, hidden: Any, caches: RunCaches, between: Callable[[Any], None] | None = None
    ) -> StageGraph:
        """Builds one pass: `tokens` (sequences, n) int; `hidden` as `takes` says, None on the first stage.
        `between` is given what each layer but the last gives, where `cut_between_layers` was called.
        """
        slot = self._slot
        slot.received, slot.between = hidden, between
        try:
            logits = self.model(tokens, cache=caches.for_model(tokens.shape[1]))
            caches.advance(tokens.shape[1])
            return StageGraph(
                logits if self.is_last else slot.given, slot.first if self.last - self.first > 1 else None
            )
        finally:
            slot.received = slot.first = slot.given = slot.between = None

    def cut_between_layers(self) -> None:
        """From here on `run` may be given a `between`."""
        for layer in self.span[:-1]:
            _become(layer, "Piece", _piece(self._slot))

    def probe(self) -> None:
        """Runs the stage once on made-up input, which reads the weights that it needs besides its layers, and
        proves that nothing but the hidden state comes from the layers of others (their output is NaN here).
        """
        tokens = mx.array([PROBE_TOKENS]) + 0
        hidden = self._made_up(len(PROBE_TOKENS))
        self._slot.poison = mx.array(float("nan"))
        try:
            out = self.run(tokens, hidden, self.new_caches()).out
            self.looks_at_values = not is_pending([tokens if hidden is None else hidden])
            finite = mx.isfinite(out).all()
            mx.eval(finite)
        except (AttributeError, TypeError, IndexError, ValueError) as error:
            if self.is_whole or self.quantisation is not None:
                raise
            raise NotSplittableError(f"a layer of this span needs another span's cache or state: {error}") from None
        finally:
            self._slot.poison = None
        if not self.is_whole and not finite.item():
            raise NotSplittableError("its layers hand on more than the hidden state between them")
        self.takes_batches = self._builds_a_batch()

    def _made_up(self, tokens: int, sequences: int = 1) -> Any:
        """A hidden state as this stage takes it."""
        if self.takes is None:
            return None
        shape, size = self.takes.shape(tokens, sequences), 1
        for extent in shape:
            size *= extent
        ramp = mx.arange(size, dtype=mx.float32) / size - 0.5
        return ramp.reshape(shape).astype(self.takes.dtype)

    def _builds_a_batch(self) -> bool:
        """Whether the graph of a batch fits together; nothing of it is evaluated."""
        caches = self.new_caches()
        if self.looks_at_values or not can_be_batched(caches):
            return False
        try:
            self.run(mx.array([PROBE_TOKENS]), self._made_up(len(PROBE_TOKENS)), caches)
            batch = StageBatch([caches] * PROBE_SEQUENCES)
            self.run(mx.zeros((PROBE_SEQUENCES, 1), mx.int32), self._made_up(1, PROBE_SEQUENCES), batch)
        except (AttributeError, TypeError, IndexError, ValueError, RuntimeError):
            return False
        return True

    def _divide(self) -> None:
        traces, caches = self._trace()
        for trace in traces:
            if trace.fault is not None:
                raise NotSplittableError(trace.fault)
        mine = {key for trace in traces[self.first : self.last] for key in trace.cache_ids}
        others = {key for trace in traces if not self.first <= trace.index < self.last for key in trace.cache_ids}
        if mine & others:
            raise NotSplittableError("layers of this span share a KV cache with layers of another span")
        self._outside = frozenset(index for index, cache in enumerate(caches) if id(cache) not in mine | others)
        owned = frozenset(index for index, cache in enumerate(caches) if id(cache) in mine)
        self._owned_caches = owned | self._outside if self.is_first else owned
        self.takes = None if self.is_first else traces[self.first].takes
        self.gives = None if self.is_last else traces[self.last - 1].gives
        for index in (*range(self.first), *range(self.last, self.total)):
            _become(self.layers[index], "Elsewhere", _elsewhere(self._slot, traces[index].extras))
            _drop_weights(self.layers[index])
        _become(self.layers[self.first], "Entry", _entry(self._slot))
        if not self.is_last:
            _become(self.layers[self.last - 1], "Exit", _exit(self._slot))

    def _trace(self) -> tuple[list[_Trace], list[Any]]:
        """Builds the whole model's graph once, evaluating nothing, and notes what each layer does."""
        traces = [_Trace(index) for index in range(self.total)]
        caches = make_prompt_cache(self.model)
        order: list[int] = []
        classes = [type(layer) for layer in self.layers]
        for layer, trace in zip(self.layers, traces, strict=True):
            _become(layer, "Traced", _traced(trace, caches, order))
        try:
            self.model(mx.array([PROBE_TOKENS]), cache=caches)
        finally:
            for layer, kind in zip(self.layers, classes, strict=True):
                layer.__class__ = kind
        if order != list(range(self.total)):
            raise NotSplittableError("its layers do not run once each, one after the other")
        return traces, caches


Call = Callable[..., Any]


def _become(layer: Any, name: str, make: Callable[[Call], Call]) -> None:
    """Gives one object another `__call__`, in place: every holder of the layer sees the change, and it stays an
    instance of its class with all its attributes, which models ask for (`layer.is_linear`).
    """
    kind = type(layer)
    layer.__class__ = type(f"{name}{kind.__name__}", (kind,), {"__call__": make(kind.__call__)})


def _elsewhere(slot: _Slot, extras: tuple[Any, ...] | None) -> Callable[[Call], Call]:
    """A layer of another stage hands its input on. What it gave besides (KV that later layers share, say) is NaN
    while the stage is probed and None afterwards: the probe has shown that no layer of this stage uses it.
    """

    def make(_: Call) -> Call:
        def call(layer: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            poison = slot.poison
            if poison is not None:
                hidden = hidden * poison.astype(hidden.dtype)
            if extras is None:
                return hidden
            return (hidden, *(_poisoned(extra) if poison is not None else _emptied(extra) for extra in extras))

        return call

    return make


def _poisoned(extra: Any) -> Any:
    if isinstance(extra, HiddenSignature):
        floating = mx.issubdtype(extra.dtype, mx.floating)
        return mx.full(extra.tail, float("nan") if floating else 0, dtype=extra.dtype)
    return tuple(_poisoned(inner) for inner in extra) if isinstance(extra, tuple) else extra


def _emptied(extra: Any) -> Any:
    return None if isinstance(extra, HiddenSignature | tuple) else extra


def _described(extra: Any) -> Any:
    """The shape of what a layer gave besides the hidden state: arrays by signature, all else as it is."""
    if isinstance(extra, mx.array):
        return HiddenSignature(tuple(extra.shape), extra.dtype)
    return tuple(_described(inner) for inner in extra) if isinstance(extra, list | tuple) else extra


def _entry(slot: _Slot) -> Callable[[Call], Call]:
    def make(original: Call) -> Call:
        def call(layer: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            given = original(layer, hidden if slot.received is None else slot.received, *args, **kwargs)
            slot.first = _hidden_of(given)
            return given

        return call

    return make


def _exit(slot: _Slot) -> Callable[[Call], Call]:
    def make(original: Call) -> Call:
        def call(layer: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            given = original(layer, hidden, *args, **kwargs)
            slot.given = _hidden_of(given)
            return given

        return call

    return make


def _piece(slot: _Slot) -> Callable[[Call], Call]:
    def make(original: Call) -> Call:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            given = original(layer, *args, **kwargs)
            if slot.between is not None:
                slot.between(_hidden_of(given))
            return given

        return call

    return make


def _hidden_of(given: Any) -> Any:
    return given[0] if isinstance(given, tuple) else given


def _traced(trace: _Trace, caches: list[Any], order: list[int]) -> Callable[[Call], Call]:
    known = {id(cache) for cache in caches}

    def make(original: Call) -> Call:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            order.append(trace.index)
            whole = given = original(layer, *args, **kwargs)
            if isinstance(given, tuple) and given:
                given, trace.extras = given[0], tuple(_described(extra) for extra in given[1:])
            if not args or not isinstance(args[0], mx.array):
                trace.fault = "a layer does not take the hidden state as its first argument"
            elif not isinstance(given, mx.array):
                trace.fault = "a layer does not give the hidden state first"
            elif any(array.ndim < 3 or array.shape[1] != len(PROBE_TOKENS) for array in (args[0], given)):
                trace.fault = "its hidden state has not the shape (batch, tokens, …)"
            else:
                trace.takes, trace.gives = (
                    HiddenSignature(tuple(array.shape[2:]), array.dtype) for array in (args[0], given)
                )
            trace.cache_ids |= {id(value) for value in (*args, *kwargs.values()) if id(value) in known}
            return whole

        return call

    return make


def _drop_weights(layer: Any) -> None:
    """A layer of another rank keeps its attributes and gives up its arrays, and with them the open files."""
    for module in layer.modules():
        for key in [key for key, value in module.items() if isinstance(value, mx.array)]:
            del module[key]


def parameter_bytes(module: Any) -> int:
    """The bytes of a module's parameters, loaded or not."""
    assert isinstance(module, nn.Module)
    return sum(value.nbytes for part in module.modules() for value in part.values() if isinstance(value, mx.array))
