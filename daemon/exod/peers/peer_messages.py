"""What daemons say to each other over the control plane, and how it is encoded.

A frame (`exoengine/framing.py`) is MessagePack; each message's tag says which one it is. Decides nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_messages import EngineMessage
from exod.core.membership.membership import MAX_REMOVED, Key
from exod.daemon_api.peer_reports import NodeReport, PreflightMessage
from exod.model import MAX_COUNTER, Counter, NodeCard, NodeId
from exoengine import framing
from exoengine.decoding import DecodingError, decode
from exoengine.framing import FrameError

CONTROL_PROTOCOL: Final = 1

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The longest message is a request with its prompt; the HTTP API takes bodies below this."""


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    protocol: int
    card: NodeCard
    key_number: Annotated[int, msgspec.Meta(ge=-1, le=MAX_COUNTER)] = -1
    """Of the cluster key that the sender holds; -1 from a daemon that knows no rotation."""


class CardUpdate(msgspec.Struct, frozen=True, tag="card"):
    card: NodeCard


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The sender's daemon ends on purpose."""

    incarnation: int
    text: str


class StillThere(msgspec.Struct, frozen=True, tag="still_there"):
    pass


class KeyOffer(msgspec.Struct, frozen=True, tag="key_offer"):
    """The cluster key that is in force, for a member that may not have it yet."""

    number: Counter
    key: Key
    by: str
    removed: Annotated[dict[NodeId, Counter], msgspec.Meta(max_length=MAX_REMOVED)]


class KeyHeld(msgspec.Struct, frozen=True, tag="key_held"):
    """The sender took the key with this fingerprint over."""

    fingerprint: str


class KeyRefused(msgspec.Struct, frozen=True, tag="key_refused"):
    """The receiver is given no key, and why."""

    text: str


class Admission(msgspec.Struct, frozen=True, tag="admission"):
    """The answer to an invitation that was redeemed: everything that makes a member."""

    cluster: str
    key: Key


KeyMessage = KeyOffer | KeyHeld | KeyRefused
"""About the cluster key: they may come before a greeting, and nothing of them reaches the cores."""

PeerMessage = MeshMessage | EngineMessage | Goodbye | NodeReport | PreflightMessage
ControlMessage = PeerMessage | KeyMessage | Admission | Greeting | CardUpdate | StillThere

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)


def encode(message: ControlMessage) -> bytes:
    """The whole frame, header included. Raises FrameError."""
    return framing.frame(_encoder.encode(message), MAX_FRAME_BYTES)


def take(buffer: bytearray) -> ControlMessage | None:
    """The first message, taken out of `buffer`; None until it is whole. Raises FrameError."""
    body = framing.take(buffer, MAX_FRAME_BYTES)
    if body is None:
        return None
    try:
        return decode(_decoder, body)
    except DecodingError as error:
        raise FrameError(f"not a control message: {error}") from None
