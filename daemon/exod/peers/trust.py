"""The cluster key, and everything that follows from it: one secret of 32 bytes per cluster.

From it come, by HKDF-SHA256 (RFC 5869) with a label each: the MAC key of datagrams, and the Ed25519 key of a
certificate authority that every node can rebuild, so that each mints its own certificate and the control plane is
mutual TLS with no exchange of files. The certificate is for the node's own key pair, which stays the same over
restarts and rotations of the cluster key: by it the others know a node again (core/membership/membership.py).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import re
import secrets
import ssl
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from exod.data_files import Damaged, open_regular, set_aside
from exod.errors import TrustError
from exod.model import NodeId

KEY_BYTES: Final = 32
TOKEN_PREFIX: Final = "exod1-"

CLUSTER_NAME: Final = r"[A-Za-z0-9._-]{1,63}"
"""As the configuration allows it."""

NODE_KEY_FILE: Final = "node.key"

CERTIFICATE_START: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
CERTIFICATE_END: Final = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)
"""Two Macs whose clocks are years apart (a flat battery) must still meet: validity never depends on time. A
certificate lives as long as its process, and every holder of the cluster key can make another."""


def derive(key: bytes, label: str, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) with an empty salt and `label` as info; at most 32 bytes, one block."""
    extracted = hmac.digest(b"\0" * 32, key, hashlib.sha256)
    return hmac.digest(extracted, label.encode() + b"\x01", hashlib.sha256)[:length]


def datagram_key(key: bytes) -> bytes:
    """The 32-byte MAC key of probes."""
    return derive(key, "exod datagram mac v1")


def ring_key(key: bytes) -> bytes:
    """What the ranks of a ring prove themselves to each other with."""
    return derive(key, "exod ring v1")


def key_fingerprint(key: bytes) -> str:
    """Names a key to people without giving it away: 4 groups of 4 hexadecimal digits."""
    digits = derive(key, "exod key fingerprint v1", 8).hex()
    return "-".join(digits[at : at + 4] for at in range(0, 16, 4))


# --- the key file -------------------------------------------------------------------------------------------


def read_key(path: Path) -> bytes:
    """The key in `path`. Raises TrustError where it is missing, malformed, or others can read it."""
    try:
        with open_regular(path) as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read(1024)
    except FileNotFoundError:
        raise TrustError(f"{path}: there is no cluster key; make one with: exoctl cluster init") from None
    except OSError as error:
        raise TrustError(f"{path}: the cluster key cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise TrustError(f"{path}: others can read this cluster key (mode {mode:04o}); run: chmod 600 {path}")
    if not re.fullmatch(rb"[0-9a-fA-F]{64}\s*", text):
        raise TrustError(f"{path}: is not a cluster key: allowed is one line of 64 hexadecimal characters")
    return bytes.fromhex(text.decode().strip())


def write_key(path: Path, key: bytes) -> None:
    """Writes a new key file, mode 0600. Raises TrustError where there is one already."""
    if path.exists():
        raise TrustError(f"{path}: there is a cluster key already; move it away first if you mean to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(key.hex() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            path.unlink()  # half a key would be refused at the next start
            raise
    except OSError as error:
        raise TrustError(f"{path}: the cluster key cannot be written: {error.strerror}") from None


def write_missing_key(path: Path, key: bytes) -> None:
    """Writes the key file again where there is none any more. Raises TrustError."""
    if not os.path.lexists(path):
        write_key(path, key)


def create_key(path: Path) -> bytes:
    """A new random key, written to `path`."""
    key = secrets.token_bytes(KEY_BYTES)
    write_key(path, key)
    return key


def replace_key(path: Path, key: bytes) -> None:
    """Puts a key in the place of another, as a whole or not at all. Raises TrustError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_key(fresh, key)
    try:
        os.replace(fresh, path)
    except OSError as error:
        raise TrustError(f"{path}: the cluster key cannot be replaced: {error.strerror}") from None


def _tell_nobody(_: Damaged) -> None:
    pass


def node_key(folder: Path, tell: Callable[[Damaged], None] = _tell_nobody) -> bytes:
    """The private half of this node's own key pair, made where there is none. One that is damaged, or that others
    can read, is set aside, and `tell` is told: the others then see a node that they do not know. Raises TrustError.
    """
    file = folder / NODE_KEY_FILE
    try:
        return read_key(file)
    except TrustError as error:
        if file.is_dir():
            raise TrustError(f"{file}: cannot be replaced: it is a folder; move it away") from None
        if os.path.lexists(file):
            damaged = set_aside(file, str(error))
            if not damaged.moved_to:
                raise TrustError(f"{file}: cannot be replaced; move it away") from None
            tell(damaged)
        return create_key(file)


def invite_token(key: bytes, name: str) -> str:
    """What `exoctl cluster join` takes on the next machine: the cluster's name and key in one word.

    It is the secret itself, so a screen that shows it must say so.
    """
    body = key + name.encode()
    check = hashlib.sha256(body).digest()[:4]
    return TOKEN_PREFIX + base64.urlsafe_b64encode(check + body).decode().rstrip("=")


def cluster_name(found: bytes) -> str:
    """The name in an invitation, which is shown: its maker may have put any text there. Raises ValueError."""
    name = found.decode()
    if not re.fullmatch(CLUSTER_NAME, name):
        raise ValueError
    return name


def join_token(token: str) -> tuple[str, bytes]:
    """(cluster name, key) of an invitation. Raises TrustError where it is not whole."""
    text = token.strip()
    try:
        if not text.startswith(TOKEN_PREFIX):
            raise ValueError
        encoded = text.removeprefix(TOKEN_PREFIX)
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        check, body = data[:4], data[4:]
        if len(body) <= KEY_BYTES or hashlib.sha256(body).digest()[:4] != check:
            raise ValueError
        return cluster_name(body[KEY_BYTES:]), body[:KEY_BYTES]
    except ValueError:
        raise TrustError(
            f"this is not a whole invitation: it begins with {TOKEN_PREFIX} and is one word, as printed by: "
            "exoctl cluster invite"
        ) from None


# --- certificates -------------------------------------------------------------------------------------------


def tls_contexts(
    key: bytes, node_id: NodeId, own_key: bytes | None = None
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server, client) contexts of this node: TLS 1.3, both ends must show a certificate of the cluster.

    Host names mean nothing here: who a peer is stands in its certificate's common name (`peer_id`). `own_key` is
    what `node_key` gives; without one the certificate is for a key pair that nobody knows again.
    """
    authority, certificate, private_key = _mint(key, node_id, own_key or secrets.token_bytes(KEY_BYTES))
    contexts = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority)
        if purpose == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # a session that is taken up again would outlive the key that opened it
        load_chain(context, certificate + private_key)
        contexts.append(context)
    return contexts[0], contexts[1]


def credentials(key: bytes, node_id: NodeId) -> tuple[str, str]:
    """(the authority's certificate, a certificate of this node with its key), PEM: for a process of this node."""
    authority, certificate, private_key = _mint(key, node_id, secrets.token_bytes(KEY_BYTES))
    return authority, (certificate + private_key).decode()


def load_chain(context: ssl.SSLContext, chain: bytes) -> None:
    """A certificate and its key. The ssl module only takes files: one of mode 0600 that lives for this call."""
    with tempfile.NamedTemporaryFile(prefix="exod-", suffix=".pem") as file:
        file.write(chain)
        file.flush()
        context.load_cert_chain(file.name)


def _mint(key: bytes, node_id: NodeId, own_key: bytes) -> tuple[str, bytes, bytes]:
    """(the authority's certificate, this node's certificate, its private key), all PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority_key = Ed25519PrivateKey.from_private_bytes(derive(key, "exod certificate authority v1"))
    authority_name = name("exod cluster " + key_fingerprint(key))
    node_key = Ed25519PrivateKey.from_private_bytes(derive(own_key, "exod node key v1"))

    def builder(subject: x509.Name, serial: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .serial_number(serial)
            .not_valid_before(CERTIFICATE_START)
            .not_valid_after(CERTIFICATE_END)
        )

    key_usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        builder(authority_name, 1)
        .public_key(authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, None)
    )
    leaf = (
        builder(name(node_id), x509.random_serial_number())
        .public_key(node_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{node_id}.exod")]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(authority_key, None)
    )
    pem = serialization.Encoding.PEM
    private = node_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return authority.public_bytes(pem).decode(), leaf.public_bytes(pem), private


def peer_id(ssl_object: ssl.SSLObject) -> NodeId:
    """Who is at the other end of an established connection: the common name of its certificate."""
    certificate: dict[str, Any] = dict(ssl_object.getpeercert() or {})
    for relative_name in certificate.get("subject", ()):
        for field, value in relative_name:
            if field == "commonName" and re.fullmatch(r"[0-9a-f]{16}", value):
                return NodeId(value)
    raise TrustError("the peer's certificate names no node")


def peer_pin(ssl_object: ssl.SSLObject) -> str:
    """SHA-256 of the public key that the other end proved to have: what a node is known again by."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    certificate = ssl_object.getpeercert(binary_form=True)
    if certificate is None:
        raise TrustError("the peer shows no certificate")
    public = x509.load_der_x509_certificate(certificate).public_key()
    form = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(form).hexdigest()
