"""The composition root: creates every part of the daemon, wires them, starts and ends them in order.

Holds no policy. What each part decides stands in its own file; what follows from a change is passed on by
`propagation.py`, and what users ask is answered by `status/answers.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from functools import partial
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
    RenegotiateRequested,
    SendMessage,
    SuspendPlan,
)
from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_events import EngineMessageReceived, PlanCommitted, PlanSuspended, WishChanged
from exod.core.engine.engine_messages import EngineMessage
from exod.core.engine_core import EngineCore
from exod.core.node import NodeCore
from exod.daemon_api.peer_reports import LoadCheckMessage, NodeReport, PreflightMessage
from exod.daemon_api.shapes import PreflightCheck
from exod.data_files import Damaged
from exod.diagnostics.crash_watch import CrashWatch
from exod.diagnostics.event_log import EventLog
from exod.diagnostics.frame_size_check import EdgeWatch
from exod.diagnostics.load_check import LoadCheck
from exod.diagnostics.preflight import Preflight, preflight_data
from exod.engine_service.engine_driver import EngineDriver
from exod.engine_service.keep_awake import keep_awake
from exod.engine_service.model_search import look
from exod.first_steps import announce
from exod.http.server import HttpApi
from exod.identity import FolderKeeper, claim
from exod.local_api.server import LocalApi
from exod.membership_file import MembershipFile
from exod.model import ClusterWish, Event, LocalAddress, MeshPlan, NodeCard, NodeId
from exod.mqtt.publisher import MqttService
from exod.network.interfaces import InterfaceWatcher
from exod.network.link_pace import LinkPace
from exod.network.local_network import LocalNetwork
from exod.network.mdns_discovery import Announcement, Discovery
from exod.network.mesh_driver import MeshDriver
from exod.network.probe_sockets import ProbeSockets
from exod.network.unheard import UnheardWatch
from exod.own_card import (
    own_card,
    reached_at,
    sync_settings,
    with_choice,
    with_newer_choice,
    with_sizes,
    worker_environment,
)
from exod.peers.contacts import Contacts
from exod.peers.control_plane import ControlPlane
from exod.peers.membership_driver import MembershipDriver
from exod.peers.peer_addresses import PeerBook
from exod.peers.peer_messages import Goodbye, PeerMessage
from exod.peers.static_peers import StaticPeers
from exod.peers.trust import NODE_KEY_FILE, datagram_key, node_key, ring_key, write_missing_key
from exod.platform import stop_signals
from exod.platform.routes import path_source
from exod.platform.this_host import current, since_boot_s
from exod.propagation import Propagation, follow_membership
from exod.services import Run, Services
from exod.shared_wish import kept_wish
from exod.sharing.model_sharing import ModelSharing
from exod.status.answers import Answers, ClusterSettings, Network, Requests
from exod.status.counters import Counters
from exod.status.membership_answers import MembershipAnswers
from exod.status.record import ClusterRecord, PlanChange
from exod.status.snapshot import StatusBuilder, StatusSettings
from exoengine.protocol import Serving

log = structlog.get_logger()

PRIVATE_UMASK: Final = 0o077
"""What the daemon writes (events, logs, sockets) is its user's alone."""

API_GRACE_S: Final = 0.5
"""For answers that are nearly done. The others are told only then, and must be within a second."""

MQTT_GOODBYE_S: Final = 2.0


class Daemon:
    """One node. `run` returns after an orderly end; it raises ExodError where it cannot start."""

    def __init__(self, config: Config, announce: bool = False) -> None:
        self._config = config
        self._announce = announce
        self._stop = asyncio.Event()
        self._cabling_changed = asyncio.Event()

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
            self.link_pace.close()
            self.driver.close()
            self.prober.close()

    # --- creation -------------------------------------------------------------------------------------------

    def _create(self) -> None:
        config, identity = self._config, self.identity
        self.started_at = since_boot_s()
        self.platform = current()
        self.platform.learn_recommended(identity.recommended_bytes)
        self.card = own_card(config, identity, self.platform)
        self.wish = kept_wish(config, self.card.model, self._wish_changed)
        self.card = msgspec.structs.replace(self.card, wish=self.wish.current)
        self.events = EventLog(config.node.data_dir)
        self.services = Services(lambda kind, data: self.events.write(Event(0.0, kind, identity.id, data)))
        self.peer_book = PeerBook(config.node.data_dir)
        membership_file = MembershipFile(config.node.data_dir, config.cluster.key_file)
        record = membership_file.read(self.card.name)
        damaged_keys: list[Damaged] = []
        own_key = node_key(config.node.data_dir, damaged_keys.append)
        self.membership = MembershipDriver(
            identity.id, self.card.name, config.cluster.name, record, own_key, membership_file
        )
        key = record.current.key
        self.folder = FolderKeeper(
            identity, config.node.data_dir,
            (
                partial(write_missing_key, config.node.data_dir / NODE_KEY_FILE, own_key),
                lambda: membership_file.write_again(self.membership.core.record),
                self.wish.write_again, self.peer_book.write_again, self.events.write_again,
            ),
            lambda kind, data: self.events.write(Event(0.0, kind, identity.id, data)),
        )  # fmt: skip
        self._create_mesh(key)
        self._create_engine(key)
        self._create_diagnostics()
        self._create_status()
        follow_membership(
            self.membership, identity.id, self.core, self.driver.feed, self.engine, self.events, self.refresh_soon
        )
        for damage in (*identity.damaged, *self.peer_book.damaged, *membership_file.damaged, *damaged_keys):
            self.events.write(Event(0.0, "file.damaged", damage.file, msgspec.to_builtins(damage)))

    def _create_mesh(self, key: bytes) -> None:
        config, identity = self._config, self.identity
        self.core = NodeCore(
            self.card,
            key=datagram_key(key),
            config=msgspec.convert(config.mesh, CoreConfig, from_attributes=True),
            platform=self.platform.system,
            seed=identity.incarnation,
            epoch_number=identity.epoch_number,
            now=time.monotonic(),
        )
        self.path_source = partial(path_source, self.platform)
        self.driver = MeshDriver(self.core, self.path_source)
        self.prober = ProbeSockets(self.platform, config.mesh.port, self.driver.feed)
        self.control = ControlPlane(
            identity.id,
            self.membership,
            self.platform,
            on_card=self._peer_card,
            on_message=self._peer_message,
            on_connected=self._peer_connected,
            on_disconnected=lambda peer: self.driver.feed(PeerDisconnected(peer)),
        )
        self.local_network = LocalNetwork(self.platform, identity.id, self.events.write)
        self.control.on_yield = self.driver.forget_peers
        self.prober.on_refused = self.control.on_refused = self.local_network.refused
        self.contacts = Contacts(self.control, self._routes_changed)
        self.interfaces = InterfaceWatcher(
            self.platform, config.mesh.include, config.mesh.exclude, config.mesh.kinds
        )
        announcement = Announcement(
            identity.id, self.card.name, identity.incarnation, VERSION, config.cluster.name, config.mesh.port
        )
        self.discovery = (
            Discovery(announcement, self.contacts.discovered, lambda node: node in self.control.peers())
            if config.cluster.mdns
            else None
        )
        self.static_peers = StaticPeers(config.cluster.peers, self.contacts.static_peer)
        heard = self.discovery.state if self.discovery is not None else None
        known, seen, static = self.peer_book.names, self.interfaces.verdicts, config.cluster.peers
        self.unheard = UnheardWatch(identity.id, self.core.links.__len__, heard, static, known, seen)

    def _create_engine(self, key: bytes) -> None:
        config, identity = self._config, self.identity
        engine_core = EngineCore(
            identity.id,
            identity.incarnation,
            sync_settings(config),
            config.engine.recovery_deadline_s,
            config.engine.ring_port,
            ring_key(key),
            doubts_orphans=self.platform.system == "darwin",
            serving=Serving(config.engine.max_concurrent, config.engine.prompt_cache),
            parallel=config.engine.parallel,
            transport=config.engine.transport,
        )
        self.engine = EngineDriver(
            engine_core,
            config.node.data_dir,
            worker_environment(self.platform, config),
            send=self.control.send,
            tell_all=self.control.broadcast,
            on_event=lambda kind, data: self.events.write(Event(0.0, kind, identity.id, data)),
            on_change=self.refresh_soon,
            on_model_wish=self.wish.ask_model,
            on_ring_port=lambda port: self._set_card(msgspec.structs.replace(self.card, ring_port=port)),
            on_edge=self.driver.feed,
            on_choice=lambda *chosen: self._set_card(with_choice(self.card, *chosen)),
            keeps_spare=config.engine.spare == "auto",
        )
        self.engine.wired_bytes = self.platform.wired_bytes
        self.engine.on_recommended = self._memory_recommended
        self.engine.on_unfit = lambda text: self._set_card(msgspec.structs.replace(self.card, unfit=text))
        self.engine.on_model = lambda model, sizes: self._set_card(with_sizes(self.card, model, sizes))

    def _known_cards(self) -> list[NodeCard]:
        return [self.card, *(link.peer for link in self.core.links.values())]

    def _create_diagnostics(self) -> None:
        folders = self.platform.crash_folders()
        self.crashes = CrashWatch(self.card.id, folders, self.events, self.refresh_soon)
        self.engine.worker.on_exit = self.crashes.worker_exited
        self.preflight = Preflight(
            self.card.id, self.control, self.engine.core, self.core, self._config.mesh.degraded_ms,
            self.path_source, self.platform,
        )  # fmt: skip
        self.load_check = LoadCheck(
            self.control, lambda model: look(model, self.models.fetches.local), self._known_cards,
            lambda: self.engine.core.plan, lambda: self.status.serving().serves,
        )  # fmt: skip
        self.edge_watch = EdgeWatch(self.preflight.edge_checks, self._edges_checked)

    def _create_status(self) -> None:
        """What tells of the rest: the status, MQTT, the API and the socket of `exoctl`."""
        config, identity = self._config, self.identity
        feed = self.driver.feed
        self.mqtt = MqttService.from_config(
            config, identity.id, identity.incarnation, lambda: feed(RenegotiateRequested("asked for over MQTT"))
        )
        self.record = ClusterRecord()
        self.models = ModelSharing(
            config, identity.id, self.platform, lambda: self.membership.core.current.key, self.control, self.record,
            self.events.write, lambda: self.status.node_report(), self.refresh_soon,
        )  # fmt: skip
        self.engine.find = self.models.fetches.find
        self.counters = Counters(self.driver, self.control, self.engine.core, self.events, self.mqtt)
        self.status = StatusBuilder(
            lambda: self.card, StatusSettings.of(config, self.started_at), self.record, self.core, self.engine.core,
            self.events,
            mqtt=lambda: self.mqtt.status, failed_edges=lambda: self.edge_watch.failed,
            api_url=lambda: self.http.url, local_network=lambda: self.local_network.text,
            found=(
                lambda: self.control.facts(config.cluster.name),
                self.services.facts,
                self.folder.facts,
                self.unheard.facts,
                lambda: self.engine.core.rank.worker.memory.facts(identity.id, time.monotonic()),
            ),
            spare=lambda: self.engine.worker.spare.text,
            wired=lambda: self.engine.core.rank.worker.wired.text(time.monotonic()),
        )  # fmt: skip
        self.link_pace = LinkPace(lambda: self.engine.core.is_drained, self.driver.feed)
        self.propagation = Propagation(
            identity.id, self.core, self.status, self.control, self.engine, self.events, self.mqtt,
            self.models.follow,
        )  # fmt: skip
        answers = self._create_answers()
        self.socket = LocalApi(answers, config.control_socket, debug_enabled=config.debug.enabled)
        self.http = HttpApi.from_config(answers, config)
        self.events.on_event += [self.counters.event_written, self.mqtt.emit]
        self.events.on_event += [self.peer_book.event_written, self.membership.event_written]

    def _create_answers(self) -> Answers:
        config = self._config
        requests = Requests(
            self.driver.feed, self.engine.feed, lambda: self.engine.drain(self.wish.ask_drain),
            self.load_check.run, self.preflight.run, self.engine.generate, self.engine.texts.ask,
            self.models.fetches,
        )  # fmt: skip
        return Answers(
            ClusterSettings(
                config.cluster.name,
                config.cluster.key_file,
                config.engine.enabled,
                config.api.model_name,
            ),
            self.status, self.core, self.engine.core, self.events, self.counters.read,
            Network(
                self.platform, self.interfaces.lines,
                self.discovery.state if self.discovery is not None else None,
                self.control.strangers,
                lambda: [(address, one.port) for one in self.peer_book.entries() for address in one.addresses],
            ),
            requests,
            MembershipAnswers(self.membership, self.status, lambda: reached_at(self.card)),
        )  # fmt: skip

    # --- life -----------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        stop_signals.ask(asyncio.get_running_loop(), self._stop.set)
        async with asyncio.TaskGroup() as tasks:
            self.control.set_card(self.card)
            self.driver.start(self.prober, self._carry_out)
            self.contacts.remembered(self.peer_book.entries())
            running: dict[str, Run] = {
                "interfaces": partial(self.interfaces.run, self._addresses_changed),
                "local network": self.local_network.run,
                "control plane": self.control.run,
                "static peers": self.static_peers.run,
                "engine": self.engine.run,
                "models": self.models.run,
                "edge watch": self.edge_watch.run,
                "data folder": self.folder.run,
                "preflight": self.preflight.serve,
                "load checks": self.load_check.serve,
                "mqtt": self.mqtt.run,
                "control socket": self.socket.run,
                "http": self.http.run,
                "figures": self.propagation.run,
                "health": self.propagation.watch,
                "awake": partial(keep_awake, self.platform.system, self.engine.rank_work),
                "thunderbolt": partial(self.record.follow_thunderbolt, self.platform, self._cabling_changed),
                "crash reports": self.crashes.run,
            }
            if self.discovery is not None:
                running["discovery"] = self.discovery.run
            jobs = self.services.start(tasks, running)
            gc.freeze()  # modules and parts stay for ever: to walk through them held the loop for 50 ms
            log.info("exod_started", node=self.card.id, name=self.card.name, api=self.http.url, version=VERSION)
            if self._announce:
                announce(self.http.url, self._config.control_socket)
            await self._stop.wait()
            await self._leave(jobs)

    async def _leave(self, jobs: dict[str, asyncio.Task[None]]) -> None:
        """Stop admitting, let ranks leave together, say goodbye, close sockets in order."""
        log.info("exod_leaving")
        await self.http.stop(API_GRACE_S)
        self.control.broadcast(Goodbye(self.card.incarnation, "it was stopped"))
        await self.engine.leave()
        for name in ("mqtt", "discovery"):
            if name in jobs:
                jobs[name].cancel()
        await asyncio.wait([jobs[name] for name in ("mqtt", "discovery") if name in jobs], timeout=MQTT_GOODBYE_S)
        await self.control.goodbye(self.card.incarnation, "it was stopped")
        for job in jobs.values():
            job.cancel()

    # --- this node changes ----------------------------------------------------------------------------------

    def _addresses_changed(self, addresses: tuple[LocalAddress, ...]) -> None:
        shown = [f"{one.interface} {one.address}/{one.prefix}" for one in addresses]
        log.info("addresses_changed", addresses=shown)
        self._cabling_changed.set()
        self.prober.follow(addresses)
        self.local_network.follow(addresses)
        self.contacts.follow(addresses)
        self.models.addresses_changed(addresses)
        if self.discovery is not None:
            self.discovery.follow(addresses)
        routed = self.contacts.routed(addresses)
        # Only now has the platform been asked what it can give to a model (see Platform.refresh).
        memory_mib = self.platform.memory_mib()
        self._set_card(
            msgspec.structs.replace(self.card, addresses=addresses, pair_routes=routed, memory_mib=memory_mib)
        )

    def _memory_recommended(self, size: int) -> None:
        """Kept for the next start, too: a card that changes after the first plan costs a second one."""
        self.platform.learn_recommended(size)
        self.identity.remember_recommended(size)
        self._set_card(msgspec.structs.replace(self.card, memory_mib=self.platform.memory_mib()))

    def _set_card(self, card: NodeCard) -> None:
        if card != self.card:
            self.card = card
            self.control.set_card(card)
            self.driver.feed(CardChanged(card))
            self.refresh_soon()

    def _wish_changed(self, wish: ClusterWish) -> None:
        self._set_card(msgspec.structs.replace(self.card, wish=wish))
        self.engine.feed(WishChanged(wish))

    # --- peers ----------------------------------------------------------------------------------------------

    def _routes_changed(self) -> None:
        self._set_card(msgspec.structs.replace(self.card, pair_routes=self.contacts.routed(self.card.addresses)))

    def _peer_card(self, card: NodeCard) -> None:
        self.peer_book.note(card)
        self.wish.heard(card.wish)
        self._set_card(with_newer_choice(self.card, card))
        self.driver.feed(PeerCardReceived(card))
        self.refresh_soon()

    def _peer_connected(self, peer: NodeId) -> None:
        self.driver.feed(PeerConnected(peer))
        self.engine.feed(PeerConnected(peer))
        self.control.send(peer, self.status.node_report())

    def _peer_message(self, peer: NodeId, message: PeerMessage) -> None:
        match message:
            case Goodbye(incarnation=incarnation):
                self.driver.feed(PeerLeft(peer, incarnation))
                self.refresh_soon()
            case NodeReport():
                self.peer_book.note_again(peer)
                self.record.peer_report(peer, message)
                self.models.peer_report(peer, message)
                self.refresh_soon()
            case _ if isinstance(message, PreflightMessage):
                self.preflight.handle(peer, message)
            case _ if isinstance(message, LoadCheckMessage):
                self.load_check.handle(peer, message)
            case _ if isinstance(message, MeshMessage):
                self.driver.feed(MessageReceived(peer, message))
            case _ if isinstance(message, EngineMessage):
                self.engine.feed(EngineMessageReceived(peer, message))

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
                self.engine.feed(PlanSuspended(plan_hash, reason))
            case PersistEpoch(number=number):
                self.identity.remember_epoch(number)
            case RaiseIncarnation(seen=seen):
                self.identity.jump_beyond(seen)
                self._set_card(msgspec.structs.replace(self.card, incarnation=self.identity.incarnation))
        self.refresh_soon()

    def _committed(self, plan: MeshPlan, command: CommitPlan) -> None:
        agree_ms = command.agree_ms if len(plan.members) > 1 else None
        self.record.history.append(PlanChange(plan, time.time(), command.reason, command.detect_ms, agree_ms))
        self.engine.feed(PlanCommitted(plan, self.status.named(command.reason)))
        self.edge_watch.plan_committed()
        self._set_card(msgspec.structs.replace(self.card, hosted=plan.model))

    def _edges_checked(self, failed: tuple[PreflightCheck, ...]) -> None:
        for check in failed:
            self.events.write(Event(0.0, "preflight.failed", check.subject, preflight_data(check)))
        self.refresh_soon()

    def refresh_soon(self) -> None:
        """Something that others see changed."""
        self.link_pace.look()
        self.propagation.refresh_soon()
