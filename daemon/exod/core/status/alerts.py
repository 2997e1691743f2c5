"""Which facts are told as alerts: each is raised once when it has lasted, and cleared once when it is over.

A reason of the health that comes and goes within a second (a switch of links, an engine that moves) is in the
status while it lasts, and no alert: people who are woken by alerts must be able to trust them.

Decides that alone, of facts from any source. How long one has lasted is measured on the monotonic clock: a wall
clock that is set neither raises nor clears an alert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from exod.alert_table import kind_of
from exod.core.base.facts import ENGINE_FAILED
from exod.core.status.health import HealthSnapshot
from exod.model import Event, NodeId

LASTING_S: Final = 1.0


class AlertFact(msgspec.Struct, frozen=True):
    code: str
    subject: str
    text: str
    lasting_s: float
    """Infinite where the source has waited long enough already."""


def alert_facts(me: NodeId, health: HealthSnapshot, own_failure: tuple[str, str] | None) -> list[AlertFact]:
    """What is wrong now. `own_failure` (code and text) is why this node's own rank cannot be: it is told by its
    cause, and the failed engine that follows from it is not told beside it.
    """
    facts = [
        AlertFact(reason.code, reason.subject, reason.text, lasting_s)
        for reason, lasting_s in zip(health.reasons, health.lasting_s, strict=True)
        if own_failure is None or reason.code != ENGINE_FAILED
    ]
    if own_failure is not None:
        code, text = own_failure
        facts.append(AlertFact(code, me, text, math.inf))
    return facts


class Alerts:
    """Keeps what was raised and not cleared yet."""

    def __init__(self) -> None:
        self._raised: set[tuple[str, str]] = set()
        """Code and subject."""

    def changes(self, facts: Iterable[AlertFact]) -> list[Event]:
        """The events of what was raised and cleared since the last call. `facts` are all that hold now."""
        present = {(fact.code, fact.subject): fact for fact in facts}
        over = sorted(self._raised - present.keys())
        events = [Event(0.0, "alert.cleared", subject, {"code": code}) for code, subject in over]
        self._raised.difference_update(over)
        for key, fact in present.items():
            if fact.lasting_s >= LASTING_S and key not in self._raised:
                self._raised.add(key)
                kind = kind_of(fact.code)
                data: dict[str, object] = {"code": fact.code, "severity": kind.severity, "text": fact.text}
                data["cure"] = kind.cure
                events.append(Event(0.0, "alert.raised", fact.subject, data))
        return events
