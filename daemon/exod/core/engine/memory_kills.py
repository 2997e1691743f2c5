"""A rank whose process the kernel kills for memory: how long to wait for the next one, and when to stop.

The same load on the same memory is killed again, and the host suffers each time. So each kill
doubles the pause, and the fifth within ten minutes is the last: another model or a restart of exod begins anew.
Decides that alone. Monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from exod.core.base.facts import OUT_OF_MEMORY, Fact
from exod.model import NodeId

MOST: Final = 5
WITHIN_S: Final = 600.0
"""Kills that are further apart have causes of their own: another program that took the memory for a while."""

PAUSE_FIRST_S: Final = 1.0


class MemoryKills:
    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=MOST)
        self._text = ""

    def killed(self, text: str, now: float) -> float:
        """Once more; `text` has the figures. How long to wait before the next process."""
        self._at.append(now)
        self._text = text
        return float(PAUSE_FIRST_S * 2 ** (len(self._recent(now)) - 1))

    def wanted_anew(self) -> None:
        """Another model or another share of one may fit."""
        self._at.clear()

    def _recent(self, now: float) -> list[float]:
        return [at for at in self._at if now - at < WITHIN_S]

    def is_spent(self, now: float) -> bool:
        return len(self._recent(now)) >= MOST

    def text(self, now: float) -> str:
        """For people; empty where it was not killed lately."""
        recent = self._recent(now)
        if not recent:
            return ""
        several = f"{len(recent)} times in {recent[-1] - recent[0]:.0f} s; the last time"
        times = f"killed for memory {several if len(recent) > 1 else 'once:'}"
        goes_on = (
            "it is not started again: free memory, then exoctl engine unload and load; or load a smaller model"
            if self.is_spent(now)
            else "it is started again after a pause that doubles"
        )
        return f"this node's rank was {times} {self._text}; {goes_on}"

    def facts(self, me: NodeId, now: float) -> tuple[Fact, ...]:
        text = self.text(now)
        return (Fact(OUT_OF_MEMORY, me, text),) if text else ()
