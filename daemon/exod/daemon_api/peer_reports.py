"""What daemons tell and ask each other for the people who watch them: reports, the preflight of another node, and
whether it could host a model.

Shapes alone: `peers/peer_messages.py` carries them, `status/` and `diagnostics/` fill and read them. Times are Unix
seconds. The tags are the wire's.
"""

from __future__ import annotations

import msgspec

from exod.daemon_api.shapes import PreflightCheck
from exod.model import ModelFetch, NodeId, PullRecord, ThunderboltPort


class NodeReport(msgspec.Struct, frozen=True, tag="node_report"):
    """What a node reports of itself to those who watch the cluster from another node."""

    sender: NodeId
    health: str
    reasons: tuple[tuple[str, str, str, float], ...]
    """(code, subject, text, since) each."""
    uptime_s: float
    memory_mib: int
    thunderbolt: tuple[ThunderboltPort, ...] = ()
    """Its receptacles, and what each is cabled to."""
    wall: float = 0.0
    """Unix seconds when it was sent; 0 from a version that did not say."""
    hears: tuple[tuple[NodeId, str], ...] = ()
    """The other nodes that it hears: id and name."""
    files_port: int = 0
    """Where it gives files of models to others; 0: nowhere."""
    pulls: tuple[PullRecord, ...] = ()
    """What people asked for by command, as far as it knows."""
    fetches: tuple[ModelFetch, ...] = ()
    """What it has of that."""


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


class LoadCheckWish(msgspec.Struct, frozen=True, tag="load_check_wish"):
    """Could the receiver host this model? Answered with a LoadCheckAnswer of the same serial."""

    serial: int
    model: str


class LoadCheckAnswer(msgspec.Struct, frozen=True, tag="load_check_answer"):
    """What a node's own disk says of a model. `code` and `text` say why it cannot host it; empty where it can, or
    may fetch it first.
    """

    serial: int
    code: str = ""
    text: str = ""
    fingerprint: str = ""
    """Of the files; empty where they are not here."""
    needs_mib: int = 0
    """All layers with the configured context; 0 where that is not known."""
    memory_mib: int = 0
    """What the node can give to a model."""


LoadCheckMessage = LoadCheckWish | LoadCheckAnswer
PreflightMessage = TransferProbe | TransferReply | PreflightWish | PreflightAnswer
