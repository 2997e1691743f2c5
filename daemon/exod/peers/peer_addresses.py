"""Where peers were seen, kept over restarts: the fastest way back to a mesh is to dial where it was.

A hint and never a source of truth: who answers must still hold the cluster key.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from exod import data_files
from exod.data_files import Damaged
from exod.model import Event, NodeCard, NodeId

log = structlog.get_logger()

FILE: Final = "peers.json"
MAX_PEERS: Final = 64
MAX_ADDRESSES: Final = 8
KEPT_S: Final = 30 * 86_400.0
"""A peer that was not seen for a month is found by discovery or not at all."""

NOTED_AGAIN_S: Final = 86_400.0
"""Of a peer that is there and says nothing new, the file is a day behind at most: one that was connected for a
month is still known after a power cut. Once a day is no wear."""


Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Address = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$")]


class Remembered(msgspec.Struct, frozen=True):
    name: str
    port: Port
    addresses: tuple[Address, ...]
    seen: float
    """Unix seconds."""


class PeerBook:
    """The remembered peers of one data folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self.damaged: tuple[Damaged, ...] = ()
        self._peers = self._read()

    def _read(self) -> dict[NodeId, Remembered]:
        try:
            peers = data_files.read(self._file, dict[NodeId, Remembered])
        except OSError:
            return {}
        if isinstance(peers, Damaged):
            self.damaged = (peers,)
            return {}
        newest = sorted(peers.items(), key=lambda item: -item[1].seen)[:MAX_PEERS]
        return {peer: entry for peer, entry in newest if time.time() - entry.seen < KEPT_S}

    def entries(self) -> list[Remembered]:
        return list(self._peers.values())

    def names(self) -> list[str]:
        return [one.name for one in self._peers.values()]

    def note(self, card: NodeCard) -> None:
        """A peer showed its card: written down when it says something new."""
        addresses = tuple(address.address for address in card.addresses[:MAX_ADDRESSES])
        known = self._peers.get(card.id)
        entry = Remembered(card.name, card.mesh_port, addresses, time.time())
        same = known is not None and msgspec.structs.replace(known, seen=entry.seen) == entry
        if same or not addresses:
            return
        self._keep(card.id, entry)

    def note_again(self, peer: NodeId) -> None:
        """It is still there, where it was."""
        known = self._peers.get(peer)
        if known is not None and time.time() - known.seen >= NOTED_AGAIN_S:
            self._keep(peer, msgspec.structs.replace(known, seen=time.time()))

    def _keep(self, peer: NodeId, entry: Remembered) -> None:
        self._peers[peer] = entry
        while len(self._peers) > MAX_PEERS:
            del self._peers[min(self._peers, key=lambda peer: self._peers[peer].seen)]
        self._save()

    def event_written(self, event: Event) -> None:
        if event.type == "node.forgotten":
            self.forget(NodeId(event.subject))

    def forget(self, peer: NodeId) -> None:
        """It is not dialled any more after the next start."""
        if self._peers.pop(peer, None) is not None:
            self._save()

    def write_again(self) -> None:
        """Where the file was removed. Raises OSError."""
        if self._peers and not self._file.exists():
            self._write()

    def _save(self) -> None:
        try:
            self._write()
        except OSError as error:
            log.warning("peer_book_failed", file=str(self._file), error=error.strerror)

    def _write(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self._peers))
        temporary.replace(self._file)
