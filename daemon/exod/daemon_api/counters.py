"""What `GET /metrics` is made from: totals of this daemon and figures of its rank.

Decides nothing: values. Totals only grow; those of a rank begin anew with its worker.
"""

from __future__ import annotations

import msgspec

from exod.daemon_api.shapes import StatusReport
from exoengine.protocol import RankFigures


class DaemonCounters(msgspec.Struct, frozen=True):
    """Totals since this daemon started (they only grow), and what its process costs now."""

    datagrams_sent: int = 0
    datagrams_received: int = 0
    datagrams_rejected: int = 0
    control_messages_sent: int = 0
    control_messages_received: int = 0
    link_switches: int = 0
    plans_agreed: int = 0
    engine_recoveries: int = 0
    engine_recovery_s: float = 0.0
    """How long, in all of them, the rank stood in no group."""
    engine_restarts: int = 0
    sync_changes: int = 0
    """Of this node's rank, between fast and safe steps."""
    gpu_wait_violations: int = 0
    """Fast steps of this node's rank that waited longer for another rank than a GPU's watchdog allows."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cached_requests: int = 0
    """Whose prompt began as one that was in the KV cache."""
    recoveries: dict[str, tuple[int, float]] = {}
    """By cause (`fault`, `move`), how many, and the sum of their gaps in seconds."""
    queue_waits: tuple[tuple[float, int], ...] = ()
    """Of the requests that this node began as coordinator: how many waited up to so many seconds."""
    queue_wait_s: float = 0.0
    preemptions: int = 0
    """Requests that were begun and came back to the queue, as those that began them were lost."""
    rank: RankFigures | None = None
    """None where this node has no worker."""
    events: int = 0
    mqtt_messages_sent: int = 0
    cpu_s: float = 0.0
    resident_bytes: int = 0
    open_descriptors: int = 0
    loop_lag_s: float = 0.0
    """The worst lateness of the event loop in the last minute."""


class MetricsSnapshot(msgspec.Struct, frozen=True):
    """Everything that `GET /metrics` is made from, taken at one moment."""

    status: StatusReport
    counters: DaemonCounters
