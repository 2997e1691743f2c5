"""The TLS contexts of a node's keys: the current one, those that were retired, and open invitations.

A dial names the key that it means by its fingerprint (as TLS's server name, which is not secret), and the end that
accepts answers by that key, or by the current one where the name says nothing to it. Decides nothing about who is
let in: it says only by which key a connection was proven.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Final

from exod.model import NodeId
from exod.peers.trust import derive, key_fingerprint, tls_contexts

SERVER_NAME_END: Final = ".exod"


def invitation_key(secret: bytes) -> bytes:
    """What stands in for the cluster key while an invitation is redeemed."""
    return derive(secret, "exod invitation v1")


def server_name(key: bytes) -> str:
    return key_fingerprint(key) + SERVER_NAME_END


class Proof:
    """By what the other end of a connection proved itself: a cluster key, or an invitation's secret."""

    def __init__(self, key: bytes, secret: bytes | None = None) -> None:
        self.key, self.secret = key, secret


class KeyRing:
    """`own_key` is this node's own (`trust.node_key`)."""

    def __init__(self, node_id: NodeId, own_key: bytes | None) -> None:
        self._node_id, self._own_key = node_id, own_key
        self._contexts: dict[bytes, tuple[ssl.SSLContext, ssl.SSLContext]] = {}
        self._proofs: dict[str, Proof] = {}
        """By server name."""
        self._keys: tuple[bytes, ...] = ()

    def follow(self, keys: Iterable[bytes], secrets: Iterable[bytes]) -> None:
        """`keys` are the cluster keys, the current one first; `secrets` are of open invitations."""
        self._keys = tuple(keys)
        proofs = [Proof(key) for key in self._keys]
        proofs += [Proof(invitation_key(secret), secret) for secret in secrets]
        self._proofs = {server_name(proof.key): proof for proof in proofs}
        wanted = {proof.key for proof in proofs}
        self._contexts = {key: pair for key, pair in self._contexts.items() if key in wanted}
        self._pair(self._keys[0])

    def _pair(self, key: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        if key not in self._contexts:
            server, client = tls_contexts(key, self._node_id, self._own_key)
            server.sni_callback = self._choose
            self._contexts[key] = (server, client)
        return self._contexts[key]

    @property
    def server(self) -> ssl.SSLContext:
        return self._pair(self._keys[0])[0]

    def dials(self) -> list[tuple[ssl.SSLContext, str]]:
        """What to dial a peer with, one after the other: (context, server name)."""
        return [(self._pair(key)[1], server_name(key)) for key in self._keys]

    def _choose(self, sock: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        proof = self._proofs.get(name or "")
        if proof is not None:
            sock.context = self._pair(proof.key)[0]

    def proof(self, ssl_object: ssl.SSLObject) -> Proof:
        """By what the other end of an established connection proved itself."""
        used = ssl_object.context
        for proof in self._proofs.values():
            if used in self._contexts.get(proof.key, ()):
                return proof
        return Proof(b"")  # retired while the handshake was under way
