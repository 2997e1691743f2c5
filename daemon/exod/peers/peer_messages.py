"""What daemons say to each other over the control plane, and how it is encoded.

A frame (`exoengine/framing.py`) is MessagePack; each message's tag says which one it is. Decides nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_messages import EngineMessage
from exod.daemon_api.peer_reports import NodeReport, PreflightMessage
from exod.model import NodeCard
from exoengine import framing
from exoengine.decoding import DecodingError, decode
from exoengine.framing import FrameError

CONTROL_PROTOCOL: Final = 1

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The longest message is a request with its prompt; the HTTP API takes bodies below this."""


class Greeting(msgspec.Struct, frozen=True, tag="greeting"):
    protocol: int
    card: NodeCard


class CardUpdate(msgspec.Struct, frozen=True, tag="card"):
    card: NodeCard


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    """The sender's daemon ends on purpose."""

    incarnation: int
    text: str


class StillThere(msgspec.Struct, frozen=True, tag="still_there"):
    pass


PeerMessage = MeshMessage | EngineMessage | Goodbye | NodeReport | PreflightMessage
ControlMessage = PeerMessage | Greeting | CardUpdate | StillThere

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
