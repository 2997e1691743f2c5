"""Which reasons of the health are told as events: raised once, cleared once.

A reason that comes and goes within a second (a switch of links, an engine that moves) is in the status while it
lasts, and no alert: whoever is woken by alerts must be able to trust them.

Decides that alone. How long a reason has lasted comes with the health, from the monotonic clock: a wall clock that
is set neither raises nor clears an alert.
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

    def changes(self, health: HealthSnapshot, told: frozenset[str]) -> list[Event]:
        """`told`: codes that were told elsewhere, with their cause."""
        lasting_s = zip(health.reasons, health.lasting_s, strict=True)
        present = {(reason.code, reason.subject): (reason, lasted_s) for reason, lasted_s in lasting_s}
        over = [key for key in self._raised if key not in present]
        events = [Event(0.0, "alert.cleared", subject, {"code": code}) for code, subject in over]
        self._raised.difference_update(over)
        for key, (reason, lasted_s) in present.items():
            if lasted_s >= LASTING_S and reason.code not in told and key not in self._raised:
                self._raised.add(key)
                data: dict[str, object] = {
                    "code": reason.code,
                    "severity": severity(reason.code),
                    "text": reason.text,
                }
                events.append(Event(0.0, "alert.raised", reason.subject, data))
        return events
