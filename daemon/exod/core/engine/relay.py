"""What rank 0 sends of an answer to an origin that hosts no rank, kept so that it can be sent again.

Outputs may be lost with a connection; the origin then asks for all that it lacks. Decides what is kept and for how
long.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_messages import UNKNOWN_ORIGIN, RelayedOutput, client_id
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Finished, RequestFailed, TokenOut

Output = TokenOut | Finished | RequestFailed

REQUESTS_KEPT: Final = 64
"""Those under way and as many before them, whose ends may be lost."""

BATCH: Final = 1024
"""Outputs in one message: some hundred kilobytes, far below the longest frame."""


class SentAnswer:
    """All that was sent of one request. A second generation of it goes on where the first one ended."""

    def __init__(self, origin: NodeId) -> None:
        self.origin = origin
        self.tokens: dict[int, TokenOut] = {}
        self.end: tuple[Finished | RequestFailed, int] | None = None
        """With the number of tokens before it."""


class Relay:
    """By the client's request."""

    def __init__(self) -> None:
        self._answers: dict[str, SentAnswer] = {}

    def take(
        self, output: Output, token_count: int, origin: NodeId, ring: tuple[NodeId, ...]
    ) -> RelayedOutput | None:
        """What to send to the origin; None where it hosts a rank, which gives it the answer."""
        if origin in ring:
            self.forget(client_id(output.request_id))
            return None
        return self.note(output, token_count, origin)

    def note(self, output: Output, token_count: int, origin: NodeId) -> RelayedOutput:
        """`token_count`: how many tokens of the answer come before an end."""
        request_id = client_id(output.request_id)
        answer = self._answers.pop(request_id, SentAnswer(origin))
        self._answers[request_id] = answer  # the newest are kept
        answer.origin = origin or answer.origin
        if isinstance(output, TokenOut):
            answer.tokens[output.index], answer.end = output, None
            token_count = output.index
        else:
            answer.end = (output, token_count)
        while len(self._answers) > REQUESTS_KEPT:
            del self._answers[next(iter(self._answers))]
        return RelayedOutput((output,), token_count)

    def forget(self, request_id: str) -> None:
        self._answers.pop(request_id, None)

    def after(self, request_id: str, token_count: int, origin: NodeId) -> list[RelayedOutput]:
        """What an origin lacks that has so many tokens; nothing of another origin's answer."""
        answer = self._answers.get(request_id)
        if answer is None or answer.origin not in (origin, UNKNOWN_ORIGIN):
            return []
        indices = sorted(index for index in answer.tokens if index >= token_count)
        batches = [indices[first : first + BATCH] for first in range(0, len(indices), BATCH)]
        messages = [RelayedOutput(tuple(answer.tokens[index] for index in batch), batch[0]) for batch in batches]
        if answer.end is not None:
            messages.append(RelayedOutput((answer.end[0],), answer.end[1]))
        return messages


def coordinator_life(plan: MeshPlan) -> tuple[NodeId, int]:
    """One life of a coordinator: the next one knows nothing of what waited, whichever node it is."""
    return plan.coordinator, plan.epoch.coordinator_incarnation


def relaying(plan: MeshPlan) -> NodeId:
    """Whose rank sends its outputs on to nodes without one: the coordinator hears every member, others need not."""
    return plan.coordinator if plan.coordinator in plan.ring else plan.ring[0]


def relays(node: NodeId, plan: MeshPlan) -> bool:
    return bool(plan.ring) and relaying(plan) == node


def gives_up(sender: NodeId, message: RelayedOutput, plan: MeshPlan | None) -> bool:
    """Does a rank say that it will not try a request again?"""
    is_rank = plan is not None and sender in plan.ring
    return is_rank and all(isinstance(output, RequestFailed) for output in message.outputs)
