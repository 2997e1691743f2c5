"""What daemons say to each other over the control plane, and how it is encoded.

A frame (`exoengine/framing.py`) is MessagePack; each message's tag says which one it is. Decides nothing.
"""

from __future__ import annotations

from typing import Annotated, Final, get_args

import msgspec

from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_messages import EngineMessage
from exod.core.membership.membership import MAX_REMOVED, Key
from exod.daemon_api.peer_reports import LoadCheckMessage, NodeReport, PreflightMessage
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
    life: str = ""
    """Of the sender's process alone; empty from a daemon that does not say it."""
    joined: bool = False
    """Is the sender connected to any peer?"""
    guest: bool = False
    """It does not join: it asks whether its twin is still there."""
    revision: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)] = 0
    """Of the card, as in CardUpdate."""


class CardUpdate(msgspec.Struct, frozen=True, tag="card"):
    card: NodeCard
    revision: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)] = 0
    """Rises with each card of a daemon's life; 0 from a daemon that numbers none."""


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The sender's daemon ends on purpose."""

    incarnation: Counter
    text: str


class TwinSeen(msgspec.Struct, frozen=True, tag="twin_seen"):
    """To a node: another host greeted under its id. `joined`: that one is the receiver's peer already."""

    card: NodeCard
    joined: bool
    life: str


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

PeerMessage = MeshMessage | EngineMessage | Goodbye | NodeReport | PreflightMessage | LoadCheckMessage
ControlMessage = PeerMessage | KeyMessage | Admission | Greeting | CardUpdate | TwinSeen | StillThere


class UnknownMessage(msgspec.Struct, frozen=True):
    """Of a type that this version does not know; the sender needs no answer."""

    tag: str


class _ForeignCard(msgspec.Struct, frozen=True):
    name: str = ""


class ForeignGreeting(msgspec.Struct, frozen=True, tag="greeting"):
    """Of another version of the protocol: what every version has in its first message."""

    protocol: int
    card: _ForeignCard = _ForeignCard()


class _AnyMessage(msgspec.Struct, frozen=True):
    type: str


_KNOWN_TAGS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ControlMessage))
_any_decoder = msgspec.msgpack.Decoder(_AnyMessage)
_foreign_decoder = msgspec.msgpack.Decoder(ForeignGreeting)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)


def encode(message: ControlMessage) -> bytes:
    """The whole frame, header included. Raises FrameError."""
    return framing.frame(_encoder.encode(message), MAX_FRAME_BYTES)


def take(buffer: bytearray) -> ControlMessage | UnknownMessage | ForeignGreeting | None:
    """The first message, taken out of `buffer`; None until it is whole. Raises FrameError."""
    body = framing.take(buffer, MAX_FRAME_BYTES)
    if body is None:
        return None
    try:
        return decode(_decoder, body)
    except DecodingError as error:
        return _of_another_version(body, error)


def _of_another_version(body: bytes, error: DecodingError) -> UnknownMessage | ForeignGreeting:
    """What can be understood of it. Raises FrameError where that is nothing."""
    try:
        tag = decode(_any_decoder, body).type
        if tag == "greeting":
            foreign = decode(_foreign_decoder, body)
            if foreign.protocol != CONTROL_PROTOCOL:
                return foreign
        elif tag not in _KNOWN_TAGS:
            return UnknownMessage(tag)
    except DecodingError:
        pass
    raise FrameError(f"not a control message: {error}") from None
