"""Who was refused because of another cluster key lately, and when that is worth a line in the log.

Decides nothing about connections.
"""

from __future__ import annotations

import ssl
import time
from typing import Final

import structlog

log = structlog.get_logger()

LOG_INTERVAL_S: Final = 60.0
SHOWN_S: Final = 150.0
"""One that still tries is noted again within two intervals; one that gave up is history."""

MAX_STRANGERS: Final = 64


class Strangers:
    def __init__(self) -> None:
        self._noted: dict[str, tuple[float, str]] = {}

    def note(self, address: str, name: str, error: ssl.SSLError) -> None:
        """Logs a peer whose key is not ours, once a minute for each."""
        now = time.monotonic()
        who = f"{name} ({address})" if name else address
        last, _ = self._noted.get(who, (-LOG_INTERVAL_S, ""))
        if now - last < LOG_INTERVAL_S:
            return
        self._noted.pop(who, None)
        self._noted[who] = (now, f"{who} was refused: it has another cluster key, or none")
        while len(self._noted) > MAX_STRANGERS:
            self._noted.pop(next(iter(self._noted)))
        log.warning("stranger_refused", who=who, text="it has another cluster key, or none", error=error.reason)

    def texts(self) -> tuple[str, ...]:
        """In words."""
        since = time.monotonic() - SHOWN_S
        return tuple(text for noted_at, text in self._noted.values() if noted_at > since)
