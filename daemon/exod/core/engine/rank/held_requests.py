"""The requests that this node's rank has been given and that have not ended on it.

Decides what a new process of the rank must be told, so that it can take its place in a generation under way. Never
decides when a request begins or ends.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from exod.core.engine.engine_messages import UNKNOWN_ORIGIN, BeginRequest, client_id
from exod.model import NodeId
from exoengine.protocol import (
    ActiveRequest,
    Begin,
    Cancel,
    Finished,
    GenerationRequest,
    RequestFailed,
    TokenOut,
    ToWorker,
)

ENDED_KEPT: Final = 64
"""Ended requests that are remembered above the order up to which all have ended: more than can be under way."""

DEATHS_LIMIT: Final = 2
"""A request of which no token ever came, and over which this rank's process died so often, is not tried again: it
may be what the process dies of."""

LATER_DEATHS_LIMIT: Final = 3
"""The same for one that had tokens, with none between: it ran before, so something else is the likelier cause. And
where SIGKILL ended the process: no request sends that, but a system may to what takes too much."""

SOMEONE_ELSES_LIMIT: Final = 5
"""The same where it had tokens and SIGKILL ended the process: it ran, and was not what sent the signal. Where the
kernel kills for memory it says so, and `memory_kills.py` stops at as many; macOS does not say so."""

KILLED: Final = "it was killed by SIGKILL"
"""So the end of a process is told that someone else made."""


class HeldRequest(msgspec.Struct):
    begin: BeginRequest
    tokens: list[int]
    cancelled: bool = False
    deaths: int = 0
    """How often the process died over it since its last token."""


class RequestGivenUp(msgspec.Struct, frozen=True):
    """Command: this rank's process died over the request too often; its client is told, and it ends everywhere."""

    begin: BeginRequest
    text: str


class HeldRequests:
    """By generation id."""

    def __init__(self) -> None:
        self.active: dict[str, HeldRequest] = {}
        self.begun_order = 0
        """The highest order that this rank was given."""
        self.finished_order = 0
        """Up to here every request has ended in the cluster."""
        self._ended: dict[int, HeldRequest | None] = {}
        """Above `finished_order`, what has ended here: with its answer where others may need it."""

    @property
    def under_way(self) -> tuple[int, ...]:
        return tuple(sorted(held.begin.order for held in self.active.values()))

    def progress(self, positions: Collection[tuple[int, int]]) -> tuple[int, ...]:
        """Of each of `under_way`: the tokens of its answer, and where its worker last said that its caches are.
        Both count: a worker tells its positions once a second, and a new process begins at 0.
        """
        told = dict(positions)
        held = sorted(self.active.values(), key=lambda held: held.begin.order)
        return tuple(len(one.tokens) + told.get(one.begin.order, 0) for one in held)

    @property
    def is_wanted(self) -> bool:
        """Is something under way, and nothing of it cancelled? The step that is run may be that of any of them."""
        return bool(self.active) and not any(held.cancelled for held in self.active.values())

    @property
    def ended_orders(self) -> tuple[int, ...]:
        return tuple(sorted(self._ended))

    @property
    def unanswered_orders(self) -> tuple[int, ...]:
        return tuple(sorted(order for order, held in self._ended.items() if held is None))

    def of_client(self, request_id: str) -> HeldRequest | None:
        """The newest generation under way of a client's request."""
        found = [held for key, held in self.active.items() if client_id(key) == request_id]
        return max(found, key=lambda held: held.begin.order, default=None)

    @property
    def of_clients(self) -> frozenset[str]:
        """The ids that clients gave to what is under way."""
        return frozenset(client_id(key) for key in self.active)

    def begun(self) -> list[BeginRequest]:
        """All that is under way, with what is known of each answer: for a coordinator that lacks it."""
        held = sorted(self.active.values(), key=lambda held: held.begin.order)
        return [msgspec.structs.replace(one.begin, tokens=tuple(one.tokens[:-1])) for one in held]

    def begin(self, begin: BeginRequest) -> list[ToWorker]:
        """What the process is told. Nothing where it is known; a known request may only now name its origin."""
        if begin.only_to_end:
            return self._to_end(begin)
        self.begun_order = max(self.begun_order, begin.order)
        known = self.active.get(begin.request.request_id)
        if known is not None:
            if known.begin.origin == UNKNOWN_ORIGIN:
                known.begin = begin
            return []
        if self._has_ended(begin.order):
            return []
        self.active[begin.request.request_id] = HeldRequest(begin, list(begin.tokens))
        return [Begin(begin.order, begin.request, begin.tokens)]

    def _to_end(self, begin: BeginRequest) -> list[ToWorker]:
        """What has ended here, and the process must end with the others; one that still has its end keeps it. It is
        under way until then, so that a coordinator that knows nothing of it hears of it.
        """
        generation = begin.request.request_id
        kept = self._ended.get(begin.order) is not None
        if generation in self.active or kept or not self._has_ended(begin.order):
            return []
        self.active[generation] = HeldRequest(begin, [], cancelled=True)
        return [_unread(Begin(begin.order, begin.request)), Cancel(generation)]

    def _has_ended(self, order: int) -> bool:
        return order <= self.finished_order or order in self._ended

    def claim(self, request_id: str, origin: NodeId) -> None:
        """The origin of a generation that outlived its daemon is known now."""
        held = self.of_client(request_id)
        if held is not None and held.begin.origin == UNKNOWN_ORIGIN:
            held.begin = msgspec.structs.replace(held.begin, origin=origin)

    def adopt(self, me: NodeId, request: ActiveRequest) -> bool:
        """What a process holds that outlived its daemon: it may know of more than this daemon. False where that
        has ended meanwhile.
        """
        generation = request.request.request_id
        known = self.active.get(generation)
        if known is not None:
            if len(request.tokens) > len(known.tokens):
                known.tokens[:] = request.tokens
        elif self._has_ended(request.order):
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
            held.deaths = 0

    def ended(self, end: Finished | RequestFailed) -> bool:
        """True where this rank did not know yet."""
        held = self.active.pop(end.request_id, None)
        if held is None:
            return False
        whole = isinstance(end, Finished) and end.reason != "cancelled"
        if held.begin.order > self.finished_order:
            self._ended[held.begin.order] = held if whole else None
        while len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        return True

    def void(self, order: int, orders: Collection[int] = ()) -> list[str]:
        """Everything up to `order` has ended in the cluster, and `orders`. Returns the generations that this rank
        still had.
        """
        going = {key: held.begin.order for key, held in self.active.items()}
        stale = [key for key, at in going.items() if at <= order or at in orders]
        for key in stale:
            self._ended[self.active.pop(key).begin.order] = None
        self._ended |= dict.fromkeys(orders)  # no rank needs their answers any more
        self.finished_order = max(self.finished_order, order)
        self.begun_order = max(self.begun_order, order, *orders)
        self._ended = {one: held for one, held in self._ended.items() if one > self.finished_order}
        return stale

    def cancel(self, request_id: str) -> Cancel | None:
        """Marks it, so that a new process hears of it too. The id is the client's or the generation's."""
        held = self.active.get(request_id) or self.of_client(request_id)
        if held is None or held.cancelled:
            return None
        held.cancelled = True
        return Cancel(held.begin.request.request_id)

    def process_died(self, text: str) -> list[RequestGivenUp]:
        """While it had all of these; `text` says how. Gives those that are not tried again."""
        given_up = []
        for held in self.active.values():
            held.deaths += not held.cancelled
            if held.deaths >= _limit(bool(held.tokens), text.startswith(KILLED)):
                why = f"the engine's process ended {held.deaths} times over this request ({text})"
                given_up.append(RequestGivenUp(held.begin, f"{why}; it is not tried again"))
        return given_up

    def for_a_new_process(self) -> list[ToWorker]:
        """What a process must be told that may know nothing of it. Finished requests are among it: a rank that had
        a fault in the last step of one needs the others to end it, too.
        """
        messages: list[ToWorker] = []
        finished = {order: held for order, held in self._ended.items() if held is not None}
        unfinished = {held.begin.order: held for held in self.active.values()}
        for order, held in sorted((finished | unfinished).items()):
            # Less the last token: with the whole answer a process finds nothing left to do and reports no end.
            tokens = held.tokens if order in finished else held.tokens[:-1]
            begin = Begin(order, held.begin.request, tuple(tokens))
            messages += [_unread(begin), Cancel(held.begin.request.request_id)] if held.cancelled else [begin]
        return messages


def _limit(had_tokens: bool, was_killed: bool) -> int:
    if had_tokens and was_killed:
        return SOMEONE_ELSES_LIMIT
    return LATER_DEATHS_LIMIT if had_tokens or was_killed else DEATHS_LIMIT


def _unread(begin: Begin) -> Begin:
    """For a process that has to end it with the others: without its prompt, over which one may have died."""
    asked = begin.request
    request = GenerationRequest(asked.request_id, asked.max_tokens, prompt=(0,), sampling=asked.sampling)
    return msgspec.structs.replace(begin, request=request)
