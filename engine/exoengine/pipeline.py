"""One step of one rank: receive, run the stage, send or draw.

No stage waits for the word to build a step of decode. The first one begins it before the token that it runs is
known: the last rank sends the token over MLX's ring as soon as it is drawn, from where it goes into a graph that
was built meanwhile. The others build theirs while they have nothing else to do, and evaluate nothing of it. What
that step becomes, the outcome of the one before decides (generation.py); nothing of it leaves this rank before.

Decides nothing but the order of evaluation that a safe or a fast step means. The only room that sends and
receives hidden states and drawn tokens. No graph holds two operations on one direction of the ring (see group.py):
tokens have the last edge, from the last rank to the first, for themselves. Called by runner.py; raises
RuntimeError where MLX's ring was aborted or lost its neighbour.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import mlx.core as mx

from exoengine.caches import StageCaches
from exoengine.group import RingGroup
from exoengine.sampling import Sampler
from exoengine.stages import Stage
from exoengine.steps import NO_LIKELIHOOD, Likelihood, Step
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
    """`graph_s` is how long the step would have lasted, or lasted, as one graph; `waited_s` of it for input.

    In a fast step the wait cannot be told from the work: `waited_s` is then an upper bound.
    """

    drawn: Drawn
    sent: Any
    """The hidden state for the next stage; None on the last one."""
    graph_s: float
    waited_s: float


@dataclasses.dataclass(frozen=True)
class Pass:
    """The stage's graph of some tokens: built, and its input on its way in a fast step, here in a safe one."""

    start: int
    """The position of its first token."""
    safe: bool
    out: Any
    begun: float
    received: float
    """When its input was here, in a safe step; monotonic, as `begun`."""
    waits: bool
    """Did its input come from another rank?"""


class Built:
    """The graph of a token whose step was not said yet: nothing of it is evaluated, the caches can forget it."""

    def __init__(
        self, start: int, out: Any, awaited: Any, caches: StageCaches, before: list[dict[str, Any]]
    ) -> None:
        """`before` is how the caches were."""
        self.start, self.out, self.awaited = start, out, awaited
        self._caches, self._before = caches, before

    def undo(self) -> None:
        self._caches.put_back(self._before, self.start)

    def settle(self) -> None:
        """It will be evaluated: while the caches' arrays of before are held, MLX would copy what it writes to."""
        self._before = []


class Pipeline:
    """Runs steps on the group that exists."""

    def __init__(
        self, stage: Stage, group: RingGroup, rank: int, size: int, vocab_size: int, switch: Switch | None
    ) -> None:  # fmt: skip
        """`switch` is that of a patched MLX: with it no wait of a safe step can reach the GPU by any way."""
        self._stage = stage
        self._vocab_size = vocab_size
        self._group = group
        self._rank, self._size = rank, size
        self._switch = switch
        self._token: Any = None
        """What the step under way draws, on a single rank."""

    def run(
        self, step: Step, tokens: Sequence[int], caches: StageCaches, sampler: Sampler, history: Sequence[int],
        top_logprobs: int, sends: bool, ahead: Pass | Built | None, meanwhile: Callable[[], None],
    ) -> Result:  # fmt: skip
        """Runs `step`, whose tokens are `tokens`, and evaluates all of it; `ahead` is what there is of it already.
        `history` is what penalties look at; without `sends` the next rank has the tokens already. `meanwhile` is
        called once, when the step is built and its evaluation is next, or on a single rank under way.
        """
        outcome_here = time.monotonic()
        if isinstance(ahead, Pass):
            passing = ahead
        else:
            self._turn_switch(step.safe)
            if ahead is None:
                passing = self._begin(step.start, step.safe, step.singly, mx.array([list(tokens)]), caches)
            else:
                passing = self._take_up(ahead, step.safe, outcome_here)
        out = passing.out
        if self._stage.is_last:
            drawn = self._draw(out, step, caches, sampler, history, top_logprobs, meanwhile)
            out = None
        else:
            meanwhile()
            drawn = Drawn()
            if step.safe or not sends:
                mx.eval(out, caches.arrays())
            if sends:
                self._send(out, caches.arrays())
        done = time.monotonic()
        here = passing.received
        if not step.safe:
            # The first rank's token came before the outcome that tells it.
            here = outcome_here if passing is ahead else done
        return Result(drawn, out, done - passing.begun, here - passing.begun if passing.waits else 0.0)

    def run_ahead(self, safe: bool, caches: StageCaches) -> Pass:
        """Begins the first stage's pass of the token that the step under way draws. The step must have said so
        (`Step.ahead`), and this rank must have no further part in it.
        """
        self._turn_switch(safe)
        if self._size == 1:
            token, self._token = self._token, None
            known = token
        else:
            token = mx.distributed.recv((1,), TOKEN_DTYPE, self._size - 1, group=self._group.handle)
            # MLX runs what depends on a receive even where that failed, on whatever the memory held: an embedding
            # is not looked up beyond its end.
            known = mx.remainder(token, self._vocab_size)
        passing = self._begin(caches.position, safe, True, known.reshape(1, 1), caches, token)
        _begin_evaluation([passing.out, *caches.arrays()])
        return passing

    @property
    def can_run_ahead(self) -> bool:
        """Is it known which tokens there are?"""
        return self._size == 1 or self._vocab_size > 0

    def build(self, token: int, caches: StageCaches) -> Built:
        """The graph of the token after what the caches hold, on a rank that `can_build`."""
        hidden = self._receive(1)
        return self._build(caches.position, True, mx.array([[token]]), hidden, hidden, caches)

    @property
    def can_build(self) -> bool:
        """Can a step's graph be built before its input is here, and does it wait for any?"""
        return self._stage.takes is not None and not self._stage.looks_at_values

    def send_again(self, hidden: Any) -> None:
        """What this stage has sent before, to a rank that needs it again."""
        self._send(hidden, [])

    def _turn_switch(self, safe: bool) -> None:
        if self._switch is not None:
            self._switch.set_gpu_may_wait(not safe)

    def _begin(
        self, start: int, safe: bool, singly: bool, tokens: Any, caches: StageCaches, token: Any = None
    ) -> Pass:  # fmt: skip
        """The stage's graph. It is built before anyone waits: that takes Python a while, and the others are at work
        meanwhile. If a neighbour is gone already, it shows here, and the caches go back to not having seen it.
        """
        begun = time.monotonic()
        hidden = self._receive(tokens.shape[1])
        awaited = token if token is not None else hidden
        waits = awaited is not None and self._size > 1
        if not waits:
            return Pass(start, safe, self._run_stage(tokens, hidden, caches, singly), begun, begun, waits)
        if self._stage.looks_at_values:
            _receive_now(awaited, safe)  # first: it must not be a graph that waits for it
        return self._take_up(self._build(start, singly, tokens, hidden, awaited, caches), safe, begun)

    def _build(
        self, start: int, singly: bool, tokens: Any, hidden: Any, awaited: Any, caches: StageCaches
    ) -> Built:  # fmt: skip
        before, position = caches.references(), caches.position
        try:
            out = self._run_stage(tokens, hidden, caches, singly)
        except BaseException:
            caches.put_back(before, position)
            raise
        return Built(start, out, awaited, caches, before)

    @staticmethod
    def _take_up(built: Built, safe: bool, begun: float) -> Pass:
        try:
            _receive_now(built.awaited, safe)
        except BaseException:
            built.undo()
            raise
        built.settle()
        return Pass(built.start, safe, built.out, begun, time.monotonic(), waits=True)

    def _receive(self, count: int) -> Any:
        takes = self._stage.takes
        if takes is None:
            return None
        return mx.distributed.recv(takes.shape(count), takes.dtype, self._rank - 1, group=self._group.handle)

    def _run_stage(self, tokens: Any, hidden: Any, caches: StageCaches, singly: bool) -> Any:
        if not singly or tokens.shape[1] == 1:
            return self._stage.run(tokens, hidden, caches)
        outs = []
        for index in range(tokens.shape[1]):
            part = slice(index, index + 1)
            out = self._stage.run(tokens[:, part], hidden[:, part] if hidden is not None else None, caches)
            if not self._stage.is_last:
                outs.append(out)
        return mx.concatenate(outs, axis=1) if outs else out

    def _send(self, hidden: Any, arrays: list[Any]) -> None:
        sent = mx.distributed.send(hidden, self._rank + 1, group=self._group.handle)
        mx.eval(sent, arrays)

    def _draw(
        self, logits: Any, step: Step, caches: StageCaches, sampler: Sampler, history: Sequence[int],
        top_logprobs: int, meanwhile: Callable[[], None],
    ) -> Drawn:  # fmt: skip
        if step.draw < 0:
            # Nobody reads these logits: only the caches are evaluated, and the head is never run.
            meanwhile()
            mx.eval(caches.arrays())
            return Drawn()
        token, logprobs = sampler.draw(logits[:, -1, :], history, step.draw)
        token = token.astype(TOKEN_DTYPE)
        wanted = [token] if top_logprobs < 0 else [token, logprobs]
        if self._size == 1:
            # The caches are not waited for: by then they may be those of the next step.
            self._token = token
            _begin_evaluation([*wanted, *caches.arrays()])
        else:
            wanted += caches.arrays()
            if step.ahead:
                wanted.append(mx.distributed.send(token, 0, group=self._group.handle))
        meanwhile()
        mx.eval(wanted)
        if top_logprobs < 0:
            return Drawn(int(token.item()))
        return _with_logprobs(int(token.item()), logprobs[0], top_logprobs)


def _receive_now(awaited: Any, safe: bool) -> None:
    """Returns when it is here, in a safe step; else it is on its way."""
    if safe:
        mx.eval(awaited)
    else:
        _begin_evaluation([awaited])


def _begin_evaluation(arrays: list[Any]) -> None:
    begin: Callable[[list[Any]], None] = mx.async_eval
    begin(arrays)


def _with_logprobs(token: int, logprobs: Any, top_logprobs: int) -> Drawn:
    values: list[float] = logprobs.astype(mx.float32).tolist()
    best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_logprobs]
    return Drawn(token, Likelihood(values[token], tuple((index, values[index]) for index in best)))
