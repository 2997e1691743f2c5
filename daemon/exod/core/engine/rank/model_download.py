"""How much of a model is here while it is downloaded. Sizes in bytes.

Decides which events tell of it: the start, each tenth of the way, the end.
"""

from __future__ import annotations

from exod.core.engine.engine_events import EmitEvent


class ModelDownload:
    def __init__(self) -> None:
        self.done_bytes = self.total_bytes = 0
        self._tenth = -1

    def progress(self, model: str, done_bytes: int, total_bytes: int) -> list[EmitEvent]:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        tenth = 10 * done_bytes // total_bytes if total_bytes else 0
        if tenth <= self._tenth:
            return []
        self._tenth = tenth
        return [self._event("engine.downloading", model)]

    def ended(self, model: str) -> list[EmitEvent]:
        """All of it is here. Silent where nothing had to be downloaded."""
        events = [self._event("engine.downloaded", model)] if self.total_bytes else []
        self.forget()
        return events

    def forget(self) -> None:
        self.done_bytes = self.total_bytes = 0
        self._tenth = -1

    def _event(self, kind: str, model: str) -> EmitEvent:
        return EmitEvent(kind, {"model": model, "done_bytes": self.done_bytes, "total_bytes": self.total_bytes})
