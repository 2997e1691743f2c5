"""Files between two nodes over real TLS on loopback: what may be asked for, what is believed, and what is not."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exod.model import NodeId
from exod.model_transfer.file_hashes import FileHashes
from exod.model_transfer.file_server import MAX_CONNECTIONS, MAX_PER_NODE, FileServer
from exod.model_transfer.model_places import (
    FileList,
    Offers,
    copied,
    copy_folder,
    put_together,
    repository_folder,
    write_list,
)
from exod.model_transfer.peer_files import Credentials, FileConnection, FileSource, RefusedError, client_context
from exod.model_transfer.transfer_messages import (
    Files,
    OfferedFile,
    is_file_name,
    is_model_name,
    problem_of,
)
from exod.peers.trust import credentials, load_chain, peer_id, tls_contexts

KEY = b"k" * 32
GIVER, TAKER = NodeId("a" * 16), NodeId("b" * 16)
MODEL = "maker/tiny"
COMMIT = "c" * 40
WEIGHTS = os.urandom(3_000_000)


class Giver:
    """A node that gives, as `model_sharing.py` puts it together."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.copies = folder / "cache", folder / "copies"
        self.folders: dict[str, Path] = {}
        self.members = {TAKER}
        offers = Offers(lambda: self.cache, self.copies, lambda: self.folders, FileHashes(folder))
        context = tls_contexts(KEY, GIVER)[0]
        self.server = FileServer(lambda: context, offers, lambda node: node in self.members)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, source = self.listener.accept()
            except OSError:
                return
            self.server.accepted(sock, source[0])

    def has_repository(self) -> None:
        place = repository_folder(self.cache, MODEL)
        (place / "blobs").mkdir(parents=True)
        files = []
        for name, content in (("config.json", b"{}"), ("model.safetensors", WEIGHTS)):
            etag = hashlib.sha256(content).hexdigest()
            (place / "blobs" / etag).write_bytes(content)
            files.append(OfferedFile(name, len(content), etag))
        put_together(place, FileList(MODEL, COMMIT, tuple(files)))

    def connect(self, key: bytes = KEY, node: NodeId = GIVER) -> FileConnection:
        context = client_context(Credentials(*credentials(key, TAKER)), load_chain)
        return FileConnection(FileSource(node, "giver", "", "", "127.0.0.1", self.port), context, peer_id)


@pytest.fixture
def giver(tmp_path: Path) -> Iterator[Giver]:
    one = Giver(tmp_path)
    yield one
    one.listener.close()
    one.server.close()


def received(connection: FileConnection, model: str, name: str, offset: int, size: int) -> bytes:
    got = bytearray()
    connection.receive(model, name, offset, size, got.extend)
    return bytes(got)


def nothing() -> None:
    pass


def test_a_list_and_any_range_of_a_file_come_with_what_they_are_checked_by(giver: Giver) -> None:
    giver.has_repository()
    with giver.connect() as connection:
        files = connection.files(MODEL, nothing)
        assert (files.commit, [file.name for file in files.files]) == (COMMIT, ["config.json", "model.safetensors"])
        assert all(file.here and file.sha256 == file.etag for file in files.files)
        for offset in (0, 1, 2_999_999, len(WEIGHTS)):
            assert received(connection, MODEL, "model.safetensors", offset, len(WEIGHTS)) == WEIGHTS[offset:]


def test_whoever_has_another_key_or_is_no_member_now_gets_nothing(giver: Giver) -> None:
    giver.has_repository()
    with pytest.raises(ssl.SSLError), giver.connect(b"x" * 32) as connection:
        connection.files(MODEL, nothing)
    giver.members.clear()
    with giver.connect() as connection, pytest.raises(RefusedError):
        connection.files(MODEL, nothing)


def test_another_node_at_the_address_is_not_asked(giver: Giver) -> None:
    with pytest.raises(ConnectionAbortedError):
        giver.connect(node=NodeId("d" * 16))


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".hidden", "a/../b", "", "blobs/x\0", "cluster.key"]
)
def test_no_name_leads_out_of_a_model(giver: Giver, tmp_path: Path, name: str) -> None:
    giver.has_repository()
    (tmp_path / "cluster.key").write_text("secret")
    with giver.connect() as connection, pytest.raises(RefusedError):
        received(connection, MODEL, name, 0, 6)


@pytest.mark.parametrize("model", ["../x", "a", "a/b/c", "/etc", "/tmp/../etc", ".hf/x", "maker/other"])
def test_what_nobody_offers_is_not_given(giver: Giver, model: str) -> None:
    with giver.connect() as connection, pytest.raises(RefusedError):
        connection.files(model, nothing)


def test_a_folder_is_given_only_where_a_person_told_so_and_without_what_links_lead_to(
    giver: Giver, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "notes.md").write_bytes(b"not a model's")
    (tmp_path / "secret.json").write_bytes(b"secret")
    (folder / "stolen.json").symlink_to(tmp_path / "secret.json")
    with giver.connect() as connection, pytest.raises(RefusedError):
        connection.files(str(folder), nothing)
    giver.folders[str(folder)] = folder
    with giver.connect() as connection:
        files = connection.files(str(folder), nothing)
        assert [file.name for file in files.files] == ["config.json", "model.safetensors"]
        assert received(connection, str(folder), "model.safetensors", 0, len(WEIGHTS)) == WEIGHTS
        for name in ("notes.md", "stolen.json"):
            with pytest.raises(RefusedError):
                received(connection, str(folder), name, 0, 6)


def test_a_node_gives_what_is_whole_and_says_what_it_lacks(giver: Giver) -> None:
    giver.has_repository()
    place = repository_folder(giver.cache, MODEL)
    missing = OfferedFile("model-2.safetensors", 5, "f" * 64)
    with giver.connect() as connection:
        files = connection.files(MODEL, nothing)
        write_list(place, FileList(MODEL, COMMIT, (*files.files, missing)))
        (place / "snapshots" / COMMIT / "model.safetensors").unlink()
        here = {file.name: file.here for file in connection.files(MODEL, nothing).files}
        assert here == {"config.json": True, "model.safetensors": True, "model-2.safetensors": False}
        with pytest.raises(RefusedError):
            received(connection, MODEL, "model-2.safetensors", 0, 5)


def test_a_file_of_another_size_than_announced_is_refused(giver: Giver) -> None:
    giver.has_repository()
    with giver.connect() as connection, pytest.raises(RefusedError, match="instead of"):
        received(connection, MODEL, "model.safetensors", 0, len(WEIGHTS) + 1)


def test_one_node_has_so_many_connections_and_its_oldest_gives_way(giver: Giver) -> None:
    giver.has_repository()
    connections = [giver.connect() for _ in range(MAX_PER_NODE + 1)]
    try:
        for connection in connections[1:]:
            connection.files(MODEL, nothing)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            connections[0].files(MODEL, nothing)
    finally:
        for connection in connections:
            connection.__exit__()


def test_strangers_who_say_nothing_keep_no_member_out(giver: Giver) -> None:
    giver.has_repository()
    strangers = [socket.create_connection(("127.0.0.1", giver.port)) for _ in range(MAX_CONNECTIONS)]
    try:
        with giver.connect() as connection:
            assert connection.files(MODEL, nothing).commit == COMMIT
    finally:
        for stranger in strangers:
            stranger.close()


def list_of(**changes: object) -> Files:
    values: dict[str, object] = {"name": "model.safetensors", "size": 1, "etag": "a" * 64} | changes
    return Files(COMMIT, (OfferedFile(**values),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "files",
    [
        Files("../..", ()), Files(COMMIT, ()), list_of(name="../x.safetensors"), list_of(etag="../x"),
        list_of(size=-1), list_of(size=1 << 60), list_of(etag="A" * 64), list_of(name="x" * 600 + ".safetensors"),
    ],
)  # fmt: skip
def test_a_peers_list_is_believed_only_where_it_can_be_a_models(files: Files) -> None:
    assert problem_of(files)
    assert not problem_of(list_of())


def test_names_that_models_have_are_names() -> None:
    assert is_model_name("mlx-community/Qwen2.5-0.5B-Instruct-4bit")
    assert is_model_name("/Users/me/My Models/tiny")
    assert is_file_name("model-00001-of-00002.safetensors")
    assert is_file_name("original/params.json")


def test_a_copy_is_found_by_the_path_it_came_from_once_it_is_whole(tmp_path: Path) -> None:
    model = "/models/mine"
    place = copy_folder(tmp_path, model)
    assert place.parent == tmp_path
    etag = hashlib.sha256(b"{}").hexdigest()
    listed = FileList(model, COMMIT, (OfferedFile("model.safetensors", 2, etag),))
    (place / "blobs").mkdir(parents=True)
    write_list(place, listed)
    assert copied(model, tmp_path) is None
    (place / "blobs" / etag).write_bytes(b"{}")
    assert copied(model, tmp_path) is None
    folder = put_together(place, listed)
    assert copied(model, tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == b"{}"
    assert copy_folder(tmp_path, "/a/../../etc/..").parent == tmp_path


def test_a_file_is_read_once_for_its_hash_and_again_when_it_changed(tmp_path: Path) -> None:
    path, reads = tmp_path / "one", [0]

    def reading() -> None:
        reads[0] += 1

    path.write_bytes(b"abc")
    first = FileHashes(tmp_path)
    assert first.sha256(path, reading) == hashlib.sha256(b"abc").hexdigest()
    assert FileHashes(tmp_path).sha256(path, reading) == first.sha256(path, reading)
    assert reads == [1]
    path.write_bytes(b"abcd")
    assert first.sha256(path, reading) == hashlib.sha256(b"abcd").hexdigest()
