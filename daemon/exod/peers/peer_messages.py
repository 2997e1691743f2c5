"""What daemons say to each other over a control connection, and how it is framed.

A frame is a 4-byte big-endian length and that many bytes of MessagePack. Decides nothing. Used by
`control_connection.py` and by whoever sends or takes such a message.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.base.mesh_messages import MeshMessage
from exod.core.engine.engine_messages import EngineMessage
from exod.daemon_api.shapes import PreflightCheck
from exod.model import NodeCard, NodeId
from exod.platform import ThunderboltPort
from exoengine.decoding import DecodingError, decode

CONTROL_PROTOCOL: Final = 1

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The longest message is a request with its prompt; the HTTP API takes bodies below this."""

HEADER_BYTES: Final = 4


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


class NodeReport(msgspec.Struct, frozen=True, tag="node_report"):
    """What a node says of itself for whoever watches the cluster from another node."""

    sender: NodeId
    health: str
    reasons: tuple[tuple[str, str, str, float], ...]
    """(code, subject, text, since) each."""
    uptime_s: float
    memory_mib: int
    thunderbolt: tuple[ThunderboltPort, ...] = ()
    """Its receptacles, and what each is cabled to."""


class TransferProbe(msgspec.Struct, frozen=True, tag="transfer_probe"):
    """Preflight's short transfer: answered with a TransferReply of the same serial."""

    serial: int
    payload: bytes


class TransferReply(msgspec.Struct, frozen=True, tag="transfer_reply"):
    serial: int
    received_bytes: int


class PreflightWish(msgspec.Struct, frozen=True, tag="preflight_wish"):
    serial: int


class PreflightAnswer(msgspec.Struct, frozen=True, tag="preflight_answer"):
    serial: int
    checks: tuple[PreflightCheck, ...]


PeerMessage = (
    MeshMessage
    | EngineMessage
    | Goodbye
    | NodeReport
    | TransferProbe
    | TransferReply
    | PreflightWish
    | PreflightAnswer
)
ControlMessage = PeerMessage | Greeting | CardUpdate | StillThere

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)


class FrameError(Exception):
    """What came is no message of this protocol, or what should go is too long for it."""


def frame(message: ControlMessage) -> bytes:
    """The whole frame, header included. Raises FrameError."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def take(buffer: bytearray) -> ControlMessage | None:
    """The first message, taken out of `buffer`; None until it is whole. Raises FrameError."""
    if len(buffer) < HEADER_BYTES:
        return None
    end = HEADER_BYTES + int.from_bytes(buffer[:HEADER_BYTES], "big")
    if end > HEADER_BYTES + MAX_FRAME_BYTES:
        raise FrameError(f"a message of {end - HEADER_BYTES} bytes is over the limit of {MAX_FRAME_BYTES}")
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER_BYTES:end])
    del buffer[:end]
    try:
        return decode(_decoder, body)
    except DecodingError as error:
        raise FrameError(f"not a control message: {error}") from None
