"""The composition root: creates every part of the daemon, wires them, starts and ends them in order.

Holds no policy. What each part decides stands in its own file; what users ask is answered in `answers.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Final

import msgspec
import structlog

from exod import VERSION
from exod.config.settings import Config
from exod.core.base.config import CoreConfig
from exod.core.base.events import (
    CardChanged,
    Command,
    CommitPlan,
    Emit,
    MessageReceived,
    PeerCardReceived,
    PeerConnected,
    PeerDisconnected,
    PeerLeft,
    PersistEpoch,
    RaiseIncarnation,
    SendMessage,
    SuspendPlan,
)
from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_messages import EngineMessage, ModelWish, RankPhase
from exod.core.node import NodeCore
from exod.daemon_api.discovery_state import Found
from exod.daemon_api.peer_reports import NodeReport, PreflightAnswer, PreflightWish, TransferProbe, TransferReply
from exod.daemon_api.shapes import PreflightCheck
from exod.diagnostics.crash_watch import Crash, CrashReports, from_exit
from exod.diagnostics.event_log import EventLog
from exod.diagnostics.frame_size_check import EdgeWatch
from exod.diagnostics.preflight import Preflight, preflight_data
from exod.engine_service.engine_driver import EngineHost
from exod.engine_service.keep_awake import keep_awake
from exod.http.server import HttpApi
from exod.identity import claim
from exod.local_api.server import ControlSocket
from exod.model import ContextSettings, Event, LocalAddress, MeshPlan, NodeCard, NodeId
from exod.mqtt.publisher import MqttService
from exod.network.interfaces import InterfaceWatcher
from exod.network.mdns_discovery import Announcement, Discovery, Lost
from exod.network.mesh_driver import MeshDriver
from exod.network.probe_sockets import Prober
from exod.peers.control_plane import ControlPlane
from exod.peers.peer_addresses import PeerBook
from exod.peers.peer_messages import Goodbye, PeerMessage
from exod.peers.static_peers import StaticPeer, StaticPeers
from exod.peers.trust import create_key, datagram_key, key_fingerprint, read_key, ring_key, tls_contexts
from exod.platform.routes import route_source
from exod.platform.this_host import current
from exod.status.answers import Answers
from exod.status.snapshot import PlanChange, Situation
from exoengine.protocol import SyncSettings

log = structlog.get_logger()

PRIVATE_UMASK: Final = 0o077
"""What the daemon writes (events, logs, sockets) is its user's alone."""

API_GRACE_S: Final = 0.5
"""For answers that are nearly done. The others are told only then, and must be within a second."""

MQTT_FAREWELL_S: Final = 2.0

REFRESH_S: Final = 5.0
"""How often figures (uptime, RTT, memory) are taken anew for MQTT and peers; changes are told at once."""

MAX_PEER_ADDRESSES: Final = 8
"""Addresses of one discovered peer that are dialled: interfaces of a Mac with everything plugged in."""

MESH_MESSAGES: Final = MeshMessage
ENGINE_MESSAGES: Final = EngineMessage


class Daemon:
    """One node. `run` returns after an orderly end; it raises ExodError where it cannot start."""

    def __init__(self, config: Config, announce: bool = False) -> None:
        self._config = config
        self._announce = announce
        self._stop = asyncio.Event()
        self._refresh_wanted = False
        self._cabling_changed = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """Events of this life by type."""
        self.recovery_s = 0.0

    async def run(self) -> None:
        os.umask(PRIVATE_UMASK)
        self.identity = claim(self._config.node.data_dir)
        try:
            await self._live()
        finally:
            self.identity.release()

    async def _live(self) -> None:
        self._create()
        try:
            self.control.listen(self._config.mesh.port)
            self.socket.start()
            self.http.start()
            await self._serve()
        finally:
            self.http.close()
            self.socket.close()
            self.driver.close()
            self.prober.close()

    # --- creation -------------------------------------------------------------------------------------------

    def _create(self) -> None:
        config, identity = self._config, self.identity
        key_file = config.cluster.key_file
        key = read_key(key_file) if key_file.exists() else create_key(key_file)
        platform = self.platform = current()
        card = self.card = NodeCard(
            id=identity.id,
            name=config.node.name,
            incarnation=identity.incarnation,
            version=VERSION,
            mesh_port=config.mesh.port,
            ring_port=config.engine.ring_port,
            api_port=config.api.port,
            addresses=(),
            engine=config.engine.enabled,
            memory_mib=platform.memory_mib(),
            model=_model_name(config.engine.model, config.source),
            split=config.engine.split,
            context=ContextSettings(config.engine.max_context, config.engine.kv_bits, config.engine.kv_group_size),
        )
        self.started_at = time.time()
        self.key_fingerprint = key_fingerprint(key)
        self.events = EventLog(config.node.data_dir)
        self.peer_book = PeerBook(config.node.data_dir)
        core_config = CoreConfig(config.mesh.degraded_ms, config.mesh.recover_ms, config.mesh.hold_up_s)
        core = NodeCore(
            card,
            key=datagram_key(key),
            config=core_config,
            platform=platform.system,
            seed=identity.incarnation,
            epoch_number=identity.epoch_number,
            now=time.monotonic(),
        )
        self.driver = MeshDriver(core, route_source)
        self.prober = Prober(platform, config.mesh.port, self.driver.feed)
        self.control = ControlPlane(
            identity.id,
            tls_contexts(key, identity.id),
            platform,
            on_card=self._peer_card,
            on_message=self._peer_message,
            on_connected=self._peer_connected,
            on_disconnected=lambda peer: self.driver.feed(PeerDisconnected(peer)),
        )
        self.engine = EngineHost(
            identity.id,
            identity.incarnation,
            SyncSettings(config.engine.sync, config.engine.safe_context, config.engine.watchdog_s),  # type: ignore[arg-type]
            config.engine.recovery_deadline_s,
            config.node.data_dir,
            platform.worker_environment(),
            send=self.control.send,
            tell_all=self.control.broadcast,
            on_story=lambda kind, data: self.events.write(Event(0.0, kind, identity.id, data)),
            on_change=self.refresh_soon,
            on_model_wish=self._model_wished,
            ring_port=config.engine.ring_port,
            on_ring_port=self._ring_port_moved,
            ring_key=ring_key(key),
        )
        self.pids = {os.getpid()}
        """Of this daemon and the workers that it started: whose crashes are ours."""
        self.engine.worker.on_exit = self._worker_exited
        seen = self.events.recent("crash.seen", since=0.0)
        told = (str(event.data.get("incident") or event.data.get("file")) for event in seen)
        self.crash_reports = CrashReports(platform.crash_folders(), self.pids, told)
        self.interfaces = InterfaceWatcher(platform, config.mesh.include, config.mesh.exclude, config.mesh.kinds)
        announcement = Announcement(
            identity.id, card.name, identity.incarnation, VERSION, config.cluster.name, config.mesh.port
        )
        self.discovery = Discovery(announcement, self._discovered) if config.cluster.mdns else None
        self.static_peers = StaticPeers(config.cluster.peers, self._static_peer)
        self._static: dict[str, StaticPeer] = {}
        self._found: dict[NodeId, Found] = {}
        self.mqtt = MqttService(
            broker=config.mqtt.broker,
            prefix=config.mqtt.prefix,
            cluster=config.cluster.name,
            node_id=identity.id,
            incarnation=identity.incarnation,
            data_dir=config.node.data_dir,
        )
        self.preflight = Preflight(
            self.card.id, self.control, self.engine, core, config.mesh.degraded_ms, route_source, platform
        )
        self.edge_watch = EdgeWatch(self.preflight.edge_checks, self._edges_checked)
        self.situation = Situation(self)
        self.answers = Answers(self)
        self.socket = ControlSocket(self.answers, config.control_socket, debug_enabled=config.debug.enabled)
        self.http = HttpApi.from_config(self.answers, config.api)
        self.events.on_event.append(self._event_written)
        for damage in (*identity.damaged, *self.peer_book.damaged):
            self.events.write(Event(0.0, "file.damaged", damage.file, msgspec.to_builtins(damage)))

    @property
    def config(self) -> Config:
        return self._config

    # --- life -----------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with asyncio.TaskGroup() as tasks:
            self.control.set_card(self.card)
            self.driver.start(self.prober, self._carry_out)
            for entry in self.peer_book.entries():
                for address in entry.addresses:
                    self.control.contact(address, entry.port, entry.name)
            running = {
                "interfaces": self.interfaces.run(self._addresses_changed),
                "control plane": self.control.run(),
                "static peers": self.static_peers.run(),
                "engine": self.engine.run(),
                "edge watch": self.edge_watch.run(),
                "preflight": self.preflight.serve(),
                "mqtt": self.mqtt.run(),
                "control socket": self.socket.run(),
                "http": self.http.run(),
                "figures": self._refresh_for_ever(),
                "awake": keep_awake(self.platform.system, self._rank_work),
                "thunderbolt": self._follow_thunderbolt(),
                "crash reports": self.crash_reports.run(self._crashed, time.time),
            }
            if self.discovery is not None:
                running["discovery"] = self.discovery.run()
            jobs = {name: tasks.create_task(self._told(name, work), name=name) for name, work in running.items()}
            log.info("exod_started", node=self.card.id, name=self.card.name, api=self.http.url, version=VERSION)
            self._say_what_to_try()
            await self._stop.wait()
            await self._leave(jobs)

    async def _told(self, name: str, work: Coroutine[object, object, None]) -> None:
        """A bug in one of the parts ends the daemon, which its supervisor starts again; never without a word."""
        try:
            await work
        except Exception as error:
            log.error("internal_error", task=name, exc_info=error)
            data: dict[str, object] = {"task": name, "error": f"{type(error).__name__}: {error}"}
            self.events.write(Event(0.0, "internal.error", self.card.id, data))
            raise

    async def _leave(self, jobs: dict[str, asyncio.Task[None]]) -> None:
        """Stop admitting, let ranks leave together, say goodbye, close sockets in order."""
        log.info("exod_leaving")
        await self.http.stop(API_GRACE_S)
        self.control.broadcast(Goodbye(self.card.incarnation, "it was stopped"))
        await self.engine.leave()
        for name in ("mqtt", "discovery"):
            if name in jobs:
                jobs[name].cancel()
        await asyncio.wait([jobs[name] for name in ("mqtt", "discovery") if name in jobs], timeout=MQTT_FAREWELL_S)
        await self.control.goodbye(self.card.incarnation, "it was stopped")
        for job in jobs.values():
            job.cancel()

    def _rank_work(self) -> tuple[int | None, bool]:
        """The worker's pid, and does its rank load or answer?"""
        rank = self.engine.rank
        return self.engine.worker.pid, rank.phase is RankPhase.LOADING or bool(rank.active)

    def _say_what_to_try(self) -> None:
        """For a person who started this in a terminal."""
        if not self._announce:
            return
        folder = Path(sys.executable).parent
        lines = (
            "",
            f"  API             {self.http.url}/v1",
            f"  control socket  {self._config.control_socket}",
            "",
            "  try, in another terminal:",
            f"    {folder}/exoctl status",
            f'    {folder}/exoctl chat "count from 3 to 60"',
            "    mosquitto_sub -v -t 'exo/#'",
            "",
            "  Ctrl-C stops it.",
            "",
        )
        print("\n".join(lines), flush=True)

    # --- this node changes ----------------------------------------------------------------------------------

    def _addresses_changed(self, addresses: tuple[LocalAddress, ...]) -> None:
        log.info(
            "addresses_changed", addresses=[f"{one.interface} {one.address}/{one.prefix}" for one in addresses]
        )
        self._cabling_changed.set()
        self.prober.follow(addresses)
        if self.discovery is not None:
            self.discovery.follow(addresses)
        routed = self._routed(addresses)
        # Only now has the platform been asked what it can give to a model (see Platform.refresh).
        memory_mib = self.platform.memory_mib()
        self._set_card(
            msgspec.structs.replace(self.card, addresses=addresses, pair_routes=routed, memory_mib=memory_mib)
        )

    async def _follow_thunderbolt(self) -> None:
        """Asks anew when interfaces change, as they do when a cable is plugged: the question costs a second."""
        while True:
            self._cabling_changed.clear()
            self.situation.thunderbolt = await self.platform.thunderbolt()
            await self._cabling_changed.wait()

    def _routed(self, addresses: tuple[LocalAddress, ...]) -> tuple[str, ...]:
        """Static peers that lie in no subnet of this host: reached through a router."""
        remotes = {address for peer in self._static.values() for address in peer.addresses}
        return tuple(
            sorted(remote for remote in remotes if not any(_is_within(remote, address) for address in addresses))
        )

    def _set_card(self, card: NodeCard) -> None:
        if card != self.card:
            self.card = card
            self.control.set_card(card)
            self.driver.feed(CardChanged(card))
            self.refresh_soon()

    def want_model(self, model: str) -> None:
        """A person wants this model: the coordinator's card decides, so it must hear of it."""
        plan = self.engine.plan
        if plan is not None and plan.coordinator != self.card.id:
            self.control.send(plan.coordinator, ModelWish(self.card.id, model))
        else:
            self._model_wished(model)

    def _model_wished(self, model: str) -> None:
        self._set_card(msgspec.structs.replace(self.card, model=model))

    def _ring_port_moved(self, port: int) -> None:
        """Someone else has the port: the next plan, which the coordinator makes of this card, uses this one."""
        self._set_card(msgspec.structs.replace(self.card, ring_port=port))

    # --- peers ----------------------------------------------------------------------------------------------

    def _discovered(self, report: Found | Lost) -> None:
        before = self._found.pop(report.node_id, None)
        addresses: tuple[str, ...] = ()
        if isinstance(report, Found):
            self._found[report.node_id] = report
            addresses = report.addresses[:MAX_PEER_ADDRESSES]
            for address in addresses:
                self.control.contact(address, report.port, report.name)
        for address in before.addresses if before is not None else ():
            if before is not None and address not in addresses:
                self.control.forget_contact(address, before.port)

    def _static_peer(self, peer: StaticPeer) -> None:
        before = self._static.get(peer.entry)
        self._static[peer.entry] = peer
        for address in peer.addresses:
            self.control.contact(address, peer.port, peer.entry)
        for address in before.addresses if before is not None else ():
            if address not in peer.addresses:
                self.control.forget_contact(address, peer.port)
        self._set_card(msgspec.structs.replace(self.card, pair_routes=self._routed(self.card.addresses)))

    def _peer_card(self, card: NodeCard) -> None:
        self.peer_book.note(card)
        self.driver.feed(PeerCardReceived(card))
        self.refresh_soon()

    def _peer_connected(self, peer: NodeId) -> None:
        self.driver.feed(PeerConnected(peer))
        self.engine.peer_connected(peer)
        self.control.send(peer, self.situation.node_report())

    def _peer_message(self, peer: NodeId, message: PeerMessage) -> None:
        match message:
            case Goodbye(incarnation=incarnation):
                self.driver.feed(PeerLeft(peer, incarnation))
                self.refresh_soon()
            case NodeReport():
                self.situation.peer_report(peer, message)
            case TransferProbe() | TransferReply() | PreflightWish() | PreflightAnswer():
                self.preflight.handle(peer, message)
            case _ if isinstance(message, MESH_MESSAGES):
                self.driver.feed(MessageReceived(peer, message))
            case _ if isinstance(message, ENGINE_MESSAGES):
                self.engine.handle(peer, message)

    # --- commands of the core -------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case SendMessage(peer=peer, message=message):
                self.control.send(peer, message)
                return  # what the mesh says to itself changes nothing that others see
            case Emit(event=event):
                self.events.write(event)
            case CommitPlan(plan=plan):
                self._committed(plan, command)
            case SuspendPlan(plan_hash=plan_hash, reason=reason):
                self.engine.suspend(plan_hash, reason)
            case PersistEpoch(number=number):
                self.identity.remember_epoch(number)
            case RaiseIncarnation(seen=seen):
                self.identity.jump_beyond(seen)
                self._set_card(msgspec.structs.replace(self.card, incarnation=self.identity.incarnation))
            case _:
                pass
        self.refresh_soon()

    def _committed(self, plan: MeshPlan, command: CommitPlan) -> None:
        agree_ms = command.agree_ms if len(plan.members) > 1 else None
        self.situation.plan_changed(PlanChange(plan, time.time(), command.reason, command.detect_ms, agree_ms))
        self.engine.commit(plan, self.situation.named(command.reason))
        self.edge_watch.plan_committed()
        if plan.model != self.card.model:
            # The next coordinator must wish for what is hosted now, not for what its own file once said.
            self._set_card(msgspec.structs.replace(self.card, model=plan.model))

    def _worker_exited(self, pid: int, code: int, written: str) -> None:
        self.pids.add(pid)  # its report comes later
        crash = from_exit(pid, code, written, time.time())
        if crash is not None:
            self._crashed(crash)

    def _crashed(self, crash: Crash) -> None:
        self.events.write(Event(0.0, "crash.seen", self.card.id, msgspec.to_builtins(crash)))
        self.refresh_soon()

    def _edges_checked(self, failed: tuple[PreflightCheck, ...]) -> None:
        for check in failed:
            self.events.write(Event(0.0, "preflight.failed", check.subject, preflight_data(check)))
        self.refresh_soon()

    def _event_written(self, event: Event) -> None:
        self.counts[event.type] += 1
        gap_ms = event.data.get("gap_ms")
        if isinstance(gap_ms, float):
            self.recovery_s += gap_ms / 1e3
        self.mqtt.emit(event)

    # --- telling others -------------------------------------------------------------------------------------

    def refresh_soon(self) -> None:
        """Something that others see changed: told once per turn of the loop, however much changed in it."""
        if not self._refresh_wanted:
            self._refresh_wanted = True
            asyncio.get_running_loop().call_soon(self._refresh)

    def _refresh(self) -> None:
        self._refresh_wanted = False
        self.situation.refresh()

    async def _refresh_for_ever(self) -> None:
        while True:
            self.refresh_soon()
            await asyncio.sleep(REFRESH_S)
            self.control.broadcast(self.situation.node_report())


def _model_name(model: str, source: Path | None) -> str:
    """A folder is named by its whole path: relative ones are meant from where the configuration lies."""
    if model.startswith(("./", "../", "~")):
        base = source.parent if source is not None else Path.cwd()
        return str((base / Path(model).expanduser()).resolve())
    return model


def _is_within(remote: str, address: LocalAddress) -> bool:
    import ipaddress

    return ipaddress.IPv4Address(remote) in address.network
