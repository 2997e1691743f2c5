"""One step of one rank: receive, run the stage, send or draw.

No stage waits for the `Step` message before it builds a decode step. The first stage starts it before its token is
known: the last rank sends the token round the ring as soon as it is drawn, into a graph that was built meanwhile.
The other stages build theirs while they are idle, and evaluate nothing of it. The outcome of the step before
decides whether the new one is run (loop.py); until then nothing of it leaves this rank.

On a rank that has all layers, alone or with its part of each (tensor parallelism), the token is drawn here: the
next step is built upon it while it is computed, on every rank of a tensor group alike. A safe step of such a group
is evaluated layer by layer, so that no graph has more than one layer's collectives to wait in.

Where each stage is a tensor group itself, all of its ranks need the stage's input and have its output. The first
gets it from the last rank of the stage before, and each hands it on to the next before it computes. All steps are
safe there, and none is built before its input is here.

Decides only the order of evaluation of a safe or a fast step. No other module sends or receives hidden states and
drawn tokens (by hidden_states.py). After each evaluation it asks the group whether an operation inside a graph
failed: the result was then computed from zeros, and is dropped. Raises
RingLostError where the group was aborted or lost a neighbour, RuntimeError where MLX fails.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import mlx.core as mx

from exoengine.model.cache_batch import OneByOne, StageBatch
from exoengine.model.cache_rollback import StageCaches
from exoengine.model.stages import Stage, StageGraph
from exoengine.ring.group import RingGroup
from exoengine.ring.hidden_states import Arrival, DataRing, InGraph, begin_evaluation
from exoengine.ring.step_messages import NO_LIKELIHOOD, BatchStep, Likelihood, Step
from mlx_patches.switch import Switch

TOKEN_DTYPE: Final = mx.int32
"""Of a token on its way to the first rank: that of the tokens that come from a prompt."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What the last stage drew; -1 where the step drew nothing or this is not the last stage."""

    token: int = -1
    likelihood: Likelihood = NO_LIKELIHOOD


@dataclasses.dataclass(frozen=True)
class Result:
    drawn: tuple[Drawn, ...]
    """Of each sequence."""
    sent: Any
    """The hidden state for the next stage; None on the last one."""
    waited_s: float | None
    """How long this rank waited for its input, in seconds; measured by the native group where the wait was in a
    graph. None where it did not wait: that says nothing about the next step.
    """
    gpu_waited_s: float
    """The part of it during which a graph existed that needed the input."""


Draws = tuple[Any, Any]
"""A token of each sequence (n,) and the log probabilities (n, vocabulary) that it was drawn from, not evaluated."""

Draw = Callable[[Any], Draws]
"""Builds the draws from logits (n, vocabulary)."""


PassCaches = StageCaches | StageBatch | OneByOne
"""Of one sequence, of several in one, or of several that the stage runs one after the other."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """The stage's graph of some tokens. It is built; its input is on its way in a fast step, and here in a safe
    one.
    """

    start: int
    """The position of its first token."""
    safe: bool
    out: Any
    draws: Draws | None
    """On the last stage, where what is drawn was known as it was built."""
    begun: float
    received: float
    """When its input arrived, where that was outside of the graph; monotonic, as `begun`."""
    waited_before_s: float
    """How long graphs of this group had waited before this one started."""
    arrival: Arrival | None
    """What was received from another rank, if anything was needed."""


class Built:
    """A stage's graph whose input was not taken yet: nothing of it is evaluated, and the caches can drop it."""

    def __init__(
        self, start: int, safe: bool, graph: StageGraph, draws: Draws | None, arrival: Arrival,
        caches: PassCaches, before: tuple[list[Any], int], group: RingGroup,
    ) -> None:  # fmt: skip
        """`before` is how the caches were, and their position."""
        self.start, self.safe, self._group = start, safe, group
        self._graph, self._draws, self._arrival = graph, draws, arrival
        self._caches, self._before = caches, before

    def undo(self) -> None:
        self._caches.put_back(*self._before)

    def take_up(self, begun: float) -> Pass:
        """Takes its input. From now on it will be evaluated; in a safe step its first layer runs already."""
        waited_before_s = self._group.waited_s
        self._group.allow_wait()
        try:
            self._arrival.let_come(wait=self.safe)
            self._group.check()
        except BaseException:
            self.undo()
            raise
        received = time.monotonic()
        self._before = [], 0  # while the caches' arrays of before are held, MLX would copy what it writes to
        if self.safe and self._graph.first is not None:
            begin_evaluation([self._graph.first])
        return Pass(
            self.start, self.safe, self._graph.out, self._draws, begun, received, waited_before_s, self._arrival
        )


class Pipeline:
    """Runs steps on the group that exists."""

    def __init__(
        self, stage: Stage, group: RingGroup, rank: int, size: int, switch: Switch | None,
        parts: int = 1,
    ) -> None:  # fmt: skip
        """Each stage has so many `parts`, one on each of its ranks. `switch` is that of a patched MLX: with it no
        wait of a safe step can reach the GPU.
        """
        self._stage = stage
        self._in_parts = parts > 1 and size > 1
        """Does each layer need other ranks?"""
        self._is_tensor_stage = self._in_parts and not stage.is_whole
        self._ends_stage = not self._is_tensor_stage or (rank + 1) % parts == 0
        """Is the next rank another stage's?"""
        self._group = group
        self._rank, self._size = rank, size
        self._draws_itself = stage.is_whole
        """Does this rank hold all layers, alone or in a tensor group, so that it draws the token itself?"""
        self._waited_s = 0.0
        """How long graphs had waited when the last step of a tensor group was done."""
        self._switch = switch
        self._token: Any = None
        """What the step under way draws, where this rank draws it itself."""
        self._token_is_safe = True
        """How the token that the step under way draws is sent to the first rank: as that step is."""

    def run(
        self, step: Step | BatchStep, tokens: Sequence[Sequence[int]], caches: PassCaches, draw: Draw | None,
        top_logprobs: Sequence[int], sends: bool, ahead: Pass | Built | None, meanwhile: Callable[[], None],
    ) -> Result:  # fmt: skip
        """Runs `step`, whose tokens of each sequence are `tokens`, and evaluates all of it; `ahead` is what exists
        of it already. The last stage draws with `draw`, and gives of each sequence so many likely tokens (-1: no
        likelihood at all); without `sends` the next rank has the tokens already. `meanwhile` is called once: before
        this rank waits for anything, or while the token is drawn here.
        """
        told = time.monotonic()
        begun = ahead
        self._token_is_safe = step.safe
        if not isinstance(begun, Pass):
            self._turn_switch(step.safe)
        if isinstance(begun, Pass):
            self._group.allow_wait(self._group.waited_s - begun.waited_before_s)
        if begun is None:
            self._group.allow_wait()
            begun = self._build(
                step.start, step.safe, step.singly, mx.array([list(one) for one in tokens]), caches, draw
            )
        if not self._draws_itself:
            meanwhile()
        passing = begun.take_up(told) if isinstance(begun, Built) else begun
        out = passing.out
        if self._stage.is_last:
            drawn = self._draw(passing, step, caches, draw, top_logprobs, meanwhile)
            out = None
        else:
            drawn = (Drawn(),) * len(tokens)
            if not sends or not self._ends_stage:
                mx.eval(out, caches.arrays())
            else:
                if step.safe:
                    mx.eval(out)
                    self._group.check()
                self._send(out, step.safe, caches)
            self._group.check()
        if self._draws_itself:
            waited_s, self._waited_s = self._group.waited_s - self._waited_s, self._group.waited_s
            return Result(drawn, out, waited_s, 0.0 if passing.safe else waited_s)
        if passing.arrival is None:
            return Result(drawn, out, None, 0.0)
        if not passing.arrival.in_graph:
            return Result(drawn, out, passing.received - passing.begun, 0.0)
        waited_s = self._group.waited_s - passing.waited_before_s
        return Result(drawn, out, waited_s, 0.0 if passing.safe else waited_s)

    def run_ahead(self, safe: bool, caches: StageCaches | StageBatch) -> Pass:
        """Starts the first stage's pass of the token that the step under way draws. That step must allow it
        (`Step.ahead`), and this rank must have finished its part of it.
        """
        self._turn_switch(safe)
        arrival = None
        begun = time.monotonic()
        if self._draws_itself:
            token, self._token = self._token, None
        else:
            # A receive that failed gives zeros, which every vocabulary has.
            arrival = self._expect((1,), TOKEN_DTYPE, self._size - 1, self._token_is_safe)
            token = arrival.array
        built = self._build(caches.position, safe, True, token.reshape(-1, 1), caches, None, arrival)
        passing = built.take_up(begun) if isinstance(built, Built) else built
        begin_evaluation([passing.out, *caches.arrays()])
        return passing

    def build(self, token: int, safe: bool, caches: PassCaches, draw: Draw) -> Built:
        """The graph of the token after what the caches hold, on a rank that `can_build`."""
        built = self._build(caches.position, safe, True, mx.array([[token]]), caches, draw)
        assert isinstance(built, Built)
        return built

    @property
    def can_build(self) -> bool:
        """Can a step's graph be built before its input is here, and does it wait for any?"""
        return self._stage.takes is not None and not self._needs_input_first

    @property
    def _needs_input_first(self) -> bool:
        """Must the input be here before the graph is built, because building evaluates some of it?"""
        return self._stage.looks_at_values or self._is_tensor_stage

    def send_again(self, hidden: Any) -> None:
        """Sends again what this stage has sent before, to a rank that needs it."""
        self._data.send(hidden)

    @property
    def _data(self) -> DataRing:
        assert self._group.data is not None, "a single rank has nobody to send to"
        return self._group.data

    def _turn_switch(self, safe: bool) -> None:
        if self._switch is not None:
            self._switch.set_gpu_may_wait(not safe)

    def _build(
        self, start: int, safe: bool, singly: bool, tokens: Any, caches: PassCaches, draw: Draw | None,
        arrival: Arrival | None = None,
    ) -> Built | Pass:  # fmt: skip
        """The stage's graph, upon the `arrival` or the hidden state that it takes; a Pass where it waits for
        nothing. It is built before anyone waits: that takes Python a while, and the others are at work meanwhile.
        """
        begun, waited_before_s = time.monotonic(), self._group.waited_s
        hidden = None
        takes = self._stage.takes
        if takes is not None:
            arrival = self._expect(takes.shape(*tokens.shape[::-1]), takes.dtype, self._rank - 1, safe)
            hidden = arrival.array
        if arrival is not None and self._needs_input_first:
            arrival.let_come(wait=True)  # first: it must not be a graph that waits for it
            self._group.check()
            if not self._ends_stage:
                self._data.send(arrival.array)
        before: list[Any] = caches.references() if arrival is not None else []
        position = caches.position
        try:
            graph = self._run_stage(tokens, hidden, caches, singly, safe)
            draws = draw(graph.out[:, -1, :]) if draw is not None and self._stage.is_last else None
        except BaseException:
            if arrival is not None:
                caches.put_back(before, position)
            raise
        if arrival is not None:
            return Built(start, safe, graph, draws, arrival, caches, (before, position), self._group)
        return Pass(start, safe, graph.out, draws, begun, begun, waited_before_s, None)

    def _expect(self, shape: tuple[int, ...], dtype: Any, source: int, safe: bool) -> Arrival:
        if safe:
            return self._data.expect(shape, dtype)
        return InGraph(mx.distributed.recv(shape, dtype, source, group=self._group.handle))

    def _run_stage(
        self, tokens: Any, hidden: Any, caches: PassCaches, singly: bool, safe: bool
    ) -> StageGraph:  # fmt: skip
        between = self._finish_piece if safe and self._in_parts else None
        if isinstance(caches, OneByOne):
            return self._run_one_by_one(tokens, hidden, caches, between)
        if not singly or tokens.shape[1] == 1:
            return self._stage.run(tokens, hidden, caches, between)
        first, outs = None, []
        for index in range(tokens.shape[1]):
            part = slice(index, index + 1)
            piece = hidden[:, part] if hidden is not None else None
            graph = self._stage.run(tokens[:, part], piece, caches, between)
            first = graph.first if first is None else first
            if not self._stage.is_last:
                outs.append(graph.out)
        return StageGraph(mx.concatenate(outs, axis=1) if outs else graph.out, first)

    def _run_one_by_one(self, tokens: Any, hidden: Any, caches: OneByOne, between: Any) -> StageGraph:
        outs = []
        for row, member in enumerate(caches.members):
            part = slice(row, row + 1)
            outs.append(
                self._stage.run(tokens[part], hidden[part] if hidden is not None else None, member, between)
            )
        return StageGraph(mx.concatenate([one.out for one in outs]), outs[0].first)

    def _finish_piece(self, hidden: Any) -> None:
        """Ends a layer's graph: the wait of the next layer's graph is measured separately."""
        mx.eval(hidden)
        self._group.check()
        self._group.allow_wait()

    def _send(self, hidden: Any, safe: bool, caches: PassCaches) -> None:
        """Sends it to the next rank. A fast step evaluates all in one graph with it. A safe step evaluates the rest
        of the caches while the next rank works.
        """
        if safe:
            self._data.send(hidden)
            mx.eval(caches.arrays())
        else:
            mx.eval(mx.distributed.send(hidden, self._rank + 1, group=self._group.handle), caches.arrays())

    def _draw(
        self, passing: Pass, step: Step | BatchStep, caches: PassCaches, draw: Draw | None,
        top_logprobs: Sequence[int], meanwhile: Callable[[], None],
    ) -> tuple[Drawn, ...]:  # fmt: skip
        here = self._draws_itself
        if draw is None:
            # Nobody reads these logits: only the caches are evaluated, and the head is never run.
            if here:
                meanwhile()
            mx.eval(caches.arrays())
            self._group.check()
            return (Drawn(),)
        token, logprobs = passing.draws if passing.draws is not None else draw(passing.out[:, -1, :])
        token = token.astype(TOKEN_DTYPE)
        wanted = [token] if max(top_logprobs) < 0 else [token, logprobs]
        if here:
            # It does not wait for the caches: by then they may be those of the next step.
            self._token = token
            begin_evaluation([*wanted, *caches.arrays()])
            meanwhile()
        else:
            wanted += caches.arrays()
            if step.ahead and not step.safe:
                wanted.append(mx.distributed.send(token, 0, group=self._group.handle))
        mx.eval(wanted)
        self._group.check()
        if step.ahead and step.safe and not here:
            self._data.send(token)
        tokens: list[int] = token.tolist()
        return tuple(
            Drawn(one) if top < 0 else _with_logprobs(one, logprobs[row], top)
            for row, (one, top) in enumerate(zip(tokens, top_logprobs, strict=True))
        )


def _with_logprobs(token: int, logprobs: Any, top_logprobs: int) -> Drawn:
    values: list[float] = logprobs.astype(mx.float32).tolist()
    best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_logprobs]
    return Drawn(token, Likelihood(values[token], tuple((index, values[index]) for index in best)))
