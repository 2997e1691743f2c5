"""What a rank tells the daemon of its requests, and when.

A message wakes the control thread, which then competes for the interpreter lock with the next step. So tokens are
kept until that step has started, about a millisecond later, and go together. Any other message sends the kept
tokens along, and
loop.py sends them before it waits. A token that is lost here is not lost to the client: after a fault the step is
run again and gives the same token.

Decides only when messages are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exoengine.protocol import FromWorker, TokenOut


class Outbox:
    def __init__(self, emit: Callable[[Sequence[FromWorker]], None]) -> None:
        self._emit = emit
        self._kept: list[FromWorker] = []

    def add(self, message: FromWorker) -> None:
        self._kept.append(message)
        if not isinstance(message, TokenOut):
            self.flush()

    def flush(self) -> None:
        kept, self._kept = self._kept, []
        if kept:
            self._emit(kept)
