"""What a person or a client asks of the running daemon, answered: the implementation of `commands.DaemonCommands`.

Reads the parts and words the answers; decides nothing about links, plans or ranks. Called by the control socket and
the HTTP API.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

import msgspec
import psutil

from exod.core.base.events import DebugFault, DebugPin, RenegotiateRequested
from exod.core.cluster.jaccl import JacclHostfile, NotCabledError, hostfile
from exod.core.status.health import DOWNLOADING, EDGE_FAILED
from exod.core.status.view import LinkView, NodeEntry, PathView
from exod.daemon_api.interface import GenerationDelta
from exod.daemon_api.shapes import (
    ClusterReport,
    DaemonCounters,
    DoctorReport,
    Done,
    EngineReport,
    LinkDecision,
    LinkDetail,
    LinkHistoryReport,
    LinksReport,
    MeshReport,
    MetricsSnapshot,
    NetcheckReport,
    PathDetail,
    PingReply,
    PreflightReport,
    RankDetail,
    Readiness,
    StatusReport,
)
from exod.diagnostics import findings
from exod.diagnostics.netcheck import PeerPort, netcheck
from exod.diagnostics.preflight import preflight_data
from exod.errors import ExitCode, RequestError
from exod.model import EngineState, Event, NodeId, NodeState, PathId
from exod.status.snapshot import with_interfaces
from exoengine.protocol import GenerationRequest

if TYPE_CHECKING:
    from exod.app import Daemon

PING_INTERVAL_S: Final = 0.2
PING_DEADLINE_S: Final = 2.0
"""The slowest pair is probed once a second: an answer comes within two, or the path does not answer."""


class Answers:
    """One for each daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    # --- snapshots ------------------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        return self._daemon.situation.status()

    def links(self, peer: NodeId | None) -> LinksReport:
        view = self._daemon.situation.view()
        nodes = {node.id: node for node in view.nodes}
        links = tuple(
            self._link_detail(link, nodes[link.peer]) for link in view.links if peer is None or link.peer == peer
        )
        return LinksReport(links, time.time())

    def _link_detail(self, link: LinkView, node: NodeEntry) -> LinkDetail:
        return LinkDetail(
            peer=link.peer,
            peer_name=link.peer_name,
            peer_state=node.state,
            agreed=link.agreed,
            selected=link.selected,
            seq=link.seq,
            peer_selected=link.peer_selected,
            peer_seq=link.peer_seq,
            selects_here=self._daemon.card.id < link.peer,
            paths=tuple(_path_detail(path, link) for path in link.paths),
            peer_left=node.left,
            text="" if node.state is NodeState.UP else node.reason,
        )

    def links_history(self, peer: NodeId | None, limit: int) -> LinkHistoryReport:
        """Every decision of the core with its inputs; `at` is moved to the wall clock."""
        situation = self._daemon.situation
        offset = time.time() - time.monotonic()
        names = situation.names()
        decisions = []
        for decision in self._daemon.driver.core.history():
            about = self._peer_of(decision.subject)
            if peer is not None and about != peer:
                continue
            decisions.append(
                LinkDecision(
                    at=round(decision.at + offset, 3),
                    peer=about,
                    peer_name=names.get(about, about) if about else "mesh",
                    subject=situation.named(decision.subject),
                    decision=situation.named(decision.decision),
                    figures={
                        key: situation.named(_figure(value))
                        for key, value in decision.inputs.items()
                        if value is not None
                    },
                )
            )
        return LinkHistoryReport(tuple(decisions[-limit:]))

    def _peer_of(self, subject: str) -> NodeId | None:
        """The peer that a decision is about: named itself, or by one of its paths."""
        links = self._daemon.driver.core.links
        if subject in links:
            return NodeId(subject)
        return next((peer for peer, link in links.items() if PathId(subject) in link.paths), None)

    def mesh(self) -> MeshReport:
        situation = self._daemon.situation
        return MeshReport(
            mesh=situation.mesh(),
            plan=situation.view().mesh.plan,
            history=situation.mesh_history(),
            names=situation.names(),
        )

    def jaccl(self) -> JacclHostfile:
        try:
            return hostfile(self._daemon.situation.cabled_nodes())
        except NotCabledError as error:
            raise RequestError("not_cabled", str(error), ExitCode.NO_PATH) from None

    def engine(self) -> EngineReport:
        host, situation = self._daemon.engine, self._daemon.situation
        names = situation.names()
        ring = host.plan.ring if host.plan is not None else ()
        ranks = tuple(
            RankDetail(
                node=node,
                node_name=names.get(node, node),
                rank=rank,
                layers=status.layers or (0, 0),
                pid=status.pid or None,
                restarts=status.restarts,
                state=status.phase,
                memory_bytes=status.memory_mib << 20 if status.memory_mib else None,
                text=situation.named(status.text),
            )
            for rank, node in enumerate(ring)
            if (status := host.statuses.get(node)) is not None
        )
        loaded, hello = host.rank.loaded, host.rank.hello
        done, total = host.rank.progress
        return EngineReport(
            engine=situation.engine(),
            ranks=ranks,
            fingerprint=loaded.fingerprint if loaded is not None else None,
            plan=host.plan.hash if host.plan is not None else None,
            total_layers=loaded.total_layers if loaded is not None else None,
            max_context_tokens=loaded.max_context_tokens if loaded is not None else None,
            load_done_bytes=done if total else None,
            load_total_bytes=total or None,
            versions=hello.versions if hello is not None else {},
        )

    def cluster(self) -> ClusterReport:
        daemon, situation = self._daemon, self._daemon.situation
        return ClusterReport(
            name=daemon.config.cluster.name,
            key_file=str(daemon.config.cluster.key_file),
            key_fingerprint=daemon.key_fingerprint,
            nodes=situation.node_lines(situation.view()),
            strangers=daemon.control.strangers(),
        )

    def ready(self) -> Readiness:
        engine = self._daemon.situation.engine()
        if self._daemon.engine.scheduler.draining:
            return Readiness(False, "draining", "the engine is being drained and admits no more requests")
        match engine.state:
            case EngineState.READY | EngineState.GENERATING:
                trouble = self._daemon.situation.failed_edge()
                return Readiness(not trouble, EDGE_FAILED if trouble else "", trouble)
            case EngineState.OFF:
                text = "no model is loaded: exoctl engine load MODEL"
                return Readiness(False, "no_model", engine.text or text)
            case EngineState.LOADING | EngineState.RECOVERING if engine.downloads:
                return Readiness(False, DOWNLOADING, engine.text)
            case state:
                return Readiness(False, f"engine_{state}", engine.text or f"the engine is {state}")

    def models(self) -> list[str]:
        model = self._daemon.situation.engine().model
        return [model] if model else []

    def metrics(self) -> MetricsSnapshot:
        daemon = self._daemon
        process = psutil.Process()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return MetricsSnapshot(
            status=self.status(),
            counters=DaemonCounters(
                datagrams_sent=daemon.driver.datagrams_sent,
                datagrams_received=daemon.driver.datagrams_received,
                datagrams_rejected=daemon.driver.datagrams_rejected,
                control_messages_sent=daemon.control.messages_sent,
                control_messages_received=daemon.control.messages_received,
                link_switches=daemon.counts["link.selected"],
                plans_agreed=daemon.counts["mesh.agreed"],
                engine_recoveries=daemon.counts["engine.reformed"],
                engine_recovery_s=daemon.recovery_s,
                engine_restarts=daemon.engine.rank.restarts,
                sync_changes=daemon.counts["engine.sync"],
                gpu_wait_violations=daemon.engine.rank.gpu_wait_violations,
                prompt_tokens=daemon.engine.prompt_tokens,
                cached_tokens=daemon.engine.cached_tokens,
                completion_tokens=daemon.engine.completion_tokens,
                events=daemon.events.count,
                mqtt_messages_sent=daemon.mqtt.messages_sent,
                cpu_s=usage.ru_utime + usage.ru_stime,
                resident_bytes=process.memory_info().rss,
                open_descriptors=process.num_fds(),
                loop_lag_s=daemon.driver.worst_lag_s,
            ),
        )

    # --- deeds ----------------------------------------------------------------------------------------------

    async def netcheck(self) -> NetcheckReport:
        daemon = self._daemon
        ports = [
            PeerPort(link.peer_name, path.remote, daemon.driver.core.links[link.peer].peer.mesh_port)
            for link in daemon.situation.view().links
            for path in link.paths
        ]
        state = daemon.discovery.state() if daemon.discovery is not None else None
        return await netcheck(daemon.platform, daemon.interfaces.lines(), state, ports)

    async def preflight(self) -> PreflightReport:
        report = await self._daemon.preflight.run()
        named = self._daemon.situation.named
        checks = tuple(
            msgspec.structs.replace(check, subject=named(check.subject), text=named(check.text))
            for check in report.checks
        )
        for check in checks:
            if not check.ok:
                self._daemon.events.write(Event(0.0, "preflight.failed", check.subject, preflight_data(check)))
        return msgspec.structs.replace(report, checks=checks)

    async def doctor(self) -> DoctorReport:
        """Findings that only the daemon sees: what makes it less than healthy, and settings that do harm."""
        daemon, situation = self._daemon, self._daemon.situation
        refused = [
            link.peer.name
            for link in daemon.driver.core.links.values()
            for path in link.paths
            if path.refused_errno is not None
            and daemon.platform.local_network_privacy_suspected(path.refused_errno)
        ]
        state = daemon.discovery.state() if daemon.discovery is not None else None
        network = await netcheck(daemon.platform, daemon.interfaces.lines(), state, peers=())
        environment_cure = f"unset {findings.FAST_SYNCH} where exod is started (launchctl unsetenv), and restart it"
        found = [
            *(findings.of_reason(one, situation.named(one.subject)) for one in situation.health().reasons),
            *findings.of_refused_sends(refused),
            *findings.of_network(network.checks),
            *findings.of_strangers(daemon.control.strangers()),
            *findings.of_crashes(situation.crashes()),
            *findings.of_environment(os.environ, "the running daemon's environment", environment_cure),
        ]
        facts: list[str] = []
        hello = daemon.engine.rank.hello
        if hello is not None:
            wrong, facts = findings.of_worker(hello.versions, hello.can_reform, hello.has_switch)
            found += wrong
        checked = ("health", "links", "network", "refused nodes", "crashes", "the daemon's environment", "engine")
        return DoctorReport(tuple(found), checked, tuple(facts))

    async def renegotiate(self, reason: str) -> Done:
        self._daemon.driver.feed(RenegotiateRequested(reason))
        return Done("a new plan was asked for")

    async def engine_load(self, model: str) -> Done:
        if not self._daemon.config.engine.enabled and len(self._daemon.situation.view().nodes) == 1:
            raise RequestError("engine_off", "this node hosts no rank: set engine.enabled = true")
        self._daemon.engine.scheduler.draining = False
        self._daemon.want_model(model)
        return Done(f"{model} is being loaded: exoctl engine status shows how far")

    async def engine_unload(self) -> Done:
        self._daemon.want_model("")
        return Done("the model is being unloaded")

    async def engine_drain(self) -> Done:
        host = self._daemon.engine
        host.scheduler.draining = True
        await host.drained()
        return Done("all requests have ended; exoctl engine load MODEL admits new ones")

    async def debug_fault(self, path: PathId, drop: bool, delay_ms: float, for_s: float) -> Done:
        self._known_path(path)
        self._daemon.driver.feed(DebugFault(path, drop, delay_ms, for_s))
        what = "loses everything" if drop else f"is {delay_ms:g} ms slower"
        return Done(f"{path} {what} for {for_s:g} s, as this node sees it")

    async def debug_pin(self, path: PathId, for_s: float) -> Done:
        self._known_path(path)
        self._daemon.driver.feed(DebugPin(path, for_s))
        return Done(f"{path} is wished for, for {for_s:g} s")

    def _known_path(self, path: PathId) -> None:
        known = [one.id for link in self._daemon.situation.view().links for one in link.paths]
        if path not in known:
            raise RequestError("no_such_path", f"there is no path {path}; there are: {', '.join(known) or 'none'}")

    # --- streams --------------------------------------------------------------------------------------------

    async def ping(self, peer: NodeId, path: PathId | None, count: int) -> AsyncGenerator[PingReply, None]:
        """Each answer is a probe of its own; the RTT is measured between kernel stamps, as for the selection."""
        for seq in range(1, count + 1):
            yield await self._ping_once(peer, path, seq)
            if seq < count:
                await asyncio.sleep(PING_INTERVAL_S)

    async def _ping_once(self, peer: NodeId, path: PathId | None, seq: int) -> PingReply:
        target, name = self._pinged(peer, path)
        before = target.samples
        deadline = time.monotonic() + PING_DEADLINE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            now, name = self._pinged(peer, target.id)
            if now.samples != before and now.last_rtt_ms is not None:
                return _reply(seq, peer, name, now, round(now.last_rtt_ms * 1e3, 1), "")
        return _reply(seq, peer, name, target, None, f"no answer within {PING_DEADLINE_S:g} s: {target.why}")

    def _pinged(self, peer: NodeId, path: PathId | None) -> tuple[PathView, str]:
        link = next((link for link in self._daemon.situation.view().links if link.peer == peer), None)
        if link is None:
            raise RequestError("no_such_peer", f"there is no peer {peer}")
        wanted = path or link.selected
        found = next((one for one in link.paths if one.id == wanted), None)
        if found is None:
            text = f"no path to {link.peer_name} is selected: exoctl links {link.peer_name} says why"
            raise RequestError("no_path", text, ExitCode.NO_PATH)
        return found, link.peer_name

    def events(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        return self._daemon.events.read(since, follow)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        state = self._daemon.situation.engine()
        if state.state in (EngineState.OFF, EngineState.FAILED):
            readiness = self.ready()
            raise RequestError("not_ready", readiness.text, ExitCode.INTERNAL)
        return self._daemon.engine.desk.generate(request)


def _path_detail(path: PathView, link: LinkView) -> PathDetail:
    return PathDetail(
        id=path.id,
        interface=path.interface,
        kind=path.kind,
        local=path.local,
        remote=path.remote,
        state=path.state,
        rtt_ms=path.rtt_ms,
        rtt_p90_ms=path.rtt_p90_ms,
        loss=path.loss,
        selected=path.selected,
        why=with_interfaces(path.why, link),
        eligible=not path.route_wrong,
        score_ms=path.score_ms,
        in_band=path.in_band,
        peer_state=path.peer_state,
        samples=path.samples,
        last_heard_s=path.last_heard_s,
        fault=path.fault,
    )


def _reply(seq: int, peer: NodeId, name: str, path: PathView, rtt_us: float | None, text: str) -> PingReply:
    return PingReply(seq, peer, name, path.id, path.interface, path.kind, path.local, path.remote, rtt_us, text)


def _figure(value: object) -> str:
    """One input of a decision, for people."""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return ", ".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)
