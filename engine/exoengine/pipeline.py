"""One step of one rank: receive, run the stage, send or draw.

Decides nothing but the order of evaluation that a safe or a fast step means. The only room that sends and
receives hidden states. No graph holds two operations on one direction of the ring (see group.py). Called by
generation.py; raises RuntimeError where MLX's ring was aborted or lost its neighbour.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from exoengine.caches import StageCaches
from exoengine.group import RingGroup
from exoengine.sampling import Sampler
from exoengine.stages import Stage
from exoengine.steps import NO_LIKELIHOOD, Likelihood, Step
from mlx_patches.switch import Switch


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


class Pipeline:
    """Runs steps on the group that exists."""

    def __init__(
        self, stage: Stage, group: RingGroup, rank: int, switch: Switch | None, meanwhile: Callable[[], None]
    ) -> None:  # fmt: skip
        """`switch` is that of a patched MLX: with it no wait of a safe step can reach the GPU by any way.
        `meanwhile` is called once in each step, when it is built and its evaluation is next.
        """
        self._stage = stage
        self._group = group
        self._rank = rank
        self._switch = switch
        self._meanwhile = meanwhile

    def run(
        self, step: Step, tokens: Sequence[int], caches: StageCaches, sampler: Sampler, history: Sequence[int],
        top_logprobs: int, sends: bool,
    ) -> Result:  # fmt: skip
        """Runs `step`, whose tokens are `tokens`, and evaluates all of it. `history` is what penalties look at;
        without `sends` the next rank has the tokens already.
        """
        if self._switch is not None:
            self._switch.set_gpu_may_wait(not step.safe)
        begun = time.monotonic()
        hidden = self._receive(len(tokens))
        out = self._built(step, mx.array([list(tokens)]), hidden, caches)
        received = time.monotonic()
        self._meanwhile()
        if self._stage.is_last:
            drawn, out = self._draw(out, step, caches, sampler, history, top_logprobs), None
        else:
            drawn = Drawn()
            if step.safe or not sends:
                mx.eval(out, caches.arrays())
            if sends:
                self._send(out, caches.arrays())
        done = time.monotonic()
        waited = received - begun if step.safe else done - begun
        return Result(drawn, out, done - begun, waited if hidden is not None else 0.0)

    def send_again(self, hidden: Any) -> None:
        """What this stage has sent before, to a rank that needs it again."""
        self._send(hidden, [])

    def _receive(self, count: int) -> Any:
        takes = self._stage.takes
        if takes is None:
            return None
        return mx.distributed.recv(takes.shape(count), takes.dtype, self._rank - 1, group=self._group.handle)

    def _built(self, step: Step, tokens: Any, hidden: Any, caches: StageCaches) -> Any:
        """The stage's graph, its input received in a safe step, on its way in a fast one.

        It is built before anyone waits: that takes Python a while, and the neighbour is at work meanwhile. If the
        neighbour is gone already, it shows here, and the caches go back to not having seen it.
        """
        if hidden is None:
            return self._run_stage(tokens, None, caches, step.singly)
        receive = mx.eval if step.safe else mx.async_eval
        if self._stage.looks_at_values:
            receive(hidden)  # first: it must not be a graph that waits for it
        before, position = caches.references(), caches.position
        try:
            out = self._run_stage(tokens, hidden, caches, step.singly)
            receive(hidden)
        except BaseException:
            caches.put_back(before, position)
            raise
        return out

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
        top_logprobs: int,
    ) -> Drawn:  # fmt: skip
        if step.draw < 0:
            # Nobody reads these logits: only the caches are evaluated, and the head is never run.
            mx.eval(caches.arrays())
            return Drawn()
        token, logprobs = sampler.draw(logits[:, -1, :], history, step.draw)
        if top_logprobs < 0:
            mx.eval(token, caches.arrays())
            return Drawn(int(token.item()))
        mx.eval(token, logprobs, caches.arrays())
        return _with_logprobs(int(token.item()), logprobs[0], top_logprobs)


def _with_logprobs(token: int, logprobs: Any, top_logprobs: int) -> Drawn:
    values: list[float] = logprobs.astype(mx.float32).tolist()
    best = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top_logprobs]
    return Drawn(token, Likelihood(values[token], tuple((index, values[index]) for index in best)))
