"""What crosses between the models' core and its shell: inputs and commands, all frozen."""

from __future__ import annotations

import msgspec

from exod.model import ModelFetch, NodeId, PullRecord


class PullAsked(msgspec.Struct, frozen=True):
    """By command on this node; a pause is a record, too."""

    record: PullRecord


class PullsHeard(msgspec.Struct, frozen=True):
    """Another node's records."""

    records: tuple[PullRecord, ...]


class RankLooksFor(msgspec.Struct, frozen=True):
    """This node's rank begins to look for a model, which may be here already."""

    model: str


class ModelNeeded(msgspec.Struct, frozen=True):
    """This node's rank looks for it."""

    model: str


class ModelNotNeeded(msgspec.Struct, frozen=True):
    """The rank looks for it no more."""

    model: str


class PeerFetches(msgspec.Struct, frozen=True):
    peer: NodeId
    fetches: tuple[ModelFetch, ...]


class PeersNow(msgspec.Struct, frozen=True):
    """Who is connected."""

    peers: frozenset[NodeId]


class FetchProgress(msgspec.Struct, frozen=True):
    model: str
    done_bytes: int
    total_bytes: int
    sources: tuple[str, ...]


class FetchEnded(msgspec.Struct, frozen=True):
    """All of it is here."""

    model: str


class FetchFailed(msgspec.Struct, frozen=True):
    model: str
    code: str
    text: str


ModelsInput = (
    PullAsked
    | PullsHeard
    | RankLooksFor
    | ModelNeeded
    | ModelNotNeeded
    | PeerFetches
    | PeersNow
    | FetchProgress
    | FetchEnded
    | FetchFailed
)


class StartFetch(msgspec.Struct, frozen=True):
    """Fetch what is missing of it; the process of it asks all nodes, and the hub where it may."""

    model: str
    may_ask_hub: bool


class Redirect(msgspec.Struct, frozen=True):
    model: str
    may_ask_hub: bool


class StopFetch(msgspec.Struct, frozen=True):
    model: str


class FetchOver(msgspec.Struct, frozen=True):
    """Tell those who wait for it. None: it is here."""

    model: str
    failure: tuple[str, str] | None


class KeepPulls(msgspec.Struct, frozen=True):
    """On the disk, for the next start."""

    records: tuple[PullRecord, ...]
    had: dict[str, float]


class FetchesChanged(msgspec.Struct, frozen=True):
    """Others are to hear of it at once."""


class EmitFetchEvent(msgspec.Struct, frozen=True):
    type: str
    fetch: ModelFetch


ModelsCommand = StartFetch | Redirect | StopFetch | FetchOver | KeepPulls | FetchesChanged | EmitFetchEvent
