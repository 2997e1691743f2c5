"""Puts together what brings models to this node and gives them to others: the fetches, the file server, its port.

Holds no policy. What is fetched is decided by `core/models/`, what may be given by
`model_transfer/model_places.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog

from exod.config.settings import Config
from exod.core.models.model_events import PeerFetches, PeersNow, PullsHeard
from exod.core.status.view import LinkView, NodeView
from exod.daemon_api.peer_reports import NodeReport
from exod.engine_service.model_fetches import ModelFetches
from exod.errors import StartError
from exod.model import Event, LocalAddress, NodeId, NodeState, PathState
from exod.model_transfer.file_hashes import FileHashes
from exod.model_transfer.file_server import FileServer
from exod.model_transfer.model_places import Offers
from exod.model_transfer.peer_files import Credentials, FileSource
from exod.model_transfer.transfer_messages import is_model_name
from exod.peers.listeners import Listeners
from exod.peers.trust import credentials, tls_contexts
from exod.platform.system import Platform
from exod.status.record import ClusterRecord

log = structlog.get_logger()

PORTS_TRIED: Final = 4
"""After the mesh's own port: other programs rarely have all of them."""

BACKLOG: Final = 32

_USABLE: Final = (PathState.UP, PathState.DEGRADED)


class ControlConnections(Protocol):
    """What is needed of the control plane."""

    def peers(self) -> list[NodeId]: ...

    def broadcast(self, message: NodeReport) -> None: ...


class ModelSharing:
    """`key` is the cluster's of now, which may be rotated; `own_report` makes what this node says of itself."""

    def __init__(
        self,
        config: Config,
        me: NodeId,
        platform: Platform,
        key: Callable[[], bytes],
        peers: ControlConnections,
        record: ClusterRecord,
        on_event: Callable[[Event], None],
        own_report: Callable[[], NodeReport],
        refresh_soon: Callable[[], None],
    ) -> None:
        self._me, self._key = me, key
        self._minted: tuple[bytes, ssl.SSLContext, Credentials] | None = None
        self._mesh_port, self._peers, self._record = config.mesh.port, peers, record
        self._own_report, self._refresh_soon = own_report, refresh_soon
        folder = config.node.data_dir
        self.fetches = ModelFetches(
            me,
            config.node.name,
            config.engine.enabled,
            folder,
            self._credentials,
            lambda kind, model, data: on_event(Event(0.0, kind, model, data)),
            self._changed,
        )
        offers = Offers(hub_cache, self.fetches.copies, self.fetches.offered_folders, FileHashes(folder))
        self._server = FileServer(lambda: self._mint()[1], offers, lambda node: node in peers.peers())
        self._listeners = Listeners(platform, BACKLOG, self._server.accepted)

    def _mint(self) -> tuple[bytes, ssl.SSLContext, Credentials]:
        """Certificates of the key of now. Called from threads, too."""
        key, minted = self._key(), self._minted
        if minted is None or minted[0] != key:
            server, _ = tls_contexts(key, self._me)
            minted = self._minted = key, server, Credentials(*credentials(key, self._me))
        return minted

    def _credentials(self) -> Credentials:
        return self._mint()[2]

    def _changed(self) -> None:
        """Other nodes and this node's screens are told at once."""
        self._record.fetches, self._record.pulls = self.fetches.fetches(), self.fetches.pulls()
        self._peers.broadcast(self._own_report())
        self._refresh_soon()

    def _listen(self) -> None:
        """A node that can give no files still takes part in all else."""
        for port in range(self._mesh_port + 1, self._mesh_port + 1 + PORTS_TRIED):
            try:
                self._listeners.listen(port)
            except (StartError, OverflowError):
                continue
            self._record.files_port = port
            return
        log.warning("no_port_for_files", first=self._mesh_port + 1, tried=PORTS_TRIED)

    async def run(self) -> None:
        """Until cancelled; may be run again after an error."""
        self._server.open()
        self._listen()
        self._changed()
        self._listeners.accept()
        try:
            await self.fetches.run()
        finally:
            self._listeners.close()
            self._server.close()

    def addresses_changed(self, addresses: tuple[LocalAddress, ...]) -> None:
        self._listeners.follow(addresses)

    def peer_report(self, peer: NodeId, report: NodeReport) -> None:
        self.fetches.feed(PullsHeard(tuple(one for one in report.pulls if is_model_name(one.model))))
        self.fetches.feed(PeerFetches(peer, report.fetches))

    def follow(self, view: NodeView) -> None:
        """Called at each refresh: who is there, and which path leads to each."""
        up = frozenset(node.id for node in view.nodes if node.state is not NodeState.DOWN and not node.is_self)
        self.fetches.feed(PeersNow(up))
        self.fetches.follow(
            tuple(source for link in view.links if link.peer in up for source in self._source(link))
        )

    def _source(self, link: LinkView) -> tuple[FileSource, ...]:
        """The way to a node's files: the path that the pair uses, or, while none is agreed, one that works."""
        report = self._record.report(link.peer)
        usable = sorted((path for path in link.paths if path.state in _USABLE), key=lambda path: not path.selected)
        if report is None or not report.files_port or not usable:
            return ()
        path = usable[0]
        return (FileSource(link.peer, link.peer_name, path.local, path.interface, path.remote, report.files_port),)


def hub_cache() -> Path:
    """Where the library keeps what came from a hub. Loading it takes long: called from threads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
