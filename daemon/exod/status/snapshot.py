"""What is, and why: this node's picture of the whole cluster, built from its parts for everyone who asks.

Builds the shapes of `daemon_api/shapes.py`. It words and decides nothing about links, plans or ranks, and reading
changes nothing: the one exception, `observe`, starts the clock of a fact that makes the node unhealthy, and only
the app calls it. Times named `at` or `since` are Unix seconds; how long something lasted is measured on the
monotonic clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from exod import VERSION
from exod.config.settings import Config
from exod.core.base.cluster_wish import is_repository
from exod.core.base.facts import EDGE_FAILED, Fact
from exod.core.cluster.jaccl import CabledNode, NotCabledError, meeting_address
from exod.core.cluster.ring_members import goes_on_without
from exod.core.engine.engine_events import RdmaWired
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.engine.rank.sync_watch import wait_text
from exod.core.engine.transport.rdma_wiring import setup_of, stand_in_setup
from exod.core.node import NodeCore
from exod.core.status.health import Downloading, HealthInput, HealthJudge, HealthSnapshot
from exod.core.status.ring_versions import version_facts
from exod.core.status.serving import EngineFacts, ServiceVerdict, serving
from exod.core.status.view import LinkView, NodeView, PathView
from exod.daemon_api.model_lines import DownloadLine, ModelLine, model_line
from exod.daemon_api.peer_reports import NodeReport
from exod.daemon_api.shapes import (
    ClusterSummary,
    CrashLine,
    EdgeLine,
    EngineSummary,
    LinkLine,
    MeshChange,
    MeshHistoryLine,
    MeshSummary,
    MqttSummary,
    NodeLine,
    PreflightCheck,
    RankLine,
    StatusReport,
    SyncMode,
    ThisNode,
)
from exod.model import EngineState, Event, MeshPlan, NodeCard, NodeId, NodeState, PathSnapshot
from exod.plain_text import labels
from exod.platform.host_memory import MemoryReader
from exod.platform.this_host import since_boot_s
from exod.status.engine_source import EngineSource
from exod.status.forecast_lines import forecast_lines, parallel_reason
from exod.status.record import ClusterRecord, PlanChange

CRASHES_SHOWN_S: Final = 3600.0
"""How long the status tells of a crash; the events keep it."""

MAX_CRASHES_SHOWN: Final = 3


class StatusSettings(msgspec.Struct, frozen=True):
    """What the configuration says of things that the status judges by."""

    cluster_name: str
    degraded_ms: float
    engine_enabled: bool
    watchdog_s: float
    sync: str
    """What `engine.sync` says."""
    started_at: float
    """On the clock of `since_boot_s`."""
    data_dir: Path
    plays_rdma: bool = False
    """Is RDMA played by a stand-in?"""

    @classmethod
    def of(cls, config: Config, started_at: float) -> StatusSettings:
        return cls(
            config.cluster.name,
            config.mesh.degraded_ms,
            config.engine.enabled,
            config.engine.watchdog_s,
            config.engine.sync,
            started_at,
            config.node.data_dir,
            config.debug.plays_rdma,
        )


class EventSource(Protocol):
    def recent(self, kind: str, since: float) -> Sequence[Event]: ...


class StatusBuilder:
    """Reads the parts; every method may be called at any time and leaves no trace."""

    def __init__(
        self,
        card: Callable[[], NodeCard],
        settings: StatusSettings,
        record: ClusterRecord,
        core: NodeCore,
        engine: EngineSource,
        events: EventSource,
        mqtt: Callable[[], MqttSummary],
        failed_edges: Callable[[], Sequence[PreflightCheck]],
        api_url: Callable[[], str],
        local_network: Callable[[], str] = str,
        wired: Callable[[], str] = str,
        spare: Callable[[], str] = str,
        found: Sequence[Callable[[], tuple[Fact, ...]]] = (),
    ) -> None:
        """`local_network`: why macOS keeps this node from the others; `wired`: why no rank is started again. Both
        are empty where nothing is wrong. `found`: what other parts of the daemon know to be wrong.
        """
        self._me = card().id
        self._card, self.settings, self.record = card, settings, record
        self._core, self._engine, self._events = core, engine, events
        self._mqtt, self._failed_edges, self._api_url = mqtt, failed_edges, api_url
        self.local_network, self.wired, self.spare, self.found = local_network, wired, spare, found
        self._judge = HealthJudge()
        self.memory = MemoryReader()

    # --- this node, for the others --------------------------------------------------------------------------

    def node_report(self) -> NodeReport:
        """What this node says of itself to the others."""
        return self.report(self.health())

    def report(self, health: HealthSnapshot) -> NodeReport:
        return NodeReport(
            sender=self._me,
            health=health.health,
            reasons=tuple((reason.code, reason.subject, reason.text, reason.since) for reason in health.reasons),
            uptime_s=self._uptime_s(),
            memory_mib=self.memory.read().used_bytes >> 20,
            thunderbolt=self.record.thunderbolt,
            wall=time.time(),
            hears=tuple(
                (peer, link.peer.name)
                for peer, link in self._core.links.items()
                if link.liveness.state is not NodeState.DOWN
            ),
            files_port=self.record.files_port,
            pulls=self.record.pulls,
            fetches=self.record.fetches,
        )

    def _uptime_s(self) -> float:
        return round(since_boot_s() - self.settings.started_at, 1)

    def card_of(self, node: NodeId) -> NodeCard | None:
        """None for a node that is not known."""
        if node == self._me:
            return self._card()
        link = self._core.links.get(node)
        return link.peer if link is not None else None

    def cabled_nodes(self) -> tuple[CabledNode, ...]:
        """The ranks of the plan, in its order, with their Thunderbolt ports as each last reported them."""
        plan = self.view().mesh.plan
        found = []
        for node in plan.ring if plan is not None else ():
            card, report = self.card_of(node), self.record.report(node)
            ports = report.thunderbolt if report is not None else ()
            if card is not None:
                own = self.record.thunderbolt if node == self._me else ports
                found.append(CabledNode(card.name, meeting_address(card), own))
        return tuple(found)

    # --- the parts of the status ----------------------------------------------------------------------------

    def view(self) -> NodeView:
        view = self._core.view(time.monotonic())
        live = [node.id for node in view.nodes if node.state is not NodeState.DOWN and not node.is_self]
        told = [(node, report.hears) for node in live if (report := self.record.report(node)) and report.hears]
        return msgspec.structs.replace(view, hearings=tuple(told))

    def names(self) -> dict[NodeId, str]:
        """What nodes are called in texts for people."""
        known = {self._me: self._card().name} | {peer: one.peer.name for peer, one in self._core.links.items()}
        told = {node: name for report in self.record.reports() for node, name in report.hears}
        return labels((told | known).items())

    def named(self, text: str) -> str:
        """Node ids in a text for people become names."""
        names = self.names()
        return re.sub(r"\b[0-9a-f]{16}\b", lambda match: names.get(NodeId(match[0]), match[0]), text)

    def health(self, view: NodeView | None = None) -> HealthSnapshot:
        """As it is now. How long a fact has lasted is known only of those that `observe` has seen."""
        return self._judge.judge(self._health_input(view or self.view()), time.monotonic(), time.time())

    def observe(self, view: NodeView) -> HealthSnapshot:
        """The same, and from now on it is known that these facts hold: the one who owns the refresh calls it."""
        return self._judge.observe(self._health_input(view), time.monotonic(), time.time())

    def _health_input(self, view: NodeView) -> HealthInput:
        mqtt = self._mqtt()
        return HealthInput(
            view=view,
            degraded_ms=self.settings.degraded_ms,
            engine=self.engine_facts(),
            gpu_waits=self._gpu_waits(),
            downloads=self.downloads(),
            edge_of=self._failed_edge()[0],
            mqtt_text=mqtt.text if mqtt.state == "connecting" else "",
            wired_text=self.wired(),
            found=(
                *self.record.found,
                *version_facts(self.rank_statuses(), self.names()),
                *(fact for part in self.found for fact in part()),
            ),
        )

    def engine_facts(self) -> EngineFacts:
        """What says whether a request would be answered now, for everyone who is asked."""
        engine, wish = self.engine(), self._card().wish
        return EngineFacts(
            state=engine.state,
            text=engine.text,
            downloading=bool(engine.downloads),
            draining=self._engine.scheduler.draining or (wish is not None and wish.draining),
            waiting=self._engine.scheduler.waiting,
            edge_text=self._failed_edge()[1],
            local_network_text=self.local_network(),
        )

    def serving(self) -> ServiceVerdict:
        return serving(self.engine_facts())

    def _failed_edge(self) -> tuple[NodeId | None, str]:
        """Which node of the ring found what wrong with an edge of its own; an empty text where nothing is."""
        own = "; ".join(f"{check.subject}: {check.text}" for check in self._failed_edges())
        if own:
            return self._me, own
        plan = self._engine.plan
        for node in plan.ring if plan is not None else ():
            report = self.record.report(node) if node != self._me else None
            for code, subject, text, _ in report.reasons if report is not None else ():
                if code == EDGE_FAILED and subject == node:
                    return node, text
        return None, ""

    def status(self) -> StatusReport:
        card, view = self._card(), self.view()
        health = self.health(view)
        return StatusReport(
            node=ThisNode(self._me, card.name, card.incarnation, VERSION, self._uptime_s()),
            health=health.health,
            reasons=health.reasons,
            notes=health.notes,
            cluster=ClusterSummary(
                self.settings.cluster_name, sum(node.state is not NodeState.DOWN for node in view.nodes)
            ),
            nodes=self.node_lines(view),
            links=tuple(self._link_line(link) for link in view.links),
            mesh=self.mesh(),
            engine=self.engine(),
            mqtt=self._mqtt(),
            crashes=self.crashes(),
            api=self._api_url(),
            models=self.model_lines(view),
        )

    def model_lines(self, view: NodeView) -> tuple[ModelLine, ...]:
        """What each node that is there has of the models that people asked for."""
        names, lines = self.names(), []
        for node in view.nodes:
            report = self.record.report(node.id)
            fetches = report.fetches if report is not None and node.state is not NodeState.DOWN else ()
            for fetch in self.record.fetches if node.is_self else fetches:
                lines.append(model_line(node.id, names.get(node.id, node.id), fetch))
        return tuple(lines)

    def crashes(self) -> tuple[CrashLine, ...]:
        recent = self._events.recent("crash.seen", since=time.time() - CRASHES_SHOWN_S)
        return tuple(
            CrashLine(event.ts, str(event.data.get("text")), str(event.data.get("cure")))
            for event in reversed(recent[-MAX_CRASHES_SHOWN:])
        )

    def node_lines(self, view: NodeView) -> tuple[NodeLine, ...]:
        return tuple(
            NodeLine(node.id, node.name, node.state, node.is_self, node.incarnation, node.version, node.left)
            for node in view.nodes
        )

    def _link_line(self, link: LinkView) -> LinkLine:
        paths = tuple(_rounded(path_as(PathSnapshot, path, link)) for path in link.paths)
        return LinkLine(link.peer, link.peer_name, link.agreed, link.selected, link.seq, paths)

    def mesh(self) -> MeshSummary:
        mesh = self.view().mesh
        plan = mesh.plan
        last = self.record.history[-1] if self.record.history else None
        return MeshSummary(
            state=mesh.state,
            epoch=plan.epoch.number if plan is not None else None,
            coordinator=mesh.coordinator,
            plan=plan.hash if plan is not None else None,
            ring=plan.ring if plan is not None else (),
            names={node: self.names()[node] for node in (plan.ring if plan else ()) if node in self.names()},
            edges=tuple(
                EdgeLine(
                    edge.source,
                    edge.target,
                    edge.source_interface,
                    edge.kind,
                    f"{edge.target_address}:{edge.target_port}",
                )
                for edge in (plan.edges if plan is not None else ())
            ),
            last_change=MeshChange(
                last.at, self.named(last.reason), rounded(last.detect_ms), rounded(last.agree_ms)
            )
            if last
            else None,
        )

    def _told(self, change: PlanChange) -> MeshChange:
        return MeshChange(change.at, self.named(change.reason), rounded(change.detect_ms), rounded(change.agree_ms))

    def mesh_history(self) -> tuple[MeshHistoryLine, ...]:
        return tuple(
            MeshHistoryLine(
                at=change.at,
                epoch=change.plan.epoch.number,
                plan=change.plan.hash,
                coordinator=change.plan.coordinator,
                ring=change.plan.ring,
                reason=self.named(change.reason),
                detect_ms=change.detect_ms,
                agree_ms=change.agree_ms,
            )
            for change in self.record.history
        )

    # --- the engine -----------------------------------------------------------------------------------------

    def engine(self) -> EngineSummary:
        host = self._engine
        plan = host.plan
        statuses = self.rank_statuses()
        state = self._engine_state(statuses)
        own = host.statuses.get(self._me)
        figures = own if own is not None and plan is not None and self._me in plan.ring else None
        figures = figures or next((status for status in statuses if status is not None), None)
        text = "" if state in (EngineState.READY, EngineState.GENERATING, EngineState.OFF) else host.trouble()
        downloads = self.downloads()
        if downloads and state in (EngineState.LOADING, EngineState.RECOVERING):
            text = "; ".join(f"{one.node} {one.text()}" for one in downloads)
        # Each rank measures a slightly different rate: all nodes tell the first rank's.
        first = statuses[0] if statuses and statuses[0] is not None else figures
        active = sum(len(status.under_way) for status in statuses[:1] if status is not None)
        return EngineSummary(
            state=state,
            model=plan.model if plan is not None and plan.model else self._card().model or None,
            ranks=tuple(
                RankLine(status.sender, rank, status.layers, status.pid or None, status.restarts, status.parts)
                for rank, status in enumerate(statuses)
                if status is not None and status.layers is not None
            ),
            sync=SyncMode(figures.sync_mode, figures.sync_reason) if figures else SyncMode("safe", "no rank yet"),
            tokens_per_s=positive(first.tokens_per_s) if first and state is EngineState.GENERATING else None,
            baseline_tokens_per_s=positive(first.baseline_tokens_per_s) if first else None,
            last_gap_ms=positive(figures.last_gap_ms) if figures else None,
            text=self.named(text),
            parallel="tensor" if any(one is not None and one.parts > 1 for one in statuses) else "pipeline",
            active=active,
            waiting=host.scheduler.waiting,
            requests_active=active,
            requests_waiting=host.scheduler.waiting,
            spare=self.spare(),
            downloads=tuple(DownloadLine(one.node, one.done_bytes, one.total_bytes) for one in downloads),
            forecasts=forecast_lines(host, self.named, figures.tokens_per_s if figures else 0.0),
            parallel_reason=self.named(parallel_reason(host)),
            transport="rdma" if any(one is not None and one.over_rdma for one in statuses) else "tcp",
            transport_reason=self._transport_reason(),
        )

    def _transport_reason(self) -> str:
        """The coordinator decides; a node that asks for RDMA is told where that one has nothing to say."""
        host = self._engine
        told = host.statuses.get(host.plan.coordinator) if host.plan is not None else None
        return self.named(told.transport_text) if told is not None else ""

    def rdma_wiring(self) -> RdmaWired:
        """What the plan's ranks need for RDMA."""
        plan = self._engine.plan
        if plan is None or len(plan.ring) < 2:
            return RdmaWired("", None, "there is no other rank")
        try:
            setup = stand_in_setup(plan) if self.settings.plays_rdma else setup_of(plan, self.cabled_nodes())
        except NotCabledError as error:
            return RdmaWired(plan.hash, None, str(error))
        return RdmaWired(plan.hash, setup, "")

    def downloads(self) -> tuple[Downloading, ...]:
        """The ranks of the plan whose model is not here yet. One that is embedded, or a folder here, takes a moment
        to be read, which is no download.
        """
        return tuple(
            Downloading(status.sender, status.model, status.download_done, status.download_total)
            for status in self.rank_statuses()
            if status is not None
            and status.phase is RankPhase.RESOLVING
            and (status.download_total or is_repository(status.model))
        )

    def rank_statuses(self) -> list[RankStatus | None]:
        """The newest status of each rank, under whichever plan: layers and pids outlive plans."""
        host = self._engine
        return [host.statuses.get(node) for node in host.plan.ring] if host.plan is not None else []

    def _gpu_waits(self) -> tuple[tuple[NodeId, str], ...]:
        """Each node tells of its own rank."""
        own, limit_s = self._engine.statuses.get(self._me), self.settings.watchdog_s
        if own is None or not own.gpu_waited_s:
            return ()
        return ((self._me, wait_text(own.gpu_waited_s, limit_s, self.settings.sync)),)

    def _engine_state(self, statuses: list[RankStatus | None]) -> EngineState:
        host = self._engine
        plan = host.plan
        if plan is None:
            hosts = self.settings.engine_enabled and self._card().engine
            return EngineState.LOADING if hosts and self._card().model else EngineState.OFF
        if not plan.model or not plan.ring:
            return EngineState.OFF
        current = [status for status in statuses if status is not None and status.plan_hash == plan.hash]
        known = {status.sender for status in current}
        awaited = [node for node in plan.ring if node not in known and not self._is_deaf_to(node)]
        failed = [status for status in current if status.has_failed]
        if host.disagreement() or (failed and not self._is_replanned(plan, current, bool(awaited))):
            return EngineState.FAILED
        formed = bool(current) and not awaited and all(one.phase is RankPhase.FORMED for one in current)
        if formed and not host.suspended:
            generating = any(status.generating for status in current)
            return EngineState.GENERATING if generating else EngineState.READY
        return EngineState.RECOVERING if self.record.served_model == plan.model else EngineState.LOADING

    def _is_replanned(self, plan: MeshPlan, current: Sequence[RankStatus], others_look: bool) -> bool:
        """Is a plan without the ranks that failed on its way, or may it be? A request waits for it."""
        cards = {one.id: card for one in plan.members if (card := self.card_of(one.id)) is not None and card.engine}
        failed = [status for status in current if status.has_failed]
        # A card follows its rank's status by a moment.
        told = all(one.newly_unfit or (one.sender in cards and cards[one.sender].unfit) for one in failed)
        others_look |= any(one.phase is RankPhase.RESOLVING and one not in failed for one in current)
        return told and goes_on_without([one.sender for one in failed], cards, plan.model, others_look=others_look)

    def _is_deaf_to(self, node: NodeId) -> bool:
        """A rank that this node cannot hear tells it nothing; the group stands where the others say so."""
        link = self._core.links.get(node)
        return node != self._me and (link is None or link.liveness.state is NodeState.DOWN)


P = TypeVar("P", bound=PathSnapshot)


def path_as(shape: type[P], path: PathView, link: LinkView) -> P:
    """`path` in the shape of a report: fields by name; `why` names interfaces, not path ids."""
    taken = msgspec.convert(path, shape, from_attributes=True)
    return msgspec.structs.replace(taken, why=with_interfaces(path.why, link))


def _rounded(path: PathSnapshot) -> PathSnapshot:
    """For people."""
    return msgspec.structs.replace(
        path, rtt_ms=rounded(path.rtt_ms), rtt_p90_ms=rounded(path.rtt_p90_ms), loss=round(path.loss, 4)
    )


def with_interfaces(text: str, link: LinkView) -> str:
    """The ids of the link's paths in a text for people become the names of this end's interfaces."""
    for path in link.paths:
        text = text.replace(path.id, path.interface)
    return text


def rounded(milliseconds: float | None) -> float | None:
    """To a microsecond: what stands behind it is noise."""
    return round(milliseconds, 3) if milliseconds is not None else None


def positive(value: float) -> float | None:
    """0 stands for not measured yet."""
    return round(value, 2) if value > 0 else None
