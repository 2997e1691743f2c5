"""The cluster key: its file, its invitations, and the TLS that follows from it."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from exod.errors import TrustError
from exod.model import NodeId
from exod.peers.trust import (
    _mint,
    create_key,
    datagram_key,
    derive,
    invite_token,
    join_token,
    key_fingerprint,
    peer_id,
    read_key,
    ring_key,
    tls_contexts,
    write_key,
)

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
A, B = NodeId("00000000000000aa"), NodeId("00000000000000bb")


# --- the file -----------------------------------------------------------------------------------------------


def test_a_new_key_is_private_random_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "cluster.key"
    key = create_key(file)
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == key.hex() + "\n"
    assert read_key(file) == key
    assert create_key(tmp_path / "another.key") != key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "cluster.key"
    write_key(file, KEY)
    file.chmod(mode)
    with pytest.raises(TrustError) as refused:
        read_key(file)
    assert str(refused.value) == (
        f"{file}: others can read this cluster key (mode {mode:04o}); run: chmod 600 {file}"
    )


@pytest.mark.parametrize(
    "text", [b"", b"abc", b"g" * 64, b"0" * 63, b"0" * 65, b"0" * 64 + b"\n0", b"\xff" * 64, b"0" * 2000]
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "cluster.key"
    file.write_bytes(text)
    file.chmod(0o600)
    with pytest.raises(TrustError, match="allowed is one line of 64 hexadecimal characters"):
        read_key(file)


def test_a_missing_key_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="exoctl cluster init"):
        read_key(tmp_path / "cluster.key")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "cluster.key"
    write_key(file, KEY)
    with pytest.raises(TrustError, match="there is a cluster key already"):
        write_key(file, OTHER_KEY)
    assert read_key(file) == KEY


def test_half_a_key_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrustError, match="No space left on device"):
        write_key(tmp_path / "cluster.key", KEY)
    assert not (tmp_path / "cluster.key").exists()


# --- what follows from it -----------------------------------------------------------------------------------


def test_keys_are_derived_as_rfc_5869_says() -> None:
    reference = HKDF(SHA256(), length=32, salt=None, info=b"a label").derive(KEY)
    assert derive(KEY, "a label") == reference


def test_each_use_has_a_key_of_its_own() -> None:
    keys = {
        KEY,
        datagram_key(KEY),
        ring_key(KEY),
        derive(KEY, "exod certificate authority v1"),
        datagram_key(OTHER_KEY),
    }
    assert len(keys) == 5


def test_a_fingerprint_names_a_key_and_gives_nothing_away() -> None:
    name = key_fingerprint(KEY)
    assert [len(group) for group in name.split("-")] == [4, 4, 4, 4]
    assert name != key_fingerprint(OTHER_KEY)
    assert name.replace("-", "") not in KEY.hex()


def test_an_invitation_carries_name_and_key() -> None:
    token = invite_token(KEY, "home")
    assert " " not in token
    assert join_token(f"  {token}\n") == ("home", KEY)


@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-1], lambda t: t[6:], lambda t: t[:20] + "A" + t[21:], lambda t: "é" + t]
)
def test_a_spoilt_invitation_is_refused(spoil: object) -> None:
    token = invite_token(KEY, "home")
    with pytest.raises(TrustError, match="not a whole invitation"):
        join_token(spoil(token))  # type: ignore[operator]


@pytest.mark.parametrize("token", ["", "exod1-", "exod1-AAAA", "nonsense"])
def test_what_is_no_invitation_is_refused(token: str) -> None:
    with pytest.raises(TrustError, match="not a whole invitation"):
        join_token(token)


# --- TLS ----------------------------------------------------------------------------------------------------


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[NodeId | Exception, NodeId | Exception]:
    """Who the server saw and who the client saw, or what stopped them."""
    ends = socket.socketpair()
    seen: list[NodeId | Exception] = [ValueError("nothing"), ValueError("nothing")]

    def one_end(place: int, context: ssl.SSLContext, server_side: bool) -> None:
        try:
            with context.wrap_socket(ends[place], server_side=server_side) as stream:
                stream.settimeout(10)
                stream.sendall(b"x")
                stream.recv(1)
                assert stream.version() == "TLSv1.3"
                seen[place] = peer_id(stream)  # type: ignore[arg-type]
        except OSError as error:
            seen[place] = error
            ends[place].close()

    threads = [
        threading.Thread(target=one_end, args=(0, server, True)),
        threading.Thread(target=one_end, args=(1, client, False)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return seen[0], seen[1]


def test_nodes_of_one_key_know_each_other_by_their_certificates() -> None:
    assert shake_hands(tls_contexts(KEY, A)[0], tls_contexts(KEY, B)[1]) == (B, A)


def test_nodes_of_different_keys_refuse_each_other() -> None:
    for server_key, client_key in ((KEY, OTHER_KEY), (OTHER_KEY, KEY)):
        server, client = shake_hands(tls_contexts(server_key, A)[0], tls_contexts(client_key, B)[1])
        assert isinstance(server, OSError)
        assert isinstance(client, ssl.SSLCertVerificationError)


def test_a_client_that_would_trust_anyone_is_refused_by_the_server() -> None:
    trusting = tls_contexts(OTHER_KEY, B)[1]
    trusting.verify_mode = ssl.CERT_NONE
    server, _ = shake_hands(tls_contexts(KEY, A)[0], trusting)
    assert isinstance(server, ssl.SSLError)


def test_a_client_without_a_certificate_is_refused_by_the_server() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    server, _ = shake_hands(tls_contexts(KEY, A)[0], bare)
    assert isinstance(server, ssl.SSLError)


def test_no_private_key_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tls_contexts(KEY, A)
    assert list(tmp_path.iterdir()) == []


class _Presented:
    def __init__(self, name: str) -> None:
        self._name = name

    def getpeercert(self) -> dict[str, object]:
        return {"subject": ((("commonName", self._name),),)}


@pytest.mark.parametrize("name", ["", "studio1", "00000000000000AA", "00000000000000aa\n", "0" * 17])
def test_a_certificate_that_names_no_node_is_refused(name: str) -> None:
    with pytest.raises(TrustError, match="names no node"):
        peer_id(_Presented(name))  # type: ignore[arg-type]


def test_a_certificate_is_valid_whatever_the_clock_says() -> None:
    """A Mac whose battery was flat begins in 1970, where some systems begin."""
    from cryptography import x509

    authority, leaf, _ = _mint(bytes(32), NodeId("1" * 16), bytes(32))
    for pem in (authority.encode(), leaf):
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.not_valid_before_utc.timestamp() == 0
        assert certificate.not_valid_after_utc.year >= 2120
