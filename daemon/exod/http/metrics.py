"""`GET /metrics`: what the daemon and the HTTP API measure, as Prometheus text.

Decides names, units and labels. Every figure of the daemon is read from one snapshot when a scrape comes, so
nothing is kept twice. Only the counts of HTTP itself are kept here.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from exod.alert_table import severity
from exod.daemon_api.counters import DaemonCounters, MetricsSnapshot
from exod.daemon_api.interface import GenerationDelta, TextDelta
from exod.daemon_api.shapes import StatusReport
from exod.http.dialects.openai_answers import STATUS_OF_CODE
from exod.model import EngineState, Health, MeshState, NodeState, PathSnapshot, PathState
from exoengine.protocol import RankFigures

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FIRST_TOKEN_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""From a cached short prompt to the prefill of a long context."""

GAP_BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)
"""From a small model's step to a recovery at its deadline."""

USABLE: Final = (PathState.UP, PathState.DEGRADED)


class HttpMetrics:
    """Has a registry of its own, so that nothing which another library registers globally is shown."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshot(snapshot))
        self._requests = Counter(
            "exod_http_requests", "Answered requests", ("route", "method", "code"), registry=self._registry
        )
        self._refusals = Counter(
            "exod_generation_refusals", "Generations that ended in an error", ("code",), registry=self._registry
        )
        self._open = Gauge("exod_http_open_requests", "Requests under way", registry=self._registry)
        self._first_token_s = Histogram(
            "exod_http_first_token_seconds",
            "From a request to the first token of its answer",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._gap_s = Histogram(
            "exod_http_token_gap_seconds",
            "Between two tokens of one answer",
            buckets=GAP_BUCKETS_S,
            registry=self._registry,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def began(self) -> None:
        self._open.inc()

    def ended(self, route: str, method: str, status: int) -> None:
        self._open.dec()
        self._requests.labels(route, method, str(status)).inc()

    def refused(self, code: str) -> None:
        """A generation ended in an error. Only codes that are known become labels: no peer can make up others."""
        self._refusals.labels(code if code in STATUS_OF_CODE else "other").inc()

    async def timed(self, deltas: AsyncGenerator[GenerationDelta, None]) -> AsyncGenerator[GenerationDelta, None]:
        """Passes the deltas on and times them. Closing it closes `deltas`."""
        last = time.monotonic()
        first = True
        async with aclosing(deltas):
            async for delta in deltas:
                if isinstance(delta, TextDelta):
                    now = time.monotonic()
                    (self._first_token_s if first else self._gap_s).observe(now - last)
                    last, first = now, False
                yield delta


class _Snapshot(Collector):
    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        yield from _node_metrics(snapshot.status)
        yield from _path_metrics(snapshot.status)
        yield from _engine_metrics(snapshot.status)
        yield from _counters(snapshot.counters)
        yield from _queue_metrics(snapshot.counters)
        yield from _rank_metrics(snapshot.status, snapshot.counters.rank)

    def describe(self) -> Iterable[Metric]:
        """Does not read the daemon before the first scrape."""
        return ()


def _node_metrics(status: StatusReport) -> Iterator[Metric]:
    info = GaugeMetricFamily("exod_info", "Who this is", labels=("node", "name", "cluster", "version"))
    info.add_metric((status.node.id, status.node.name, status.cluster.name, status.node.version), 1)
    yield info
    yield _gauge("exod_uptime_seconds", "Since this daemon started", status.node.uptime_s)
    yield _states("exod_health", "1 for the present health", Health, status.health)
    reasons = GaugeMetricFamily(
        "exod_reason", "1 for each reason not to be healthy", labels=("code", "subject", "severity")
    )
    for code, subject in sorted({(reason.code, reason.subject) for reason in status.reasons}):
        reasons.add_metric((code, subject, severity(code)), 1)
    yield reasons
    nodes = GaugeMetricFamily("exod_nodes", "Known nodes, this one included", labels=("state",))
    for state in NodeState:
        nodes.add_metric((state.value,), sum(node.state is state for node in status.nodes))
    yield nodes
    yield _states("exod_mesh_state", "1 for the present state", MeshState, status.mesh.state)
    if status.mesh.epoch is not None:
        yield _gauge("exod_mesh_epoch", "The number of the committed plan's epoch", status.mesh.epoch)
    yield _gauge("exod_mqtt_connected", "1 where connected to a broker", status.mqtt.state == "connected")


def _path_metrics(status: StatusReport) -> Iterator[Metric]:
    agreed = GaugeMetricFamily(
        "exod_link_agreed", "1 where both ends have seen the selection", labels=("peer", "name")
    )
    for link in status.links:
        agreed.add_metric((link.peer, link.peer_name), link.agreed)
    yield agreed
    figures: tuple[tuple[str, str, Callable[[PathSnapshot], float | None]], ...] = (
        ("exod_path_rtt_floor_seconds", "The minimum over the newest window", lambda path: _seconds(path.rtt_ms)),
        ("exod_path_rtt_p90_seconds", "The 90th percentile", lambda path: _seconds(path.rtt_p90_ms)),
        ("exod_path_loss_ratio", "Lost probes, 0 to 1", lambda path: path.loss),
        ("exod_path_selected", "1 for the path in use", lambda path: path.selected),
        (
            "exod_path_usable",
            "1 where up or degraded",
            lambda path: path.state in USABLE,
        ),
    )
    for name, text, figure in figures:
        family = GaugeMetricFamily(name, text, labels=("peer", "name", "path", "interface", "kind"))
        for link in status.links:
            for path in link.paths:
                value = figure(path)
                if value is not None:
                    labels = (link.peer, link.peer_name, path.id, path.interface, path.kind.value)
                    family.add_metric(labels, value)
        yield family


def _engine_metrics(status: StatusReport) -> Iterator[Metric]:
    engine = status.engine
    yield _states("exod_engine_state", "1 for the present state", EngineState, engine.state)
    yield _gauge("exod_engine_sync_safe", "1 where steps are evaluated safely", engine.sync.mode == "safe")
    yield _gauge("exod_engine_requests_active", "Requests being computed", engine.active)
    yield _gauge("exod_engine_requests_waiting", "Requests in the queue", engine.waiting)
    optional = (
        ("exod_engine_tokens_per_second", "The present rate", engine.tokens_per_s),
        (
            "exod_engine_baseline_tokens_per_second",
            "What this plan reached at its best",
            engine.baseline_tokens_per_s,
        ),
        ("exod_engine_last_gap_seconds", "The newest recovery's gap", _seconds(engine.last_gap_ms)),
    )
    for name, text, value in optional:
        if value is not None:
            yield _gauge(name, text, value)


def _counters(counters: DaemonCounters) -> Iterator[Metric]:
    totals: tuple[tuple[str, str, float], ...] = (
        ("exod_datagrams_sent", "Probes sent", counters.datagrams_sent),
        ("exod_datagrams_received", "Probes received and accepted", counters.datagrams_received),
        ("exod_datagrams_rejected", "Datagrams without the key, or replayed", counters.datagrams_rejected),
        ("exod_control_messages_sent", "Messages to peers", counters.control_messages_sent),
        ("exod_control_messages_received", "Messages from peers", counters.control_messages_received),
        ("exod_link_switches", "Changes of a selected path", counters.link_switches),
        ("exod_plans_agreed", "Committed mesh plans", counters.plans_agreed),
        ("exod_engine_recoveries", "Groups formed anew, after a fault or for a move", counters.engine_recoveries),
        ("exod_engine_recovery_seconds", "The sum of the times without a group", counters.engine_recovery_s),
        ("exod_engine_preemptions", "Begun requests that lost their place and waited again", counters.preemptions),
        ("exod_engine_restarts", "Worker processes that were replaced", counters.engine_restarts),
        ("exod_engine_sync_changes", "Changes between fast and safe steps", counters.sync_changes),
        ("exod_engine_gpu_wait_violations", "Fast steps that waited too long", counters.gpu_wait_violations),
        ("exod_prompt_tokens", "Tokens of prompts", counters.prompt_tokens),
        ("exod_cached_prompt_tokens", "Of these, found in the KV cache", counters.cached_tokens),
        ("exod_prompt_cache_hits", "Requests whose prompt began as one in the KV cache", counters.cached_requests),
        ("exod_completion_tokens", "Generated tokens", counters.completion_tokens),
        ("exod_events", "Entries of the event log", counters.events),
        ("exod_mqtt_messages_sent", "Published messages", counters.mqtt_messages_sent),
        ("process_cpu_seconds", "User and system time", counters.cpu_s),
    )
    for name, text, value in totals:
        yield CounterMetricFamily(name, text, value=value)
    yield _gauge("process_resident_memory_bytes", "Resident memory", counters.resident_bytes)
    yield _gauge("process_open_fds", "Open file descriptors", counters.open_descriptors)
    yield _gauge("exod_loop_lag_seconds", "The event loop's worst lateness in a minute", counters.loop_lag_s)


def _queue_metrics(counters: DaemonCounters) -> Iterator[Metric]:
    causes = (
        ("exod_engine_recoveries_by_cause", "Groups formed anew, after a fault or for a move", 0),
        ("exod_engine_recovery_gap_seconds", "The sum of the times without a group, by cause", 1),
    )
    for name, text, at in causes:
        family = CounterMetricFamily(name, text, labels=("cause",))
        for cause, figures in counters.recoveries.items():
            family.add_metric((cause,), figures[at])
        yield family
    buckets = [("+Inf" if math.isinf(end) else str(end), float(count)) for end, count in counters.queue_waits]
    yield HistogramMetricFamily(
        "exod_engine_queue_wait_seconds",
        "From a request's arrival at the coordinator to its beginning",
        buckets=buckets or [("+Inf", 0.0)],
        sum_value=counters.queue_wait_s,
    )


def _rank_metrics(status: StatusReport, figures: RankFigures | None) -> Iterator[Metric]:
    """Of this node's rank in the plan, since its worker started."""
    if figures is None or status.node.id not in status.mesh.ring:
        return
    rank = str(status.mesh.ring.index(status.node.id))
    passes = CounterMetricFamily("exod_rank_passes", "Passes through this rank's stage", labels=("rank", "kind"))
    passes.add_metric((rank, "decode"), figures.passes)
    passes.add_metric((rank, "prefill"), figures.prefill_passes)
    yield passes
    batch = SummaryMetricFamily("exod_rank_batch_sequences", "Sequences in a decode pass", labels=("rank",))
    batch.add_metric((rank,), figures.passes, figures.sequences)
    yield batch
    busy = CounterMetricFamily("exod_rank_stage_seconds", "Time at work on passes", labels=("rank",))
    busy.add_metric((rank,), figures.stage_s)
    yield busy
    text = "Time not at work while requests were open"
    idle = CounterMetricFamily("exod_rank_idle_seconds", text, labels=("rank",))
    idle.add_metric((rank,), figures.idle_s)
    yield idle
    whole_s = figures.stage_s + figures.idle_s
    gauges = (
        (
            "exod_rank_bubble_ratio",
            f"{text}, of all such time: 0 to 1",
            figures.idle_s / whole_s if whole_s else 0.0,
        ),
        ("exod_rank_kv_cache_bytes", "Of the open requests' KV caches", figures.kv_bytes),
        ("exod_rank_prompt_cache_bytes", "Kept of finished requests", figures.prompt_cache_bytes),
    )
    for name, about, value in gauges:
        family = GaugeMetricFamily(name, about, labels=("rank",))
        family.add_metric((rank,), value)
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _states(name: str, text: str, states: type[StrEnum], present: StrEnum) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state in states:
        family.add_metric((state.value,), state is present)
    return family


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
