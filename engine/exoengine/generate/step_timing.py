"""How fast tokens come, and from that how long a step may take before it counts as hung.

Decides: deadlines, the figures of the heartbeat, and how long a fault held up the tokens. Reads the monotonic
clock.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from exoengine.protocol import SyncSettings

DEADLINE_FACTOR: Final = 8.0
"""A step this many times as long as the longest of the recent ones is a hang; a noisy machine stays well below."""

RECENT_STEPS: Final = 32
"""Over how many tokens speed is measured: about a second of a usual generation."""


class Pace:
    def __init__(self, settings: SyncSettings) -> None:
        self._settings = settings
        self._steps_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._chunks_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._chunk_token_s: deque[float] = deque(maxlen=2)
        self._chunk_end: int | None = None
        self._last: float | None = None
        self._last_token: float | None = None
        self._interrupted = False
        self._gap_ms = 0.0
        self._opened: float | None = None
        self._decoding_since: float | None = None
        self.baseline_tokens_per_s = 0.0

    @property
    def step_deadline_s(self) -> float:
        """A step after a long prefill is never as long as one of its chunks, but it may be longer than usual."""
        usual = max((*self._steps_s, *self._chunks_s), default=0.0)
        return max(self._settings.step_deadline_s, DEADLINE_FACTOR * usual)

    @property
    def chunk_deadline_s(self) -> float:
        usual = max((*self._steps_s, *self._chunks_s), default=0.0)
        return max(self._settings.chunk_deadline_s, DEADLINE_FACTOR * usual)

    @property
    def chunk_token_s(self) -> float:
        """What the slowest stage takes for each token of a chunk; 0 where it is not known. The lower of the last
        two figures: one chunk that something held up says nothing.
        """
        return min(self._chunk_token_s, default=0.0)

    @property
    def tokens_per_s(self) -> float:
        total = sum(self._steps_s)
        return len(self._steps_s) / total if total > 0 else 0.0

    def opened(self, tokens: int) -> None:
        """A request was opened; with `tokens` of its answer known it goes on after a fault, here or elsewhere."""
        now = time.monotonic()
        self._last, self._chunk_end = now, None
        if not self._interrupted:
            self._opened, self._decoding_since, self._last_token = now if tokens == 0 else None, None, None

    def interrupted(self, active: bool) -> None:
        """The group is gone: the next token of an active request ends a gap."""
        self._interrupted = active and self._last_token is not None
        self._last = None

    def token(self) -> float:
        """A token is here; gives the milliseconds that the last fault held up the tokens."""
        now = time.monotonic()
        if self._decoding_since is None:
            self._decoding_since = now
        elif self._last is not None and not self._interrupted:
            self._steps_s.append(now - self._last)
            if len(self._steps_s) == RECENT_STEPS:
                self.baseline_tokens_per_s = max(self.baseline_tokens_per_s, self.tokens_per_s)
        if self._interrupted and self._last_token is not None:
            self._gap_ms = (now - self._last_token) * 1000
            self._interrupted = False
        self._last = self._last_token = now
        return self._gap_ms

    def chunk(self, end: int | None) -> None:
        """A pass of the prefill is through all stages: a new chunk up to position `end`, or one that was run again.
        A new one behind another came as fast as the slowest stage works.
        """
        now = time.monotonic()
        if self._last is not None:
            self._chunks_s.append(now - self._last)
            if end is not None and self._chunk_end is not None:
                self._chunk_token_s.append((now - self._last) / (end - self._chunk_end))
        self._last, self._chunk_end = now, end

    def durations_s(self) -> tuple[float, float]:
        """Of the open request: until its first token, and since; zeros where this rank was not there for all."""
        if self._opened is None:
            return 0.0, 0.0
        now = time.monotonic()
        since = self._decoding_since if self._decoding_since is not None else now
        return since - self._opened, now - since
