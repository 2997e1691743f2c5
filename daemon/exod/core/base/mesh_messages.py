"""Control-plane messages of the mesh: what nodes say to each other about links and plans.

Carried over mutual TLS in the order of one connection; any of them may be lost with its connection, doubled
or late, and handling them twice is harmless.
"""

from __future__ import annotations

import msgspec

from exod.model import Counter, Epoch, Kind, MeshPlan, NodeId, PathId, Selection


class LinkSummary(msgspec.Struct, frozen=True):
    """One pair as one of its ends sees it: what a coordinator needs to plan with."""

    peer: NodeId
    peer_incarnation: Counter
    agreed: bool
    selection: Selection | None
    path: PathId | None
    interface: str
    address: str
    kind: Kind
    in_band: bool
    """Is the selected path's floor within the degraded limit?"""
    cost_ms: float
    """floor + half of (p90 - floor), rounded so that jitter does not cause reports."""
    peer_name: str = ""
    up: bool = True
    """Is the peer heard just now? Else it is suspect."""


class LinkReport(msgspec.Struct, frozen=True, tag="links"):
    """All pairs of the sender. `seq` rises with each report of an incarnation; the newest counts."""

    sender: NodeId
    incarnation: Counter
    seq: Counter
    epoch_seen: Counter
    links: tuple[LinkSummary, ...]


class Propose(msgspec.Struct, frozen=True, tag="propose"):
    plan: MeshPlan
    reason: str


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    sender: NodeId
    incarnation: Counter
    epoch: Epoch
    plan_hash: str


class Nack(msgspec.Struct, frozen=True, tag="nack"):
    """`epoch_seen` lets the coordinator number its next proposal above it."""

    sender: NodeId
    incarnation: Counter
    epoch: Epoch
    plan_hash: str
    epoch_seen: Counter
    text: str


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Carries the whole plan, so that a member that lost the proposal can still follow."""

    plan: MeshPlan
    reason: str


class Committed(msgspec.Struct, frozen=True, tag="committed"):
    """A member's receipt for a Commit: the coordinator repeats the Commit until it has one."""

    sender: NodeId
    incarnation: Counter
    epoch: Epoch
    plan_hash: str


class RenegotiateWish(msgspec.Struct, frozen=True, tag="renegotiate"):
    """A member asks its coordinator for a new plan. `plan_hash` is the plan it holds now: once another one is
    committed the wish is fulfilled, so a repeated or late wish changes nothing.
    """

    sender: NodeId
    reason: str
    plan_hash: str = ""
    by_hand: bool = False
    """A person asks: the running order of the ring need not be kept."""


MeshMessage = LinkReport | Propose | Ack | Nack | Commit | Committed | RenegotiateWish
