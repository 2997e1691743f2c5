"""The requests that this node's rank has been given and that have not ended on it.

Decides what a new process of the rank must be told, so that it can take its place in a generation under way. Never
decides when a request begins or ends.
"""

from __future__ import annotations

import msgspec

from exod.core.engine.engine_messages import UNKNOWN_ORIGIN, BeginRequest, client_id
from exod.model import NodeId
from exoengine.protocol import ActiveRequest, Begin, Cancel, Finished, RequestFailed, TokenOut, ToWorker


class HeldRequest(msgspec.Struct):
    begin: BeginRequest
    tokens: list[int]
    cancelled: bool = False


class HeldRequests:
    """By generation id. Orders only grow."""

    def __init__(self) -> None:
        self.active: dict[str, HeldRequest] = {}
        self.begun_order = 0
        self.finished_order = 0
        self._last_finished: HeldRequest | None = None

    def of_client(self, request_id: str) -> HeldRequest | None:
        """The generation under way of a client's request."""
        found = (held for key, held in self.active.items() if client_id(key) == request_id)
        return next(found, None)

    def begun(self) -> BeginRequest | None:
        """The newest one under way, with what is known of its answer: for a coordinator that lacks it."""
        held = max(self.active.values(), key=lambda held: held.begin.order, default=None)
        return msgspec.structs.replace(held.begin, tokens=tuple(held.tokens[:-1])) if held is not None else None

    def begin(self, begin: BeginRequest) -> bool:
        """True where it is new. One that is known may at last say who its origin is."""
        if begin.order > self.begun_order:
            self.begun_order = begin.order
            self.active[begin.request.request_id] = HeldRequest(begin, list(begin.tokens))
            return True
        known = self.active.get(begin.request.request_id)
        if known is not None and known.begin.origin == UNKNOWN_ORIGIN:
            known.begin = begin
        return False

    def claim(self, request_id: str, origin: NodeId) -> None:
        """The origin of a generation that outlived its daemon has made itself known."""
        held = self.of_client(request_id)
        if held is not None and held.begin.origin == UNKNOWN_ORIGIN:
            held.begin = msgspec.structs.replace(held.begin, origin=origin)

    def adopt(self, me: NodeId, request: ActiveRequest) -> bool:
        """What a process holds that outlived its daemon: it may know of more than this daemon. False where that
        has ended in the cluster meanwhile: at most one is under way, the newest.
        """
        generation = request.request.request_id
        known = self.active.get(generation)
        if known is not None:
            if len(request.tokens) > len(known.tokens):
                known.tokens[:] = request.tokens
        elif request.order < self.begun_order or request.order <= self.finished_order:
            return False
        else:
            begin = BeginRequest(me, request.order, UNKNOWN_ORIGIN, request.request)
            self.active[generation] = HeldRequest(begin, list(request.tokens))
        self.begun_order = max(self.begun_order, request.order)
        return True

    def token(self, token: TokenOut) -> None:
        held = self.active.get(token.request_id)
        if held is not None and token.index == len(held.tokens):
            held.tokens.append(token.token)

    def ended(self, end: Finished | RequestFailed) -> bool:
        """True where this rank did not know yet."""
        held = self.active.pop(end.request_id, None)
        if held is None:
            return False
        self.finished_order = max(self.finished_order, held.begin.order)
        if isinstance(end, Finished) and end.reason != "cancelled":
            self._last_finished = held
        return True

    def void(self, order: int) -> list[str]:
        """Everything up to `order` has ended in the cluster. Returns the generations that this rank still had."""
        stale = [key for key, held in self.active.items() if held.begin.order <= order]
        for key in stale:
            del self.active[key]
        self.begun_order = max(self.begun_order, order)
        self.finished_order = max(self.finished_order, order)
        if self._last_finished is not None and self._last_finished.begin.order <= order:
            self._last_finished = None
        return stale

    def cancel(self, request_id: str) -> Cancel | None:
        """Marks it, so that a new process hears of it too. The id is the client's or the generation's."""
        held = self.active.get(request_id) or self.of_client(request_id)
        if held is None or held.cancelled:
            return None
        held.cancelled = True
        return Cancel(held.begin.request.request_id)

    def for_a_new_process(self) -> list[ToWorker]:
        """What a process must be told that may know nothing of it. The last finished request is among it: a rank
        that had a fault in the last step of it needs the others to end it, too.
        """
        messages: list[ToWorker] = []
        if self._last_finished is not None:
            begin = self._last_finished.begin
            messages.append(Begin(begin.order, begin.request, tuple(self._last_finished.tokens)))
        for held in sorted(self.active.values(), key=lambda held: held.begin.order):
            # Less the last token: with the whole answer a process finds nothing left to do and reports no end.
            messages.append(Begin(held.begin.order, held.begin.request, tuple(held.tokens[:-1])))
            if held.cancelled:
                messages.append(Cancel(held.begin.request.request_id))
        return messages
