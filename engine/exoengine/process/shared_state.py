"""What the MLX thread and the control thread of a worker share: flags one way, figures the other.

Owns no policy. Every attribute has one writer, and a reader may see it a moment late; what must not be torn is
behind the lock.
"""

from __future__ import annotations

import threading
import time
from typing import Final, Literal

from exoengine.protocol import Heartbeat, RankFigures

State = Literal["empty", "loading", "loaded", "prepared", "forming", "ready", "generating", "aborted", "leaving"]


LONG_STEP_S: Final = 0.5
"""What takes less is far from any deadline."""


class SharedState:
    """The control thread reads the figures for heartbeats and enforces the deadline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.state: State = "empty"
        self.step = 0
        self.safe = True
        self.sync_reason = ""
        self.tokens_per_s = 0.0
        self.baseline_tokens_per_s = 0.0
        self.last_gap_ms = 0.0
        self.token_at: float | None = None
        """When the last token came of a request that is open; it outlives a load of other layers."""
        self.kv_tokens = 0
        self.memory_bytes = 0
        self.longest_gpu_wait_s = 0.0
        self.gpu_wait_violations = 0
        self.replayed_tokens = 0
        self.positions: tuple[tuple[int, int], ...] = ()
        self.prefilling = False
        self.figures = RankFigures()
        self.uses_processor = False
        """Did this process, since the control thread looked last?"""
        self._keep_until = 0.0
        self._what = ""
        self._begun: float | None = None
        self._until: float | None = None

    def begin(self, what: str, deadline_s: float) -> None:
        """The MLX thread starts something that must end within `deadline_s`."""
        with self._lock:
            self._what, self._begun = what, time.monotonic()
            self._until = self._begun + deadline_s

    def end(self) -> None:
        with self._lock:
            self._begun = self._until = None

    @property
    def begun(self) -> float | None:
        """When what goes on now began, monotonic; None where nothing does."""
        return self._begun

    def keep_waiting(self, for_s: float) -> None:
        """Some rank is seen to compute: until then nothing is overdue."""
        self._keep_until = time.monotonic() + for_s

    def overdue(self) -> str | None:
        """What is past its deadline, said once."""
        now = time.monotonic()
        with self._lock:
            if self._until is None or self._begun is None or now < max(self._until, self._keep_until):
                return None
            self._until = None
            return f"{self._what} took longer than {now - self._begun:.1f} s"

    def heartbeat(self) -> Heartbeat:
        with self._lock:
            in_step_s = time.monotonic() - self._begun if self._begun is not None else 0.0
        return Heartbeat(
            state=self.state,
            step=self.step,
            in_step_s=in_step_s,
            positions=self.positions,
            prefilling=self.prefilling,
            figures=self.figures,
            computing=in_step_s >= LONG_STEP_S and self.uses_processor,
            sync_mode="safe" if self.safe else "fast",
            sync_reason=self.sync_reason,
            tokens_per_s=self.tokens_per_s,
            baseline_tokens_per_s=self.baseline_tokens_per_s,
            last_gap_ms=self.last_gap_ms,
            kv_tokens=self.kv_tokens,
            memory_bytes=self.memory_bytes,
            longest_gpu_wait_s=self.longest_gpu_wait_s,
            replayed_tokens=self.replayed_tokens,
            gpu_wait_violations=self.gpu_wait_violations,
        )
