"""An invitation as one word, and how the node that has one redeems it at the node that gave it.

The word holds a secret of 128 bits, where the inviter listens, and the cluster's name; never the cluster key. From
the secret both ends derive what stands in for the cluster key (key_ring.py), so each proves to the other that it
has the invitation, and the key crosses only inside that TLS connection. Works without a daemon. Raises TrustError.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
import socket
import ssl
import struct
import time
from typing import Final

import msgspec

from exod.errors import TrustError
from exod.model import NodeId
from exod.peers.key_ring import invitation_key, server_name
from exod.peers.peer_messages import Admission, KeyRefused, take
from exod.peers.trust import KEY_BYTES, cluster_name, tls_contexts
from exod.plain_text import printable
from exoengine.framing import FrameError

PREFIX: Final = "exod2-"
MAX_ADDRESSES: Final = 4
"""A node has one to three; the word is to be typed or pasted."""

_HEAD: Final = struct.Struct(">16sHB")
_CHECK_BYTES: Final = 4

MAX_TEXT: Final = 300

CONNECT_S: Final = 3.0
ANSWER_S: Final = 10.0


class InvitationText(msgspec.Struct, frozen=True):
    """What the text of an invitation holds."""

    secret: bytes
    addresses: tuple[str, ...]
    port: int
    cluster: str


def invitation_token(secret: bytes, addresses: tuple[str, ...], port: int, cluster: str) -> str:
    some = addresses[:MAX_ADDRESSES]
    packed = b"".join(ipaddress.IPv4Address(one).packed for one in some)
    body = _HEAD.pack(secret, port, len(some)) + packed + cluster.encode()
    check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
    return PREFIX + base64.urlsafe_b64encode(check + body).decode().rstrip("=")


def read_invitation(token: str) -> InvitationText:
    try:
        encoded = token.strip().removeprefix(PREFIX)
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        check, body = data[:_CHECK_BYTES], data[_CHECK_BYTES:]
        if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
            raise ValueError
        secret, port, count = _HEAD.unpack_from(body)
        at = _HEAD.size + 4 * count
        places = body[_HEAD.size : at]
        if len(places) != 4 * count or not count or not port:
            raise ValueError
        addresses = tuple(str(ipaddress.IPv4Address(places[4 * one : 4 * one + 4])) for one in range(count))
        return InvitationText(secret, addresses, port, cluster_name(body[at:]))
    except (ValueError, struct.error):
        raise TrustError(
            f"this is not a whole invitation: it begins with {PREFIX} and is one word, as printed by: "
            "exoctl cluster invite --for 10m"
        ) from None


def redeem(door: InvitationText, own_key: bytes) -> bytes:
    """The cluster key, from the node that invited."""
    key = invitation_key(door.secret)
    context = tls_contexts(key, NodeId(secrets.token_hex(8)), own_key)[1]
    problems = []
    for address in door.addresses:
        try:
            with socket.create_connection((address, door.port), CONNECT_S) as plain:
                plain.settimeout(ANSWER_S)
                with context.wrap_socket(plain, server_hostname=server_name(key)) as connection:
                    return _answer(connection)
        except ssl.SSLError:
            problems.append(f"{address}: the invitation is not open there any more")
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
    raise TrustError(
        f"the node that invited could not be asked at port {door.port} ({'; '.join(problems)}): is exod running "
        "there, and is this machine on its network? An invitation ends with its time, with its use, and when the "
        "key is rotated; make another with: exoctl cluster invite --for 10m"
    )


def _answer(connection: ssl.SSLSocket) -> bytes:
    buffer = bytearray()
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline and (data := connection.recv(65536)):
        buffer += data
        try:
            message = take(buffer)
        except FrameError as error:
            raise TrustError(f"the node that invited gave no answer that this exod understands: {error}") from None
        if isinstance(message, Admission) and len(message.key) == KEY_BYTES:
            return message.key
        if isinstance(message, KeyRefused):
            raise TrustError(printable(message.text, MAX_TEXT))
    raise TrustError("the node that invited gave no answer; try again, or make another invitation")
