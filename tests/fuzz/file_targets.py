"""Targets that read files (a model's folder, this node's own files), and texts of invitations and crash reports."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
from pathlib import Path

import msgspec

from exod.config.settings import load
from exod.core.membership.membership import ClusterKey, Invitation, MembershipRecord, RetiredKey
from exod.diagnostics.event_log import EVENTS_FILE, EventLog
from exod.identity import IDENTITY_FILE, STATE_FILE, claim
from exod.membership_file import FILE as MEMBERSHIP_FILE
from exod.membership_file import MembershipFile
from exod.model import NodeId
from exod.peers.invitation import invitation_token, read_invitation
from exod.peers.peer_addresses import FILE as PEERS_FILE
from exod.peers.peer_addresses import PeerBook
from exod.peers.peer_messages import Admission, KeyHeld, KeyOffer, KeyRefused
from exod.peers.trust import write_key
from exod.platform.crash_parser import parse_crash, parse_ips
from exoengine.embedded import model_folder as embedded_folder
from exoengine.model_files.model_folder import inspect
from tests.core.pair.cards import KEY


class Disk:
    """Folders of this process, with a model that is whole."""

    def __init__(self) -> None:
        self._base, self._owner = Path(tempfile.mkdtemp(prefix="exod-fuzz-")), os.getpid()
        self.made = False

    @property
    def folder(self) -> Path:
        """Of this process: others were forked from the one that made the base."""
        folder = self._base / str(os.getpid())
        if not folder.exists():
            folder.mkdir()
            self.made = False
        return folder

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def close(self) -> None:
        if os.getpid() == self._owner:
            shutil.rmtree(self._base, ignore_errors=True)

    def a_model(self) -> Path:
        folder = self.folder
        if not self.made:
            (folder / "model").mkdir()
            source = embedded_folder("embedded:count")
            for path in source.iterdir():
                if path.is_file():
                    shutil.copy(path, self.model / path.name)
            (self.weights,) = self.model.glob("model*.safetensors")
            content = self.weights.read_bytes()
            (length,) = struct.unpack("<Q", content[:8])
            self.data = content[8 + length :]
            self.config = (self.model / "config.json").read_bytes()
            self.header = content[8 : 8 + length]
            self.made = True
        return self.model


DISK = Disk()
atexit.register(DISK.close)


def model_seeds() -> tuple[bytes, ...]:
    DISK.a_model()
    return (b"c" + DISK.config, b"h" + DISK.header)


def model(data: bytes) -> None:
    """The first byte says which file it is of."""
    folder = DISK.a_model()
    is_config = data[:1] == b"c"
    (folder / "config.json").write_bytes(data[1:] if is_config else DISK.config)
    found = DISK.header if is_config else data[1:]
    with DISK.weights.open("wb") as stream:
        stream.write(struct.pack("<Q", len(found)) + found)
        stream.truncate(8 + len(found) + len(DISK.data))
    inspect(folder)


OWN_FILES = (
    b'{"id":"00000000000000aa"}',
    b'{"incarnation":1750000000000,"epoch_number":7}',
    b'{"00000000000000aa":{"name":"x","port":52410,"addresses":["10.0.0.2"],"seen":1750000000.0}}',
    b'{"ts":1.0,"type":"node.down","subject":"a","data":{"x":1}}',
    msgspec.json.encode(
        MembershipRecord(
            ClusterKey(2, KEY, "a"),
            (RetiredKey(ClusterKey(1, bytes(32), "b"), 2e9),),
            {NodeId("1" * 16): "a" * 64},
            {NodeId("2" * 16): 1},
            (Invitation(bytes(16), 2e9, True),),
        )
    ),
    b'[node]\nname = "a"\n[mesh]\nport = 52410\nkinds = { bridge0 = "thunderbolt" }\n[api]\norigins = ["app://x"]\n',
)


KEY_MESSAGES = (
    KeyOffer(3, KEY, "a", {NodeId("1" * 16): 2}),
    KeyHeld("0000-0000-0000-0000"),
    KeyRefused("no"),
    Admission("home", KEY),
)


def own_files(data: bytes) -> None:
    folder = DISK.folder / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in (IDENTITY_FILE, STATE_FILE, PEERS_FILE, EVENTS_FILE, MEMBERSHIP_FILE, "exod.toml"):
        (folder / name).write_bytes(data)
    identity = claim(folder)
    identity.release()
    assert 0 < identity.incarnation < 2**63
    PeerBook(folder).entries()
    write_key(folder / "cluster.key", KEY)
    assert MembershipFile(folder, folder / "cluster.key").read("a").current.key == KEY
    EventLog(folder).recent("node.down", 0.0)
    load(folder / "exod.toml", {})


INVITATION = invitation_token(bytes(16), ("10.0.0.1", "10.0.0.2"), 52410, "home").encode()


def invitation(data: bytes) -> None:
    read_invitation(data.decode("utf-8", "replace"))


CRASHES = (b'{"app_name":"x","bug_type":"309"}\n{"pid":1,"procName":"x"}',)


def crash(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if text[:1] == "{":
        parse_ips(text)
    else:
        parse_crash(text)
