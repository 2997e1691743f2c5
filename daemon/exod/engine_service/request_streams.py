"""Generations that clients of this node wait for: from a request to a stream of deltas.

Each request is submitted to the coordinator (again under the next one, and whenever nothing came for a while), and
its tokens come from this node's own rank where it hosts one, else relayed from rank 0. A token counts once, by its
index: what is replayed after a fault is what was said already. What got lost on the way is generated again from
the first token that is missing here. Called by the composition root (`generate`) and by the engine host (outputs).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from exod.core.engine.engine_messages import SubmitRefused, SubmitRequest
from exod.daemon_api.interface import GenerationDelta, GenerationEnd, KeepAlive, TextDelta, Usage
from exod.errors import ExitCode, RequestError
from exod.model import NodeId
from exoengine.protocol import Finished, GenerationRequest, RequestFailed, TokenOut

MAX_PENDING: Final = 256
"""Streams that one node carries at a time. The queue of the cluster is shorter: the rest is told to come again."""

MAX_BACKLOG: Final = 65_536
"""Outputs that wait for a client that reads slowly: a long answer as a whole, a few MB. Past it the client has
stopped reading, and its generation is cancelled."""

SUBMIT_INTERVAL_S: Final = 1.0
"""A submission may be lost with its connection or its coordinator: repeated until it is confirmed."""

CONFIRMED_INTERVAL_S: Final = 5.0
"""And whenever nothing came for this long after that: a coordinator that died took its queue along, and outputs may
be lost with a connection."""

KEEP_ALIVE_S: Final = 5.0
JUDGEMENTS: Final = 4
"""How often silence is judged within the recovery deadline, at the least."""

Output = TokenOut | Finished | RequestFailed


class Pending:
    """One request that a client waits for."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.outputs: asyncio.Queue[Output | SubmitRefused] = asyncio.Queue(MAX_BACKLOG)
        self.tokens: list[int] = []
        self.confirmed = False
        self.submit_at = 0.0
        self.troubled_s = 0.0
        """How long the engine was in trouble since something last came."""
        self.overrun = False

    @property
    def next_index(self) -> int:
        return len(self.tokens)

    def put(self, output: Output | SubmitRefused) -> bool:
        """Takes an output that is new; one that was taken before is a replay and says nothing new. False where
        the client has left too many of them unread.
        """
        if isinstance(output, TokenOut):
            if output.index != self.next_index:
                return True
            self.tokens.append(output.token)
        self.troubled_s = 0.0
        self.confirmed = True
        self.submit_at = time.monotonic() + CONFIRMED_INTERVAL_S
        if self.outputs.full():
            self.overrun = True
        else:
            self.outputs.put_nowait(output)
        return not self.overrun


class RequestDesk:
    """All requests of this node's clients.

    `submit` sends to the present coordinator (False where there is none); `cancel` tells whoever generates it;
    `trouble` says in words what the engine waits for, empty where it runs.
    """

    def __init__(
        self,
        me: NodeId,
        recovery_deadline_s: float,
        submit: Callable[[SubmitRequest], bool],
        cancel: Callable[[str], None],
        trouble: Callable[[], str],
    ) -> None:
        self._me = me
        self._recovery_deadline_s = recovery_deadline_s
        self._beat_s = min(KEEP_ALIVE_S, recovery_deadline_s / JUDGEMENTS)
        self._submit, self._cancel, self._trouble = submit, cancel, trouble
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def queued(self, request_id: str) -> None:
        pending = self._pending.get(request_id)
        if pending is not None:
            pending.confirmed = True
            pending.submit_at = time.monotonic() + CONFIRMED_INTERVAL_S

    def output(self, request_id: str, output: Output | SubmitRefused, token_count: int = 0) -> None:
        """From this node's rank, a relay, or the coordinator's refusal. `token_count` tokens came before it."""
        pending = self._pending.get(request_id)
        if pending is None or pending.overrun:
            return
        unasked = isinstance(output, Finished) and output.reason == "cancelled"
        if unasked or token_count > pending.next_index:
            # Ended by someone who thought that nobody waits for it; or what came before it was lost.
            pending.confirmed, pending.submit_at = False, 0.0
            return
        if not pending.put(output):
            self._cancel(request_id)

    def waits_for(self, request_id: str) -> bool:
        return request_id in self._pending

    def coordinator_changed(self) -> None:
        """The next coordinator knows nothing of what waited in the old one's queue."""
        for pending in self._pending.values():
            pending.confirmed = False
            pending.submit_at = 0.0
        self.handle_timer()

    def model_changed(self, model: str) -> None:
        """An answer that was begun cannot go on with another model; one that was not is begun with it."""
        text = f"{model} was loaded while this was answered" if model else "the model was unloaded"
        for request_id, pending in self._pending.items():
            pending.confirmed, pending.submit_at = False, 0.0
            if pending.tokens:
                pending.put(RequestFailed(request_id, "model_changed", text))

    def handle_timer(self) -> None:
        """Submits what is not confirmed, or silent. Called some times a second while something is pending."""
        now = time.monotonic()
        for pending in list(self._pending.values()):
            if now < pending.submit_at or pending.overrun:
                continue
            interval_s = CONFIRMED_INTERVAL_S if pending.confirmed else SUBMIT_INTERVAL_S
            pending.submit_at = now + interval_s
            self._submit(SubmitRequest(self._me, pending.request, tuple(pending.tokens[:-1])))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """The deltas of one generation; closing it cancels. Raises RequestError where it cannot be served."""
        if len(self._pending) >= MAX_PENDING:
            raise RequestError("queue_full", f"{MAX_PENDING} requests wait on this node already; try again later")
        pending = Pending(request)
        self._pending[request.request_id] = pending
        ended = False
        try:
            self.handle_timer()
            while not ended:
                delta = await self._next(pending)
                ended = isinstance(delta, GenerationEnd)
                yield delta
        except RequestError as error:
            ended = error.code not in ("recovery_failed", "client_too_slow")
            raise
        finally:
            del self._pending[request.request_id]
            if not ended:
                self._cancel(request.request_id)

    async def _next(self, pending: Pending) -> GenerationDelta:
        try:
            async with asyncio.timeout(self._beat_s):
                output = await pending.outputs.get()
        except TimeoutError:
            return self._judge_silence(pending)
        if pending.overrun:
            raise RequestError("client_too_slow", "the client stopped reading; the generation was cancelled")
        match output:
            case TokenOut():
                return TextDelta(output.index, output.text, output.logprob, output.top_logprobs)
            case Finished():
                usage = Usage(
                    prompt_tokens=output.prompt_tokens,
                    completion_tokens=output.completion_tokens,
                    cached_tokens=output.cached_tokens,
                    prefill_s=output.prefill_s,
                    decode_s=output.decode_s,
                )
                return GenerationEnd(output.reason, usage, output.text)
            case RequestFailed(code=code, text=text) | SubmitRefused(code=code, text=text):
                raise RequestError(code, text, ExitCode.INTERNAL)

    def _judge_silence(self, pending: Pending) -> KeepAlive:
        """A request that waits its turn, or a long prefill, is no fault; an engine in trouble has a deadline. Its
        good moments between two faults do not count as long as no token comes of them.
        """
        trouble = self._trouble()
        if not trouble and not pending.confirmed:
            trouble = "the coordinator has not answered yet"
        if not trouble:
            return KeepAlive(
                "the request waits its turn" if pending.next_index == 0 else "the next token is computed"
            )
        pending.troubled_s += self._beat_s
        if pending.troubled_s >= self._recovery_deadline_s:
            text = f"the engine did not recover within {self._recovery_deadline_s:g} s: {trouble}"
            raise RequestError("recovery_failed", text, ExitCode.INTERNAL)
        return KeepAlive(trouble)
