"""Where the parts of one node's core leave their commands, and the bounded log of decisions with their inputs.

Decides nothing. NodeCore owns one Journal, hands it to its links and its mesh, and drains it after each input.
"""

from __future__ import annotations

from collections import deque

import msgspec

from exod.core.base.events import Command, Emit
from exod.model import Event

HISTORY = 512
"""Decisions kept: hours of a calm mesh, minutes of a wild one, ~200 KB at most."""
STORY = 8
"""Decisions about one subject that an error carries: enough to see how it came there, and still one screen."""


class Decision(msgspec.Struct, frozen=True):
    """One decision and what it was made from. `at` is monotonic seconds of this host."""

    at: float
    subject: str
    decision: str
    inputs: dict[str, object]


class Journal:
    def __init__(self) -> None:
        self._commands: list[Command] = []
        self._history: deque[Decision] = deque(maxlen=HISTORY)

    def command(self, command: Command) -> None:
        self._commands.append(command)

    def emit(self, type_: str, subject: str, /, **data: object) -> None:
        """An entry for the event log; the shell stamps its time."""
        self._commands.append(Emit(Event(ts=0.0, type=type_, subject=subject, data=data)))

    def decide(self, now: float, subject: str, decision: str, **inputs: object) -> None:
        self._history.append(Decision(now, subject, decision, inputs))

    def drain(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def story(self, subject: str) -> tuple[Decision, ...]:
        """The newest decisions about one subject, oldest first."""
        return tuple(one for one in self._history if one.subject == subject)[-STORY:]

    def history(self) -> tuple[Decision, ...]:
        return tuple(self._history)
