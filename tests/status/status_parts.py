"""What a status is read from, standing still: a view of the core that is made by hand, an engine without a rank."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exod.core.engine.engine_events import ModelFacts
from exod.core.engine.engine_messages import RankStatus
from exod.core.status.view import LinkView, MeshView, NodeEntry, NodeView, PathView
from exod.daemon_api.shapes import MqttSummary
from exod.model import Event, Kind, MeshPlan, MeshState, NodeCard, NodeId, NodeState, PathId, PathState
from exod.status.record import ClusterRecord
from exod.status.snapshot import StatusBuilder, StatusSettings
from exoengine.protocol import Hello, Loaded
from tests.core.pair.cards import card

ME, PEER = card(1), card(2)


@dataclass
class StillProcess:
    hello: Hello | None = None
    restarts: int = 0


@dataclass
class StillLoad:
    progress: tuple[int, int] = (0, 0)


@dataclass
class StillSync:
    violations: int = 0


@dataclass
class StillModel:
    facts: ModelFacts | None = None


@dataclass
class StillWish:
    wished: str = "auto"


@dataclass
class StillRank:
    model: StillModel = field(default_factory=StillModel)
    loaded: Loaded | None = None
    worker: StillProcess = field(default_factory=StillProcess)
    load: StillLoad = field(default_factory=StillLoad)
    sync_watch: StillSync = field(default_factory=StillSync)


@dataclass
class StillQueue:
    draining: bool = False
    waiting: int = 0


@dataclass
class StillEngine:
    plan: MeshPlan | None = None
    suspended: str = ""
    statuses: dict[NodeId, RankStatus] = field(default_factory=dict)
    rank: StillRank = field(default_factory=StillRank)
    auto: StillWish = field(default_factory=StillWish)
    scheduler: StillQueue = field(default_factory=StillQueue)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def ranks(self) -> list[RankStatus]:
        return list(self.statuses.values())

    def trouble(self) -> str:
        return "it is told to load"

    def disagreement(self) -> str:
        return ""

    async def drain(self) -> None:
        self.scheduler.draining = True


@dataclass
class StillLiveness:
    state: NodeState = NodeState.UP


@dataclass
class StillLink:
    peer: NodeCard
    liveness: StillLiveness = field(default_factory=StillLiveness)
    paths: tuple[object, ...] = ()


@dataclass
class StillCore:
    """`NodeCore` as far as a status reads it."""

    seen: NodeView
    card: NodeCard = ME

    @property
    def links(self) -> dict[NodeId, StillLink]:
        return {PEER.id: StillLink(PEER)}

    def view(self, now: float) -> NodeView:
        return self.seen

    def history(self) -> tuple[object, ...]:
        return ()


class NoEvents:
    def recent(self, kind: str, since: float) -> Sequence[Event]:
        return ()

    def write(self, event: Event) -> None:
        raise AssertionError(f"reading wrote {event}")

    async def read(self, since: float | None, follow: bool) -> AsyncGenerator[Event, None]:
        for event in ():
            yield event


PATH = PathView(
    id=PathId("1-2-bridge0"),
    interface="bridge0",
    kind=Kind.THUNDERBOLT,
    local="10.0.0.1",
    remote="10.0.0.2",
    state=PathState.UP,
    peer_state=PathState.DEGRADED,
    rtt_ms=0.41234567,
    rtt_p90_ms=0.61234567,
    score_ms=0.51234567,
    in_band=True,
    samples=10,
    last_rtt_ms=0.40123456,
    last_heard_s=0.0123456,
    loss=0.0123456,
    lasting_loss=0.0,
    selected=True,
    eligible=False,
    routed=False,
    why="1-2-bridge0 is best",
    fault="a debug fault adds 5 ms for another 3 s",
)


def seen(*paths: PathView, agreed: bool = True) -> NodeView:
    nodes = (
        NodeEntry(ME.id, ME.name, NodeState.UP, 0.0, "this node", True, 1, "0"),
        NodeEntry(PEER.id, PEER.name, NodeState.UP, 0.0, "", False, 1, "0"),
    )
    link = LinkView(
        peer=PEER.id,
        peer_name=PEER.name,
        agreed=agreed,
        agreed_since=0.0,
        selected=PATH.id,
        peer_selected=PATH.id,
        peer_seq=3,
        seq=3,
        kind=Kind.THUNDERBOLT,
        paths=paths or (PATH,),
    )
    return NodeView(ME, nodes, (link,), MeshView(MeshState.AGREED, 1, ME.id, None, None, (), None))


def status_of(core: StillCore, engine: StillEngine | None = None) -> StatusBuilder:
    return StatusBuilder(
        lambda: ME,
        StatusSettings("home", 5.0, True, 3.0, "dynamic", 0.0, Path()),
        ClusterRecord(),
        core,  # type: ignore[arg-type]
        engine or StillEngine(),
        NoEvents(),
        mqtt=lambda: MqttSummary("off", "off"),
        failed_edges=tuple,
        api_url=lambda: "http://127.0.0.1:1",
    )
