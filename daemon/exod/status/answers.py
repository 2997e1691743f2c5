"""What a person or a client asks of the running daemon, answered: `daemon_api.interface.DaemonCommands`.

Snapshots are read and change nothing; commands are passed to the part that carries them out. It words the answers
and decides nothing about links, plans or ranks. Errors for people are RequestError.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from exod.alert_table import kind_of
from exod.core.base.events import DebugFault, DebugPin, ForgetPeer, Input, RenegotiateRequested
from exod.core.base.facts import LOCAL_NETWORK_DENIED
from exod.core.cluster.jaccl import JacclHostfile, NotCabledError, hostfile
from exod.core.engine.engine_events import EngineInput, ModelWanted
from exod.core.node import NodeCore
from exod.core.status.view import LinkView, NodeEntry
from exod.daemon_api.counters import DaemonCounters, MetricsSnapshot
from exod.daemon_api.discovery_state import DiscoveryState
from exod.daemon_api.interface import GenerationDelta
from exod.daemon_api.resolve_names import short_name
from exod.daemon_api.self_fault import SelfFault
from exod.daemon_api.shapes import (
    ClusterReport,
    DoctorReport,
    Done,
    EngineReport,
    InterfaceLine,
    Invited,
    LinkDecision,
    LinkDetail,
    LinkHistoryReport,
    LinksReport,
    MeshReport,
    NetcheckReport,
    PathDetail,
    PathTrace,
    PingReply,
    PreflightCheck,
    PreflightReport,
    RankDetail,
    Readiness,
    StatusReport,
)
from exod.diagnostics import findings, packages
from exod.diagnostics.mac_findings import of_denied
from exod.diagnostics.netcheck import PeerPort, netcheck
from exod.diagnostics.preflight import preflight_data
from exod.diagnostics.self_faults import SelfFaults
from exod.errors import ExitCode, RequestError
from exod.model import Event, NodeId, NodeState, PathId
from exod.platform.system import Platform
from exod.status.engine_source import EngineSource
from exod.status.membership_answers import MembershipAnswers
from exod.status.ping_answers import PingAnswers
from exod.status.snapshot import StatusBuilder, path_as, positive
from exoengine.protocol import GenerationRequest, TextAnswered, TextAsked


class EventStore(Protocol):
    def write(self, event: Event) -> None: ...

    def read(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]: ...


class ModelRequests(Protocol):
    """`pull` and `pause` raise RequestError; `is_here`: is it known to be on this node's disk?"""

    async def pull(self, model: str, everywhere: bool) -> None: ...

    def pause(self, model: str) -> None: ...

    def is_here(self, model: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the configuration says that only `exoctl cluster` and `exoctl engine load` ask for."""

    name: str
    key_file: Path
    engine_enabled: bool
    model_name: str = ""
    """What clients call the model; empty: by its own name."""


@dataclass(frozen=True, slots=True)
class Network:
    """What this host's own network looks like, asked anew each time."""

    platform: Platform
    interfaces: Callable[[], tuple[InterfaceLine, ...]]
    discovery: Callable[[], DiscoveryState] | None
    """None where the configuration switches multicast DNS off."""
    strangers: Callable[[], tuple[str, ...]]
    known_peers: Callable[[], Sequence[tuple[str, int]]] = tuple
    """(address, port) of every peer that was ever seen, for the commands that name them."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Where each command goes."""

    feed: Callable[[Input], None]
    feed_engine: Callable[[EngineInput], object]
    drain: Callable[[], Awaitable[None]]
    check_load: Callable[[str], Awaitable[str]]
    """Says who will be left out. Raises RequestError for a model that the cluster cannot host."""
    preflight: Callable[[], Awaitable[PreflightReport]]
    generate: Callable[[GenerationRequest], AsyncGenerator[GenerationDelta, None]]
    text: Callable[[TextAsked], Awaitable[TextAnswered]]
    models: ModelRequests


class Answers:
    """One for each daemon."""

    def __init__(
        self,
        settings: ClusterSettings,
        status: StatusBuilder,
        core: NodeCore,
        engine: EngineSource,
        events: EventStore,
        counters: Callable[[], DaemonCounters],
        network: Network,
        requests: Requests,
        membership: MembershipAnswers,
    ) -> None:
        self._settings, self._status, self._core, self._engine = settings, status, core, engine
        self._pings = PingAnswers(status)
        self._events, self._counters, self._network, self._requests = events, counters, network, requests
        self._membership = membership

    # --- snapshots ------------------------------------------------------------------------------------------

    def status(self) -> StatusReport:
        return self._status.status()

    def links(self, peer: NodeId | None) -> LinksReport:
        view = self._status.view()
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
            selects_here=self._core.card.id < link.peer,
            paths=tuple(path_as(PathDetail, path, link) for path in link.paths),
            peer_left=node.left,
            text="" if node.state is NodeState.UP else node.reason,
        )

    def links_history(self, peer: NodeId | None, limit: int) -> LinkHistoryReport:
        """Every decision of the core with its inputs, and the last hour's RTTs; `at` is moved to the wall clock."""
        status = self._status
        offset = time.time() - time.monotonic()
        names = status.names()
        decisions = []
        for decision in self._core.history():
            about = self._peer_of(decision.subject)
            if peer is not None and about != peer:
                continue
            decisions.append(
                LinkDecision(
                    at=round(decision.at + offset, 3),
                    peer=about,
                    peer_name=names.get(about, about) if about else "mesh",
                    subject=status.named(decision.subject),
                    decision=status.named(decision.decision),
                    figures={
                        key: status.named(_figure(value))
                        for key, value in decision.inputs.items()
                        if value is not None
                    },
                )
            )
        return LinkHistoryReport(tuple(decisions[-limit:]), status.record.rtt.traces(peer))

    def rtt_traces(self) -> tuple[PathTrace, ...]:
        return self._status.record.rtt.traces(None)

    def _peer_of(self, subject: str) -> NodeId | None:
        """The peer that a decision is about: named itself, or by one of its paths."""
        links = self._core.links
        if subject in links:
            return NodeId(subject)
        return next((peer for peer, link in links.items() if PathId(subject) in link.paths), None)

    def mesh(self) -> MeshReport:
        status = self._status
        return MeshReport(
            mesh=status.mesh(),
            plan=status.view().mesh.plan,
            history=status.mesh_history(),
            names=status.names(),
        )

    def jaccl(self) -> JacclHostfile:
        try:
            return hostfile(self._status.cabled_nodes())
        except NotCabledError as error:
            raise RequestError("not_cabled", str(error), ExitCode.NO_PATH) from None

    def engine(self) -> EngineReport:
        host, status = self._engine, self._status
        names = status.names()
        ring = host.plan.ring if host.plan is not None else ()
        ranks = tuple(
            RankDetail(
                node=node,
                node_name=names.get(node, node),
                rank=rank,
                layers=found.layers or (0, 0),
                pid=found.pid or None,
                restarts=found.restarts,
                state=found.phase,
                memory_bytes=found.memory_mib << 20 if found.memory_mib else None,
                text=status.named(found.text),
                recommended_bytes=found.recommended_mib << 20 or None,
                wired_bytes=found.wired_mib << 20 or None,
                parts=found.parts,
                tokens_per_s=positive(found.tokens_per_s) if found.generating else None,
            )
            for rank, node in enumerate(ring)
            if (found := host.statuses.get(node)) is not None
        )
        loaded, hello = host.rank.loaded, host.rank.worker.hello
        done, total = host.rank.load.progress
        return EngineReport(
            engine=status.engine(),
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
        settings = self._settings
        return ClusterReport(
            name=settings.name,
            key_file=str(settings.key_file),
            key_fingerprint=self._membership.fingerprint,
            nodes=self._status.node_lines(self._status.view()),
            strangers=self._network.strangers(),
        )

    def ready(self) -> Readiness:
        verdict = self._status.serving()
        return Readiness(verdict.serves, verdict.code, verdict.text)

    def models(self) -> list[str]:
        """What a request may name: none where none would be taken."""
        model = self._status.engine().model
        admits = self._status.serving().admits
        return [self._settings.model_name or short_name(model)] if model and admits else []

    def full_model(self) -> str:
        return self._status.engine().model or ""

    def metrics(self) -> MetricsSnapshot:
        return MetricsSnapshot(status=self.status(), counters=self._counters())

    # --- commands ----------------------------------------------------------------------------------------------

    async def netcheck(self) -> NetcheckReport:
        ports = [
            PeerPort(
                link.peer_name,
                path.remote,
                self._core.links[link.peer].peer.mesh_port,
                path.local,
                path.interface,
            )
            for link in self._status.view().links
            for path in link.paths
        ]
        return await self._look_at_network(ports)

    async def _look_at_network(self, peers: Sequence[PeerPort]) -> NetcheckReport:
        network = self._network
        discovery = network.discovery() if network.discovery is not None else None
        return await netcheck(network.platform, network.interfaces(), discovery, peers)

    async def preflight(self) -> PreflightReport:
        report = await self._requests.preflight()
        named = self._status.named
        checks = tuple(
            msgspec.structs.replace(check, subject=named(check.subject), text=named(check.text))
            for check in report.checks
        )
        if report.checks and report.checks[0].name != "plan":
            checks += (self._serving_check(),)
        for check in checks:
            if not check.ok:
                self._events.write(Event(0.0, "preflight.failed", check.subject, preflight_data(check)))
        return msgspec.structs.replace(report, checks=checks, ok=all(check.ok for check in checks))

    def _serving_check(self) -> PreflightCheck:
        """What `/ready` says: all the rest may be well while the ranks stand in no group."""
        ready, state = self.ready(), str(self._status.engine().state)
        text = ready.text or "a request would be answered now"
        mends = "" if ready.ready else kind_of(ready.code).cure
        return PreflightCheck("serving", "engine", ready.ready, state, text, mends)

    async def doctor(self) -> DoctorReport:
        """Findings that only the daemon sees: what makes it less than healthy, and settings that do harm."""
        status = self._status
        refused = [
            link.peer.name
            for link in self._core.links.values()
            for path in link.paths
            if path.refused_errno is not None
            and self._network.platform.local_network_privacy_suspected(path.refused_errno)
        ]
        network = await self._look_at_network(peers=())
        reasons = status.health().reasons
        denied = [one for one in reasons if one.code == LOCAL_NETWORK_DENIED]
        environment_cure = f"unset {findings.FAST_SYNCH} where exod is started (launchctl unsetenv), and restart it"
        found = [
            *(findings.of_reason(one, status.named(one.subject)) for one in reasons if one not in denied),
            *(of_denied(one.text, self._network.known_peers(), self._network.interfaces()) for one in denied),
            *findings.of_refused_sends(() if denied else refused),
            *findings.of_network(network.checks),
            *findings.of_strangers(self._network.strangers()),
            *await asyncio.to_thread(packages.look),
            *findings.of_crashes(status.crashes()),
            *findings.of_environment(os.environ, "the running daemon's environment", environment_cure),
        ]
        facts: list[str] = []
        hello = self._engine.rank.worker.hello
        if hello is not None:
            wrong, facts = findings.of_worker(hello.versions, hello.native, hello.has_switch)
            found += wrong
        facts += [f"{one.text}; {kind_of(one.code).cure}" for one in status.health().notes if facts]
        checked = (
            "health",
            "links",
            "local network",
            "network",
            "refused nodes",
            "packages",
            "crashes",
            "the daemon's environment",
            "engine",
        )
        return DoctorReport(tuple(found), checked, tuple(facts))

    async def renegotiate(self, reason: str) -> Done:
        self._requests.feed(RenegotiateRequested(reason))
        return Done("a new plan was asked for")

    async def cluster_forget(self, peer: NodeId) -> Done:
        node = next((one for one in self._status.view().nodes if one.id == peer), None)
        if node is None or node.state is not NodeState.DOWN:
            name = peer if node is None else node.name
            raise RequestError("node_up", f"{name} is not down: stop exod there first (exoctl service uninstall)")
        self._requests.feed(ForgetPeer(peer))
        return Done(f"{node.name} is forgotten here; if it comes back, it joins again")

    def cluster_invite(self, for_s: float, once: bool) -> Invited:
        return self._membership.invite(for_s, once)

    async def cluster_rotate(self) -> Done:
        return await self._membership.rotate()

    async def cluster_remove(self, node: NodeId) -> Done:
        return await self._membership.remove(node)

    async def engine_load(self, model: str) -> Done:
        if not self._settings.engine_enabled and len(self._status.view().nodes) == 1:
            raise RequestError("engine_off", "this node hosts no rank: set engine.enabled = true")
        left_out = await self._requests.check_load(model)
        self._requests.feed_engine(ModelWanted(model))
        text = f"{model} is being loaded: exoctl engine status shows the progress"
        if left_out:
            text += f"; it is hosted without some nodes: {left_out}"
        if not self._requests.models.is_here(model):
            text += f"; where it is missing it is fetched first: exoctl model pull {model} shows the progress"
        return Done(text)

    async def engine_unload(self) -> Done:
        self._requests.feed_engine(ModelWanted(""))
        return Done("the model is being unloaded")

    async def engine_drain(self) -> Done:
        await self._requests.drain()
        return Done("all requests have ended; exoctl engine load MODEL admits new ones")

    async def model_pull(self, model: str, everywhere: bool) -> Done:
        await self._requests.models.pull(model, everywhere)
        whom = "every node" if everywhere else "each node that holds layers"
        return Done(f"{whom} fetches {model}: exoctl status shows progress, exoctl model pause {model} stops it")

    async def model_pause(self, model: str) -> Done:
        self._requests.models.pause(model)
        return Done(f"{model} is paused; what has arrived is kept: exoctl model pull {model} resumes")

    async def debug_fault(self, path: PathId, drop: bool, delay_ms: float, for_s: float) -> Done:
        self._known_path(path)
        self._requests.feed(DebugFault(path, drop, delay_ms, for_s))
        what = "loses everything" if drop else f"is {delay_ms:g} ms slower"
        return Done(f"{path} {what} for {for_s:g} s, as this node sees it")

    async def debug_self_fault(self, kind: SelfFault, for_s: float) -> Done:
        return Done(SelfFaults(self._own_pid, self._deafen).begin(kind, for_s))

    def _own_pid(self) -> int:
        status = self._engine.statuses.get(self._status.view().me.id)
        return status.pid if status is not None else 0

    def _deafen(self, for_s: float) -> None:
        for link in self._status.view().links:
            for path in link.paths:
                self._requests.feed(DebugFault(path.id, True, 0.0, for_s))

    async def debug_pin(self, path: PathId, for_s: float) -> Done:
        self._known_path(path)
        self._requests.feed(DebugPin(path, for_s))
        return Done(f"{path} is pinned for {for_s:g} s")

    def _known_path(self, path: PathId) -> None:
        known = [one.id for link in self._status.view().links for one in link.paths]
        if path not in known:
            raise RequestError("no_such_path", f"there is no path {path}; there are: {', '.join(known) or 'none'}")

    # --- streams --------------------------------------------------------------------------------------------

    def ping(self, peer: NodeId, path: PathId | None, count: int) -> AsyncGenerator[PingReply, None]:
        return self._pings.ping(peer, path, count)

    def events(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        return self._events.read(since, follow)

    async def text(self, asked: TextAsked) -> TextAnswered:
        return await self._requests.text(asked)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        verdict = self._status.serving()
        if not verdict.admits:
            raise RequestError("not_ready", verdict.text, ExitCode.INTERNAL)
        return self._named(self._requests.generate(request))

    async def _named(self, deltas: AsyncGenerator[GenerationDelta, None]) -> AsyncGenerator[GenerationDelta, None]:
        """People know nodes by their names."""
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    yield delta
            except RequestError as error:
                text = self._status.named(error.text)
                raise RequestError(error.code, text, error.exit_code, error.retry_after_s) from None


def _figure(value: object) -> str:
    """One input of a decision, for people."""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return ", ".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)
