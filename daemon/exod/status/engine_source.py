"""What the status reads of this node's engine, as protocols: no more of it is known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from exod.core.engine.engine_events import ModelFacts
from exod.core.engine.engine_messages import RankStatus
from exod.core.engine.queue_times import QueueTimes
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Heartbeat, Hello, Loaded


class ProcessSource(Protocol):
    """The worker's process."""

    @property
    def hello(self) -> Hello | None: ...

    @property
    def restarts(self) -> int: ...

    @property
    def heartbeat(self) -> Heartbeat | None: ...


class LoadSource(Protocol):
    """What that process holds."""

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes that are loaded, and all that there are."""
        ...


class SyncSource(Protocol):
    """What is known of steps that waited too long."""

    @property
    def violations(self) -> int: ...


class ModelSource(Protocol):
    @property
    def facts(self) -> ModelFacts | None:
        """What is known of the model; None while it is looked for."""
        ...


class WishSource(Protocol):
    @property
    def wished(self) -> str:
        """This node's `engine.parallel`."""
        ...


class RankSource(Protocol):
    """This node's rank."""

    @property
    def model(self) -> ModelSource: ...

    @property
    def loaded(self) -> Loaded | None: ...

    @property
    def worker(self) -> ProcessSource: ...

    @property
    def load(self) -> LoadSource: ...

    @property
    def sync_watch(self) -> SyncSource: ...


class QueueSource(Protocol):
    """The coordinator's queue; empty on the other nodes."""

    @property
    def draining(self) -> bool: ...

    @property
    def queue_times(self) -> QueueTimes: ...

    @property
    def waiting(self) -> int: ...


class EngineSource(Protocol):
    @property
    def plan(self) -> MeshPlan | None: ...

    @property
    def suspended(self) -> str:
        """Why the plan cannot be used now; empty where it can."""
        ...

    @property
    def statuses(self) -> Mapping[NodeId, RankStatus]:
        """The newest of each node, under whichever plan."""
        ...

    @property
    def rank(self) -> RankSource: ...

    @property
    def auto(self) -> WishSource: ...

    @property
    def scheduler(self) -> QueueSource: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def cached_requests(self) -> int: ...

    def ranks(self) -> list[RankStatus]:
        """Of the plan's ranks, those that reported under it, in rank order."""
        ...

    def trouble(self) -> str:
        """What the engine waits for; empty where it runs."""
        ...

    def disagreement(self) -> str:
        """Why the ranks of the plan must not form a group; empty where they may."""
        ...
