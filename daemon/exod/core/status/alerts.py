"""Which reasons of the health are told as events: raised once, cleared once.

A reason that comes and goes within a second (a switch of links, an engine that moves) is in the status while it
lasts, and no alert: whoever is woken by alerts must be able to trust them.

Decides that alone. Called by the shell whenever it refreshes its status.
"""

from __future__ import annotations

from typing import Final

from exod.core.status.health import HealthSnapshot, severity
from exod.model import Event

LASTING_S: Final = 1.0

Key = tuple[str, str]


class Alerts:
    """Keeps what was raised and not cleared yet."""

    def __init__(self) -> None:
        self._raised: set[Key] = set()

    def changes(self, health: HealthSnapshot, told: frozenset[str], now: float) -> list[Event]:
        """`now` is on the clock of `Reason.since`. `told`: codes that were told elsewhere, with their cause."""
        present = {(reason.code, reason.subject): reason for reason in health.reasons}
        over = [key for key in self._raised if key not in present]
        events = [Event(0.0, "alert.cleared", subject, {"code": code}) for code, subject in over]
        self._raised.difference_update(over)
        for key, reason in present.items():
            lasts = now - reason.since >= LASTING_S
            if lasts and reason.code not in told and key not in self._raised:
                self._raised.add(key)
                data: dict[str, object] = {
                    "code": reason.code,
                    "severity": severity(reason.code),
                    "text": reason.text,
                }
                events.append(Event(0.0, "alert.raised", reason.subject, data))
        return events
