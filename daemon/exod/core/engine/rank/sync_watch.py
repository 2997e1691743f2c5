"""What a worker's heartbeats say about the mode of its steps, made into events: each change of the mode, and each
graph that, as far as is known, waited for another rank longer than a GPU's watchdog allows.

Decides how often the latter is reported, and for how long it counts.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_events import EmitEvent, NodeCable, TellWorker
from exoengine.protocol import Heartbeat, LinkHealth

REPORT_EVERY_S: Final = 30.0
"""With forced fast steps every step may break the limit: the first is reported at once, the rest now and then."""

COUNTS_FOR_S: Final = 30.0
"""What was seen so long ago is history: a rank that had been stopped is long answering by then, and one that still
waits is seen again."""


class SyncWatch:
    def __init__(self, watchdog_s: float, sync: str = "dynamic") -> None:
        self._limit_s, self._sync = watchdog_s, sync
        self._before: Heartbeat | None = None
        self._unreported = 0
        self._reported_at: float | None = None
        self._seen_at: float | None = None
        self.violations = 0
        """In this daemon's life."""
        self.waited_s = 0.0
        """The longest wait beyond the limit of late; 0 where there was none."""

    def heard(self, heartbeat: Heartbeat, now: float) -> list[EmitEvent]:
        before, self._before = self._before, heartbeat
        emitted = []
        if before is not None and before.sync_mode != heartbeat.sync_mode:
            change = {
                "mode": heartbeat.sync_mode,
                "reason": heartbeat.sync_reason,
                "kv_tokens": heartbeat.kv_tokens,
            }
            emitted.append(EmitEvent("engine.sync", change))
        known = before.gpu_wait_violations if before is not None else 0
        if heartbeat.gpu_wait_violations > known:
            self._unreported += heartbeat.gpu_wait_violations - known
            self.violations += heartbeat.gpu_wait_violations - known
            self._seen_at, self.waited_s = now, heartbeat.longest_gpu_wait_s
        elif self._seen_at is not None and now - self._seen_at > COUNTS_FOR_S:
            self._seen_at, self.waited_s = None, 0.0
        if self._unreported and (self._reported_at is None or now - self._reported_at >= REPORT_EVERY_S):
            emitted.append(EmitEvent("engine.watchdog", self._violations(heartbeat)))
            self._reported_at, self._unreported = now, 0
        return emitted

    def gone(self) -> None:
        """Another process follows: its counts begin anew."""
        self._before = None

    def _violations(self, heartbeat: Heartbeat) -> dict[str, object]:
        return {
            "steps": self._unreported,
            "waited_s": round(heartbeat.longest_gpu_wait_s, 3),
            "limit_s": self._limit_s,
            "text": wait_text(heartbeat.longest_gpu_wait_s, self._limit_s, self._sync),
        }


def wait_text(waited_s: float, limit_s: float, sync: str = "dynamic") -> str:
    """`sync` is what the configuration says: so nobody is advised to set what is set."""
    cure = 'set engine.sync = "dynamic"' if sync == "fast" else "exoctl links shows which path is slow"
    return (
        f"a fast step waited up to {waited_s:.1f} s for another rank; a GPU's watchdog ends the process at "
        f"{limit_s:g} s: {cure}"
    )


class LinkTold:
    """Whether the links of this rank's edges are healthy, as its worker was told last.

    Where they are not, its steps are safe. It keeps that with its model, so it is told again after a load.
    """

    def __init__(self) -> None:
        self._health: LinkHealth | None = None
        self.cables: tuple[NodeCable, ...] = ()
        """Further ones to its neighbours, which are told with the next group."""

    def changed(self, healthy: bool, reason: str, cables: tuple[NodeCable, ...] = ()) -> bool:
        """False where the health was told already."""
        self.cables = cables
        before, self._health = self._health, LinkHealth(healthy, reason)
        return self._health != before

    def for_worker(self) -> list[TellWorker]:
        """Empty while nothing is known."""
        return [TellWorker(self._health)] if self._health is not None else []
