"""What is, and why: this node's picture of the whole cluster, from its parts, for everyone.

`refresh` looks at the core once and passes on what follows (warm connections, the rank's link health, MQTT,
reports to peers); the rest builds the shapes of `reports.py`. Decides nothing that is not wording. Called by
`app.py` at each change, and by `answers.py`.
"""

from __future__ import annotations

import re
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import psutil

from exod import VERSION
from exod.core.cluster.jaccl import CabledNode, meeting_address
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.engine.sync_watch import wait_text
from exod.core.status.alerts import Alerts
from exod.core.status.health import EDGE_FAILED, Downloading, HealthInput, HealthJudge, HealthSnapshot, severity
from exod.core.status.view import LinkView, NodeView
from exod.daemon_api import mqtt_view
from exod.daemon_api.peer_reports import NodeReport
from exod.daemon_api.shapes import (
    ClusterSummary,
    CrashLine,
    DownloadLine,
    EdgeLine,
    EngineSummary,
    LinkLine,
    MeshChange,
    MeshHistoryLine,
    MeshSummary,
    NodeLine,
    PathLine,
    RankLine,
    StatusReport,
    SyncMode,
    ThisNode,
)
from exod.model import EngineState, Health, MeshPlan, NodeId, NodeState, PathState, Reason, ThunderboltPort
from exod.peers.control_plane import Target

if TYPE_CHECKING:
    from exod.app import Daemon

MAX_MESH_HISTORY: Final = 128
"""Plans that are remembered for `exoctl mesh`: a day of a cluster whose cable is played with."""

CRASHES_SHOWN_S: Final = 3600.0
"""How long the status tells of a crash; the events keep it."""

MAX_CRASHES_SHOWN: Final = 3

_USABLE: Final = (PathState.UP, PathState.DEGRADED, PathState.INIT)
_STATE_ORDER: Final = {PathState.UP: 0, PathState.DEGRADED: 1, PathState.INIT: 2, PathState.DEAD: 3}


class PlanChange(msgspec.Struct, frozen=True):
    plan: MeshPlan
    at: float
    """Unix seconds."""
    reason: str
    detect_ms: float | None
    agree_ms: float | None
    """None for a plan of one node: there is nobody to agree with."""


class Situation:
    """The picture, and who is told of it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._me = daemon.card.id
        self._judge = HealthJudge()
        self._alerts = Alerts()
        self._reports: dict[NodeId, NodeReport] = {}
        self._told: tuple[Health, tuple[tuple[str, str], ...]] | None = None
        self._dead: set[tuple[NodeId, str]] = set()
        self.thunderbolt: tuple[ThunderboltPort, ...] = ()
        """This host's receptacles; set by the app when interfaces change."""
        self.history: deque[PlanChange] = deque(maxlen=MAX_MESH_HISTORY)
        self._served_model = ""
        """The model that was served last: what follows is a recovery, not a first load."""

    # --- passing on -----------------------------------------------------------------------------------------

    def plan_changed(self, change: PlanChange) -> None:
        self.history.append(change)

    def peer_report(self, peer: NodeId, report: NodeReport) -> None:
        if report.sender == peer:
            self._reports[peer] = report
            self._daemon.refresh_soon()

    def refresh(self) -> None:
        """Looks once and passes on what follows."""
        daemon, view = self._daemon, self.view()
        for link in view.links:
            self._warm_paths(view, link)
        for node in view.nodes:
            daemon.control.doubt(node.id, node.state is NodeState.SUSPECT)
            if node.state is NodeState.DOWN and node.id in daemon.engine.statuses:
                daemon.engine.peer_lost(node.id)
        daemon.engine.link_health(*self._link_health(view))
        health = self.health(view)
        for event in self._alerts.changes(health, self._told_by_rank()):
            daemon.events.write(event)
        daemon.mqtt.update(self._mqtt_view(view, health))
        told = (health.health, tuple((reason.code, reason.subject) for reason in health.reasons))
        if told != self._told:
            self._told = told
            daemon.control.broadcast(self._report(health))

    def _told_by_rank(self) -> frozenset[str]:
        """This node's own rank tells its failure by its cause."""
        own = self._daemon.engine.statuses.get(self._me)
        return frozenset({"engine_failed"} if own is not None and own.phase is RankPhase.FAILED else ())

    def _warm_paths(self, view: NodeView, link: LinkView) -> None:
        """Connections for control messages on every path that works, best first; none on one that died."""
        control = self._daemon.control
        usable = [path for path in link.paths if path.state in _USABLE]
        usable.sort(key=lambda path: (not path.selected, _STATE_ORDER[path.state], path.score_ms or 1e9))
        card = self._daemon.driver.core.links[link.peer].peer
        control.set_paths(
            link.peer, tuple(Target(path.remote, card.mesh_port, path.local, path.interface) for path in usable)
        )
        for path in link.paths:
            key = (link.peer, path.id)
            if path.state is not PathState.DEAD:
                self._dead.discard(key)
            elif key not in self._dead:
                self._dead.add(key)
                control.path_died(link.peer, path.local, path.remote)

    def _link_health(self, view: NodeView) -> tuple[bool, str]:
        """Are the edges of this node's rank agreed and healthy?"""
        plan = view.mesh.plan
        if plan is None or view.mesh.suspended:
            return False, view.mesh.suspended or "no plan is agreed"
        for edge in plan.edges:
            if self._me not in (edge.source, edge.target):
                continue
            peer = edge.target if edge.source == self._me else edge.source
            link = next((link for link in view.links if link.peer == peer), None)
            path = next((path for path in link.paths if path.id == edge.path), None) if link else None
            if link is None or path is None or not link.agreed:
                return False, f"the ends of {edge.path} are not agreed"
            if path.state is not PathState.UP:
                return False, f"{path.interface} is {path.state}"
        return True, ""

    def node_report(self) -> NodeReport:
        """What this node says of itself to the others."""
        return self._report(self.health())

    def _report(self, health: HealthSnapshot) -> NodeReport:
        return NodeReport(
            sender=self._me,
            health=health.health,
            reasons=tuple((reason.code, reason.subject, reason.text, reason.since) for reason in health.reasons),
            uptime_s=round(time.time() - self._daemon.started_at, 1),
            memory_mib=psutil.virtual_memory().used >> 20,
            thunderbolt=self.thunderbolt,
        )

    def cabled_nodes(self) -> tuple[CabledNode, ...]:
        """The ranks of the plan, in its order, with their Thunderbolt ports as each last told them."""
        links, plan = self._daemon.driver.core.links, self.view().mesh.plan
        found = []
        for node in plan.ring if plan is not None else ():
            card = links[node].peer if node in links else self._daemon.card
            report = self._reports.get(node)
            ports = self.thunderbolt if node == self._me else report.thunderbolt if report is not None else ()
            found.append(CabledNode(card.name, meeting_address(card), ports))
        return tuple(found)

    # --- the parts of the status ----------------------------------------------------------------------------

    def view(self) -> NodeView:
        return self._daemon.driver.core.view(time.monotonic())

    def names(self) -> dict[NodeId, str]:
        links = self._daemon.driver.core.links
        return {self._me: self._daemon.card.name, **{peer: link.peer.name for peer, link in links.items()}}

    def named(self, text: str) -> str:
        """Node ids in a text for people become names."""
        names = self.names()
        return re.sub(r"\b[0-9a-f]{16}\b", lambda match: names.get(NodeId(match[0]), match[0]), text)

    def health(self, view: NodeView | None = None) -> HealthSnapshot:
        view = view or self.view()
        engine = self.engine()
        config = self._daemon.config
        configured_broker = config.mqtt.broker not in ("auto", "embedded", "off")
        mqtt = self._daemon.mqtt.status
        return self._judge.judge(
            HealthInput(
                view=view,
                degraded_ms=config.mesh.degraded_ms,
                engine_enabled=config.engine.enabled,
                engine_state=engine.state,
                engine_text=engine.text,
                gpu_waits=self._gpu_waits(),
                downloads=self.downloads(),
                edge_text="; ".join(f"{check.subject}: {check.text}" for check in self._daemon.edge_watch.failed),
                mqtt_text=mqtt.text if configured_broker and mqtt.state != "connected" else "",
            ),
            now=time.monotonic(),
            wall=time.time(),
        )

    def failed_edge(self) -> str:
        """What a node of the ring found wrong with an edge of the plan; empty where nothing is."""
        plan, found = self._daemon.engine.plan, [(one.code, one.text) for one in self.health().reasons]
        for node in plan.ring if plan is not None else ():
            if node != self._me and node in self._reports:
                found += [(code, text) for code, _, text, _ in self._reports[node].reasons]
        return next((text for code, text in found if code == EDGE_FAILED), "")

    def status(self) -> StatusReport:
        daemon, view = self._daemon, self.view()
        health = self.health(view)
        return StatusReport(
            node=ThisNode(
                id=self._me,
                name=daemon.card.name,
                incarnation=daemon.card.incarnation,
                version=VERSION,
                uptime_s=round(time.time() - daemon.started_at, 1),
            ),
            health=health.health,
            reasons=health.reasons,
            cluster=ClusterSummary(
                daemon.config.cluster.name, sum(node.state is not NodeState.DOWN for node in view.nodes)
            ),
            nodes=self.node_lines(view),
            links=tuple(self._link_line(link) for link in view.links),
            mesh=self.mesh(),
            engine=self.engine(),
            mqtt=daemon.mqtt.status,
            crashes=self.crashes(),
            api=daemon.http.url,
        )

    def crashes(self) -> tuple[CrashLine, ...]:
        recent = self._daemon.events.recent("crash.seen", since=time.time() - CRASHES_SHOWN_S)
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
        paths = tuple(
            PathLine(
                id=path.id,
                interface=path.interface,
                kind=path.kind,
                local=path.local,
                remote=path.remote,
                state=path.state,
                rtt_ms=_rounded(path.rtt_ms),
                rtt_p90_ms=_rounded(path.rtt_p90_ms),
                loss=round(path.loss, 4),
                selected=path.selected,
                why=with_interfaces(path.why, link),
            )
            for path in link.paths
        )
        return LinkLine(link.peer, link.peer_name, link.agreed, link.selected, link.seq, paths)

    def mesh(self) -> MeshSummary:
        mesh = self.view().mesh
        plan = mesh.plan
        last = self.history[-1] if self.history else None
        return MeshSummary(
            state=mesh.state,
            epoch=plan.epoch.number if plan is not None else None,
            coordinator=mesh.coordinator,
            plan=plan.hash if plan is not None else None,
            ring=plan.ring if plan is not None else (),
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
            last_change=MeshChange(last.at, self.named(last.reason), last.detect_ms, last.agree_ms)
            if last
            else None,
        )

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
            for change in self.history
        )

    # --- the engine -----------------------------------------------------------------------------------------

    def engine(self) -> EngineSummary:
        host = self._daemon.engine
        plan = host.plan
        statuses = self._rank_statuses()
        state = self._engine_state(statuses)
        own = host.statuses.get(self._me)
        figures = own if own is not None and plan is not None and self._me in plan.ring else None
        figures = figures or next((status for status in statuses if status is not None), None)
        text = "" if state in (EngineState.READY, EngineState.GENERATING, EngineState.OFF) else host.trouble()
        downloads = self.downloads()
        if downloads and state in (EngineState.LOADING, EngineState.RECOVERING):
            text = "; ".join(f"{one.node} {one.text()}" for one in downloads)
        return EngineSummary(
            state=state,
            model=plan.model if plan is not None and plan.model else self._daemon.card.model or None,
            ranks=tuple(
                RankLine(status.sender, rank, status.layers, status.pid or None, status.restarts)
                for rank, status in enumerate(statuses)
                if status is not None and status.layers is not None
            ),
            sync=SyncMode(figures.sync_mode, figures.sync_reason) if figures else SyncMode("safe", "no rank yet"),
            tokens_per_s=_positive(figures.tokens_per_s) if figures else None,
            baseline_tokens_per_s=_positive(figures.baseline_tokens_per_s) if figures else None,
            last_gap_ms=_positive(figures.last_gap_ms) if figures else None,
            text=self.named(text),
            requests_active=sum(status is not None and status.generating for status in statuses[:1]),
            requests_waiting=host.scheduler.waiting,
            downloads=tuple(DownloadLine(one.node, one.done_bytes, one.total_bytes) for one in downloads),
        )

    def downloads(self) -> tuple[Downloading, ...]:
        """The ranks of the plan whose model is not here yet."""
        return tuple(
            Downloading(status.sender, status.model, status.download_done, status.download_total)
            for status in self._rank_statuses()
            if status is not None and status.phase is RankPhase.RESOLVING
        )

    def _rank_statuses(self) -> list[RankStatus | None]:
        """The newest status of each rank, under whichever plan: layers and pids outlive plans."""
        host = self._daemon.engine
        return [host.statuses.get(node) for node in host.plan.ring] if host.plan is not None else []

    def _gpu_waits(self) -> tuple[tuple[NodeId, str], ...]:
        """Each node tells of its own rank."""
        own, limit_s = self._daemon.engine.statuses.get(self._me), self._daemon.config.engine.watchdog_s
        if own is None or not own.gpu_waited_s:
            return ()
        return ((self._me, wait_text(own.gpu_waited_s, limit_s)),)

    def _engine_state(self, statuses: list[RankStatus | None]) -> EngineState:
        host = self._daemon.engine
        plan = host.plan
        if plan is None:
            return EngineState.LOADING if self._daemon.card.engine and self._daemon.card.model else EngineState.OFF
        if not plan.model or not plan.ring:
            return EngineState.OFF
        current = [status for status in statuses if status is not None and status.plan_hash == plan.hash]
        if host.disagreement() or any(status.phase is RankPhase.FAILED for status in current):
            return EngineState.FAILED
        formed = len(current) == len(plan.ring) and all(status.phase is RankPhase.FORMED for status in current)
        if formed and not host.suspended:
            self._served_model = plan.model
            generating = any(status.generating for status in current)
            return EngineState.GENERATING if generating else EngineState.READY
        return EngineState.RECOVERING if self._served_model == plan.model else EngineState.LOADING

    # --- MQTT -----------------------------------------------------------------------------------------------

    def _mqtt_view(self, view: NodeView, health: HealthSnapshot) -> mqtt_view.MqttView:
        return mqtt_view.MqttView(
            nodes=tuple(self._mqtt_node(view, node.id, health) for node in view.nodes),
            links=tuple(self._mqtt_link(link) for link in view.links),
            mesh=mqtt_view.MeshView(
                state=view.mesh.state,
                epoch=view.mesh.plan.epoch.number if view.mesh.plan is not None else None,
                coordinator=view.mesh.coordinator,
                members=tuple(member.id for member in view.mesh.plan.members) if view.mesh.plan is not None else (),
                ring=view.mesh.plan.ring if view.mesh.plan is not None else (),
                reason=self.named(self.history[-1].reason) if self.history else "",
            ),
            engines=tuple(self._mqtt_engine(status) for status in self._rank_statuses() if status is not None),
            alerts=tuple(
                mqtt_view.AlertView(
                    code=reason.code,
                    subject=reason.subject,
                    severity=severity(reason.code),
                    text=reason.text,
                    since=reason.since,
                    node=self._me,
                )
                for reason in health.reasons
            ),
        )

    def _mqtt_node(self, view: NodeView, node: NodeId, health: HealthSnapshot) -> mqtt_view.NodeView:
        entry = next(entry for entry in view.nodes if entry.id == node)
        report = self._report(health) if node == self._me else self._reports.get(node)
        reasons: tuple[Reason, ...] = health.reasons if node == self._me else ()
        if report is not None and node != self._me:
            reasons = tuple(Reason(*reason) for reason in report.reasons)
        cards = self._daemon.driver.core.links
        card = self._daemon.card if node == self._me else cards[node].peer if node in cards else None
        return mqtt_view.NodeView(
            id=node,
            name=entry.name,
            state=entry.state,
            version=entry.version,
            health=Health(report.health) if report is not None else None,
            reasons=reasons,
            uptime_s=report.uptime_s if report is not None else None,
            memory=mqtt_view.NodeMemory(
                model_mib=card.memory_mib if card is not None else None,
                total_mib=psutil.virtual_memory().total >> 20 if node == self._me else None,
                used_mib=report.memory_mib if report is not None else None,
            ),
        )

    def _mqtt_link(self, link: LinkView) -> mqtt_view.LinkView:
        path = next((path for path in link.paths if path.selected), None)
        low, high = sorted((self._me, link.peer))
        return mqtt_view.LinkView(
            a=low,
            b=high,
            agreed=link.agreed,
            selected=link.selected,
            kind=link.kind,
            interface=path.interface if path is not None else None,
            rtt_ms=_rounded(path.rtt_ms) if path is not None else None,
            loss=path.loss if path is not None else None,
            since=time.time() - (time.monotonic() - link.agreed_since),
        )

    def _mqtt_engine(self, status: RankStatus) -> mqtt_view.EngineView:
        summary = self.engine()
        return mqtt_view.EngineView(
            node=status.sender,
            state=summary.state,
            model=summary.model,
            layers=status.layers,
            tokens_per_s=_positive(status.tokens_per_s),
            sync_mode=status.sync_mode,
            sync_reason=status.sync_reason,
            download=(status.download_done, status.download_total) if status.download_total else None,
        )


def with_interfaces(text: str, link: LinkView) -> str:
    """The ids of the link's paths in a text for people become the names of this end's interfaces."""
    for path in link.paths:
        text = text.replace(path.id, path.interface)
    return text


def _rounded(milliseconds: float | None) -> float | None:
    """To a microsecond: what stands behind it is noise."""
    return round(milliseconds, 3) if milliseconds is not None else None


def _positive(value: float) -> float | None:
    """0 stands for not measured yet."""
    return round(value, 2) if value > 0 else None
