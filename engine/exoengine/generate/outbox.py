"""What a rank tells the daemon of its requests, and when.

Telling wakes the control thread, which then wants the interpreter that the next step is being made with. So tokens
are kept back until that step is under way, which is a millisecond later; whatever is not a token sends them with
it, and loop.py does before it waits for anything else. Nothing is lost with them: after a fault a step that is run
again gives the same token.

Decides nothing but the moment.
"""

from __future__ import annotations

from collections.abc import Callable

from exoengine.protocol import FromWorker, TokenOut


class Outbox:
    def __init__(self, emit: Callable[[FromWorker], None]) -> None:
        self._emit = emit
        self._kept: list[FromWorker] = []

    def add(self, message: FromWorker) -> None:
        self._kept.append(message)
        if not isinstance(message, TokenOut):
            self.flush()

    def flush(self) -> None:
        kept, self._kept = self._kept, []
        for message in kept:
            self._emit(message)
