"""Modelled clients: they ask, read at their own speed, and may go away."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from exod.core.engine.client_requests import TOO_SLOW
from exod.core.engine.engine_events import DeliverEnd, DeliverError, DeliverKeepAlive, DeliverToken
from exoengine.protocol import GenerationRequest
from tests.sim.engine.groups import token_at

if TYPE_CHECKING:
    from tests.sim.engine.engine_host import EngineHost

MAX_BACKLOG = 25
"""Far below the product's, so that answers of a few dozen tokens show what follows."""

Delivery = DeliverToken | DeliverKeepAlive | DeliverEnd | DeliverError


class Client:
    def __init__(self, engine_host: EngineHost, request: GenerationRequest, reads_every_s: float) -> None:
        self.engine_host, self.request = engine_host, request
        self.name = request.request_id
        self.asked_at = engine_host.world.now
        self.accepted = False
        """Has its node's core taken it?"""
        self.ended_at: float | None = None
        self.tokens: list[int] = []
        """As they were delivered, read or not."""
        self.text = ""
        """As it was read."""
        self.outcome = ""
        """`length`, `cancelled` (it went away), `lost` (its daemon died), or an error's code."""
        self.stopped_reading = False
        self._reads_every_s = reads_every_s
        self._unread: deque[Delivery] = deque()
        if reads_every_s:
            engine_host.world.after(reads_every_s, self._read_slowly)

    @property
    def expected_text(self) -> str:
        return "".join(f"{token_at(self.name, index)} " for index in range(self.request.max_tokens))

    @property
    def is_slow(self) -> bool:
        return self._reads_every_s > 0

    def end(self, outcome: str) -> None:
        if not self.outcome:
            self.outcome, self.ended_at = outcome, self.engine_host.world.now
            self.engine_host.world.tell(
                self.engine_host.host, f"{self.name} ended: {outcome}, {len(self.tokens)} tokens"
            )

    def take(self, delivery: Delivery) -> bool:
        """What the shell keeps for it. True where it has left too much unread, once."""
        if isinstance(delivery, DeliverToken):
            self.tokens.append(delivery.token.token)
        if self.stopped_reading:
            match delivery:
                case DeliverError(code=code):
                    self.end(code)
                case DeliverEnd():
                    self.end(TOO_SLOW)
            return False
        if not isinstance(delivery, DeliverEnd | DeliverError) and len(self._unread) >= MAX_BACKLOG:
            self.stopped_reading = True
            return True
        self._unread.append(delivery)
        if not self._reads_every_s:
            while self._unread:
                self._read()
        return False

    def hurry(self) -> None:
        """Reads what it waited with, and all that comes, at once."""
        self._reads_every_s = 0.0
        while self._unread and not self.outcome:
            self._read()

    def _read_slowly(self) -> None:
        if self.outcome or not self._reads_every_s:
            return
        if self._unread:
            self._read()
        self.engine_host.world.after(self._reads_every_s, self._read_slowly)

    def _read(self) -> None:
        match self._unread.popleft():
            case DeliverToken(token=token):
                self.text += token.text
            case DeliverEnd(end=end):
                self.end(end.reason)
            case DeliverError(code=code):
                self.end(code)
