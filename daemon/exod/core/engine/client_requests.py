"""The requests of this node's own clients, from being asked to their end.

Each is submitted to the coordinator: again under the next one, and whenever nothing came for a while. Its tokens
come from this node's own rank where it hosts one, else relayed from rank 0. A token counts once, by its index: what
is replayed after a fault was delivered already, and what was lost on the way is generated again from the first
token that is missing here. An engine in trouble has `recovery_deadline_s` to bring the next token.

Decides when a request is submitted, what reaches its client, and when it is given up. Never where a submission or a
cancellation goes: the core sends them. Times in monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from exod.core.base.errors import IllegalMoveError
from exod.core.engine.engine_events import DeliverEnd, DeliverError, DeliverKeepAlive, DeliverToken
from exod.core.engine.engine_messages import CancelRequest, SubmitRefused, SubmitRequest
from exod.core.engine.request_queue import RETRY_AFTER_S
from exod.model import NodeId
from exoengine.protocol import Finished, GenerationRequest, RequestFailed, TokenOut

MAX_PENDING: Final = 256
"""Requests of one node at a time. The queue of the cluster is shorter: the rest is asked to come again."""

SUBMIT_INTERVAL_S: Final = 1.0
"""A submission may be lost with its connection or its coordinator: repeated until it is confirmed."""

CONFIRMED_INTERVAL_S: Final = 5.0
"""And whenever nothing came for this long after that: a coordinator that died took its queue along, and outputs may
be lost with a connection."""

RESUBMIT_PAUSE_S: Final = 0.25
"""Where an output was lost, all that follow it show so: one submission asks for what is missing."""

KEEP_ALIVE_S: Final = 5.0
"""A client gets a sign at least this often while it waits: well below the idle limit of any proxy."""

JUDGEMENTS: Final = 4
"""How often silence is judged within the recovery deadline, at the least."""

NOT_READY: Final = "not_ready"
"""The code that a request meets that is asked where no rank can serve."""

TOO_SLOW: Final = "client_too_slow"
TOO_SLOW_TEXT: Final = "the client stopped reading; the generation was cancelled"

Output = TokenOut | Finished | RequestFailed
ClientCommand = DeliverToken | DeliverKeepAlive | DeliverEnd | DeliverError | SubmitRequest | CancelRequest
"""SubmitRequest goes to the coordinator, CancelRequest to the ranks."""


class ClientRequest:
    """One request that a client waits for."""

    def __init__(self, request: GenerationRequest, client: str, now: float, silence_s: float) -> None:
        self.request, self.client = request, client
        self.tokens: list[int] = []
        self.confirmed = False
        self.submit_at = now
        self._submitted_at = now
        self.judge_at = now + silence_s
        self.troubled_s = 0.0
        """How long the engine was in trouble since something last came."""
        self.met_failure = False
        """When last judged, was there no rank to wait for? The others may be about to go on without that one."""

    def news(self, now: float, silence_s: float) -> None:
        """Something came that brings the answer further."""
        self.troubled_s = 0.0
        self.judge_at = now + silence_s
        self.confirm(now)

    def confirm(self, now: float) -> None:
        self.confirmed, self.submit_at = True, now + CONFIRMED_INTERVAL_S

    def submit_again(self, now: float) -> None:
        """At once: another coordinator knows nothing of it."""
        self.confirmed, self.submit_at = False, now

    def submit_for_what_is_missing(self, now: float) -> None:
        self.confirmed = False
        self.submit_at = min(self.submit_at, max(now, self._submitted_at + RESUBMIT_PAUSE_S))

    def submitted(self, now: float) -> None:
        self._submitted_at = now
        self.submit_at = now + (CONFIRMED_INTERVAL_S if self.confirmed else SUBMIT_INTERVAL_S)


class ClientRequests:
    """By the client's request id."""

    def __init__(self, me: NodeId, recovery_deadline_s: float) -> None:
        self._me = me
        self._recovery_deadline_s = recovery_deadline_s
        self._silence_s = min(KEEP_ALIVE_S, recovery_deadline_s / JUDGEMENTS)
        self._pending: dict[str, ClientRequest] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def waits_for(self, request_id: str) -> bool:
        return request_id in self._pending

    # --- clients --------------------------------------------------------------------------------------------

    def ask(self, request: GenerationRequest, now: float, client: str = "") -> list[ClientCommand]:
        """`client` names who asks: the requests of one take turns with those of others."""
        if self.waits_for(request.request_id):
            raise IllegalMoveError("a request id is given once", request_id=request.request_id)
        if len(self._pending) >= MAX_PENDING:
            text = f"{MAX_PENDING} requests wait on this node already; try again later"
            return [DeliverError(request.request_id, "queue_full", text, RETRY_AFTER_S)]
        self._pending[request.request_id] = ClientRequest(request, client, now, self._silence_s)
        return self._submit_due(now)

    def leave(self, request_id: str) -> list[ClientCommand]:
        """The client went away. Nothing happens where its request has ended."""
        return [CancelRequest(request_id)] if self._pending.pop(request_id, None) is not None else []

    def stopped_reading(self, request_id: str) -> list[ClientCommand]:
        return self._give_up(request_id, TOO_SLOW, TOO_SLOW_TEXT) if self.waits_for(request_id) else []

    def _give_up(self, request_id: str, code: str, text: str) -> list[ClientCommand]:
        """The generation may still run: it is cancelled."""
        del self._pending[request_id]
        return [DeliverError(request_id, code, text), CancelRequest(request_id)]

    # --- the cluster ----------------------------------------------------------------------------------------

    def queued(self, request_id: str, now: float) -> None:
        """The coordinator has it."""
        pending = self._pending.get(request_id)
        if pending is not None:
            pending.confirm(now)

    def refused(self, refused: SubmitRefused) -> list[ClientCommand]:
        if self._pending.pop(refused.request_id, None) is None:
            return []
        return [DeliverError(refused.request_id, refused.code, refused.text, refused.retry_after_s)]

    def output(self, request_id: str, output: Output, token_count: int, now: float) -> list[ClientCommand]:
        """From this node's rank, or relayed. So many tokens of the answer come before it: `token_count`, as far as
        its sender knows, and what an end counts itself.
        """
        pending = self._pending.get(request_id)
        if pending is None:
            return []
        unasked, before = False, token_count
        if isinstance(output, Finished):
            unasked, before = output.reason == "cancelled", max(token_count, output.completion_tokens)
        if unasked or before > len(pending.tokens):
            # Ended by someone who thought that nobody waits for it; or what came before it was lost.
            pending.submit_for_what_is_missing(now)
            return []
        match output:
            case TokenOut():
                if output.index != len(pending.tokens):
                    return []  # replayed
                pending.tokens.append(output.token)
                pending.news(now, self._silence_s)
                return [DeliverToken(request_id, output)]
            case Finished():
                del self._pending[request_id]
                return [DeliverEnd(request_id, output)]
            case RequestFailed(code=code, text=text):
                del self._pending[request_id]
                return [DeliverError(request_id, code, text)]

    def coordinator_changed(self, now: float) -> list[ClientCommand]:
        """The next coordinator knows nothing of what waited in the old one's queue."""
        for pending in self._pending.values():
            pending.submit_again(now)
        return self._submit_due(now)

    def model_changed(self, model: str, now: float) -> list[ClientCommand]:
        """An answer that was begun cannot go on with another model; one that was not is begun with it."""
        text = f"{model} was loaded while this was answered" if model else "the model was unloaded"
        begun = [request_id for request_id, pending in self._pending.items() if pending.tokens]
        for request_id in begun:
            del self._pending[request_id]
        for pending in self._pending.values():
            pending.submit_again(now)
        return [DeliverError(request_id, "model_changed", text) for request_id in begun]

    # --- time -----------------------------------------------------------------------------------------------

    def handle_timer(
        self, trouble: str, now: float, begun: Collection[str] = (), failure: str = ""
    ) -> list[ClientCommand]:
        """`trouble`: what the engine waits for, for people; empty where it runs. `begun`: the requests that this
        node's own rank has begun; those of a node without one are not known here. `failure`: why the engine is not
        to be waited for: what has no token yet gets that for an answer where it lasts, as the next request does.
        """
        commands = self._submit_due(now)
        for request_id in [key for key, pending in self._pending.items() if now >= pending.judge_at]:
            pending = self._pending[request_id]
            fails, pending.met_failure = pending.met_failure and bool(failure), bool(failure)
            if fails and not pending.tokens:
                commands += self._give_up(request_id, NOT_READY, failure)
            else:
                commands += self._judge_silence(request_id, trouble, request_id in begun, now)
        return commands

    def next_deadline(self) -> float | None:
        return min((min(one.submit_at, one.judge_at) for one in self._pending.values()), default=None)

    def _submit_due(self, now: float) -> list[ClientCommand]:
        """Submits what is not confirmed, or silent."""
        commands: list[ClientCommand] = []
        for pending in self._pending.values():
            if now >= pending.submit_at:
                pending.submitted(now)
                tokens = tuple(pending.tokens[:-1])
                commands.append(SubmitRequest(self._me, pending.request, tokens, pending.client))
        return commands

    def _judge_silence(self, request_id: str, trouble: str, begun: bool, now: float) -> list[ClientCommand]:
        """A request that waits its turn, or a long prefill, is no fault; an engine in trouble has a deadline. Its
        good moments between two faults do not count as long as no token comes of them.
        """
        pending = self._pending[request_id]
        pending.judge_at = now + self._silence_s
        if not trouble and not pending.confirmed:
            trouble = "the coordinator has not answered yet"
        if not trouble:
            return [DeliverKeepAlive(request_id, _patience(pending, begun))]
        pending.troubled_s += self._silence_s
        if pending.troubled_s < self._recovery_deadline_s:
            return [DeliverKeepAlive(request_id, trouble)]
        text = f"the engine did not recover within {self._recovery_deadline_s:g} s: {trouble}"
        return self._give_up(request_id, "recovery_failed", text)


def _patience(pending: ClientRequest, begun: bool) -> str:
    """Why nothing comes while the engine runs, for people."""
    if pending.tokens:
        return "the next token is computed"
    return "the prompt is computed" if begun else "the request waits its turn"
