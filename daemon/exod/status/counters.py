"""Totals since this daemon started, and what its process costs now: all that `GET /metrics` counts.

Counts the events that pass by and asks the parts for their own counters. It decides nothing.
"""

from __future__ import annotations

import resource
from collections import Counter
from typing import Final, Protocol

import psutil

from exod.daemon_api.counters import DaemonCounters
from exod.model import Event
from exod.status.engine_source import EngineSource

CAUSES: Final = ("fault", "move")
"""Of recoveries, as group_history.py has them."""


class DatagramSource(Protocol):
    datagrams_sent: int
    datagrams_received: int
    datagrams_rejected: int

    @property
    def worst_lag_s(self) -> float: ...


class MessageSource(Protocol):
    messages_sent: int
    messages_received: int


class EventCount(Protocol):
    count: int


class MqttSource(Protocol):
    messages_sent: int


class Counters:
    """One for each daemon."""

    def __init__(
        self,
        datagrams: DatagramSource,
        control: MessageSource,
        engine: EngineSource,
        events: EventCount,
        mqtt: MqttSource,
    ) -> None:
        self._datagrams, self._control, self._engine = datagrams, control, engine
        self._events, self._mqtt = events, mqtt
        self._by_type: Counter[str] = Counter()
        self._recovery_s = 0.0
        self._recoveries: dict[str, tuple[int, float]] = dict.fromkeys(CAUSES, (0, 0.0))

    def event_written(self, event: Event) -> None:
        self._by_type[event.type] += 1
        gap_ms = event.data.get("gap_ms")
        if isinstance(gap_ms, float):
            self._recovery_s += gap_ms / 1e3
        cause = event.data.get("cause")
        if event.type == "engine.reformed" and isinstance(gap_ms, float) and cause in CAUSES:
            count, gap_s = self._recoveries[str(cause)]
            self._recoveries[str(cause)] = count + 1, gap_s + gap_ms / 1e3

    def read(self) -> DaemonCounters:
        heartbeat = self._engine.rank.worker.heartbeat
        process, usage = psutil.Process(), resource.getrusage(resource.RUSAGE_SELF)
        return DaemonCounters(
            datagrams_sent=self._datagrams.datagrams_sent,
            datagrams_received=self._datagrams.datagrams_received,
            datagrams_rejected=self._datagrams.datagrams_rejected,
            control_messages_sent=self._control.messages_sent,
            control_messages_received=self._control.messages_received,
            link_switches=self._by_type["link.selected"],
            plans_agreed=self._by_type["mesh.agreed"],
            engine_recoveries=self._by_type["engine.reformed"],
            engine_recovery_s=self._recovery_s,
            engine_restarts=self._engine.rank.worker.restarts,
            sync_changes=self._by_type["engine.sync"],
            gpu_wait_violations=self._engine.rank.sync_watch.violations,
            prompt_tokens=self._engine.prompt_tokens,
            cached_tokens=self._engine.cached_tokens,
            completion_tokens=self._engine.completion_tokens,
            cached_requests=self._engine.cached_requests,
            recoveries=dict(self._recoveries),
            queue_waits=self._engine.scheduler.queue_times.cumulative,
            queue_wait_s=self._engine.scheduler.queue_times.total_s,
            preemptions=self._engine.scheduler.queue_times.preemptions,
            rank=heartbeat.figures if heartbeat is not None else None,
            events=self._events.count,
            mqtt_messages_sent=self._mqtt.messages_sent,
            cpu_s=usage.ru_utime + usage.ru_stime,
            resident_bytes=process.memory_info().rss,
            open_descriptors=process.num_fds(),
            loop_lag_s=self._datagrams.worst_lag_s,
        )
