"""What a running daemon tells about itself: the shapes of everything that is shown.

One struct per answer of `interface.py`. `StatusReport` encodes to the contract's `status --json` plus fields that
only add. Field names carry units; times named `at` or `since` are Unix seconds; a figure is None until measured.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from exod.daemon_api.forecast_line import ForecastLine
from exod.daemon_api.model_lines import DownloadLine, ModelLine
from exod.model import (
    EngineState,
    Event,
    Health,
    Kind,
    MeshPlan,
    MeshState,
    NodeId,
    NodeState,
    PathId,
    PathSnapshot,
    PathState,
    Reason,
)

STATUS_SCHEMA: Final = 1
"""Rises when a field of `status --json` changes its meaning; new fields do not count."""


# --- status -------------------------------------------------------------------------------------------------


class ThisNode(msgspec.Struct, frozen=True):
    id: NodeId
    name: str
    incarnation: int
    version: str
    uptime_s: float


class ClusterSummary(msgspec.Struct, frozen=True):
    name: str
    size: int
    """Nodes that are known and not down, this one included."""


class NodeLine(msgspec.Struct, frozen=True, rename={"is_self": "self"}):
    id: NodeId
    name: str
    state: NodeState
    is_self: bool
    incarnation: int
    version: str
    left: bool = False
    """It said goodbye: it is down because someone sent it away."""


class LinkLine(msgspec.Struct, frozen=True):
    """One pair: this node and `peer`. `agreed` is true when both ends have seen the same selection."""

    peer: NodeId
    peer_name: str
    agreed: bool
    selected: PathId | None
    seq: int
    paths: tuple[PathSnapshot, ...]


class EdgeLine(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """`address` is where `target` listens: `address:port`."""

    source: NodeId
    target: NodeId
    interface: str
    """On the source's side."""
    kind: Kind
    address: str


class MeshChange(msgspec.Struct, frozen=True):
    """`detect_ms`: from the last sign of life to the verdict; None where no fault caused the change."""

    at: float
    reason: str
    detect_ms: float | None
    agree_ms: float | None


class MeshSummary(msgspec.Struct, frozen=True):
    state: MeshState
    epoch: int | None
    """The plan epoch's number; None before the first plan."""
    coordinator: NodeId | None
    plan: str | None
    """The plan's hash."""
    ring: tuple[NodeId, ...]
    edges: tuple[EdgeLine, ...]
    last_change: MeshChange | None
    names: dict[NodeId, str] = {}
    """Of the ring's nodes: this node need not hear all of them."""


class RankLine(msgspec.Struct, frozen=True):
    node: NodeId
    rank: int
    layers: tuple[int, int]
    """First, and last exclusive."""
    pid: int | None
    """None until its process is known here."""
    restarts: int
    parts: int = 1
    """In a tensor group, of how many parts of each of these layers it has one."""


class SyncMode(msgspec.Struct, frozen=True):
    mode: Literal["fast", "safe"]
    reason: str


class EngineSummary(msgspec.Struct, frozen=True):
    state: EngineState
    model: str | None
    ranks: tuple[RankLine, ...]
    sync: SyncMode
    tokens_per_s: float | None
    baseline_tokens_per_s: float | None
    last_gap_ms: float | None
    text: str = ""
    """Why it is in this state, where that is not plain: what it loads and how far, why it failed."""
    parallel: Literal["pipeline", "tensor"] = "pipeline"
    """Has each rank some of the layers, or a part of each?"""
    active: int = 0
    """Requests that are computed, on the whole cluster."""
    waiting: int = 0
    """Requests in the coordinator's queue."""
    requests_active: int = 0
    requests_waiting: int = 0
    """The same two under their older names: no field of the status goes without a new schema."""
    downloads: tuple[DownloadLine, ...] = ()
    forecasts: tuple[ForecastLine, ...] = ()
    """What was predicted for each way of running the model here; nothing where its ranks measured nothing yet."""
    parallel_reason: str = ""
    """Why it runs as it does, as text."""
    transport: Literal["tcp", "rdma"] = "tcp"
    """What the ranks communicate over inside graphs."""
    transport_reason: str = ""
    """Why it is not RDMA, where that was asked for or was so before."""
    spare: str = ""
    """This node's spare worker: `ready`, or why there is none."""


class MqttSummary(msgspec.Struct, frozen=True):
    state: Literal["off", "connecting", "connected"]
    broker: str | None
    """`host:port` without credentials, or `embedded on host:port`."""
    text: str = ""
    """Why it is not connected, as text."""


class CrashLine(msgspec.Struct, frozen=True):
    """A process of exod's on this host that crashed, from the event `crash.seen`."""

    at: float
    text: str
    cure: str


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """`exoctl status --json` and `GET /api/status`."""

    schema: int = STATUS_SCHEMA
    node: ThisNode
    health: Health
    reasons: tuple[Reason, ...]
    cluster: ClusterSummary
    nodes: tuple[NodeLine, ...]
    links: tuple[LinkLine, ...]
    mesh: MeshSummary
    engine: EngineSummary
    mqtt: MqttSummary
    crashes: tuple[CrashLine, ...] = ()
    """Of the last hours, newest first."""
    notes: tuple[Reason, ...] = ()
    """What is good to know and makes nothing unhealthy, with codes as reasons have."""
    api: str = ""
    """The base URL of this node's HTTP API; empty where it does not listen."""
    models: tuple[ModelLine, ...] = ()
    """Models that are fetched, or were asked for by command."""


# --- links and ping -----------------------------------------------------------------------------------------


class PathDetail(PathSnapshot, frozen=True):
    """One path with what its place in the order came from."""

    eligible: bool = True
    """False: it is measured, and the ring cannot use it (a route that leaves elsewhere, a person's wish)."""
    score_ms: float | None = None
    """floor + half of (p90 - floor): the order inside one state, band and kind."""
    in_band: bool | None = None
    """Is the floor within the degraded limit?"""
    peer_state: PathState | None = None
    """The same path's state as the other end last reported it."""
    samples: int = 0
    last_heard_s: float | None = None
    """Seconds since its last valid datagram."""
    fault: str = ""
    """A debug fault that lies on it at this end, as text."""


class LinkDetail(msgspec.Struct, frozen=True):
    peer: NodeId
    peer_name: str
    peer_state: NodeState
    agreed: bool
    selected: PathId | None
    seq: int
    peer_selected: PathId | None
    """What the other end says it selected (or has seen selected)."""
    peer_seq: int | None
    selects_here: bool
    """Is this end the one that selects (the lower id)?"""
    paths: tuple[PathDetail, ...]
    """Best first."""
    peer_left: bool = False
    """It said goodbye."""
    text: str = ""
    """Why the peer is not up, as text; empty where it is."""


class LinksReport(msgspec.Struct, frozen=True):
    links: tuple[LinkDetail, ...]
    at: float = 0.0


class LinkDecision(msgspec.Struct, frozen=True):
    """One decision of the bounded history, with the figures that it was made from."""

    at: float
    peer: NodeId | None
    """None where it concerns the whole mesh."""
    peer_name: str
    subject: str
    """The path, the plan or the node that it is about."""
    decision: str
    figures: dict[str, str] = {}
    """What the decision was made from, as text."""


class PathTrace(msgspec.Struct, frozen=True):
    """A path's round trips over the last hour, oldest first, one sample each `every_s`; the newest is of now."""

    peer: NodeId
    peer_name: str
    path: PathId
    interface: str
    kind: Kind
    every_s: float
    rtt_ms: tuple[float | None, ...]
    """None where it was dead or not measured."""
    selected: tuple[bool, ...]
    """Was it in use? As many as `rtt_ms`."""


class LinkHistoryReport(msgspec.Struct, frozen=True):
    """Oldest first."""

    decisions: tuple[LinkDecision, ...]
    traces: tuple[PathTrace, ...] = ()


class PingReply(msgspec.Struct, frozen=True):
    """One probe and what became of it. `rtt_us` is None where no answer came in time; `text` then says why."""

    seq: int
    peer: NodeId
    peer_name: str
    path: PathId
    interface: str
    kind: Kind
    local: str
    remote: str
    rtt_us: float | None
    text: str = ""


# --- this host's network ------------------------------------------------------------------------------------


class InterfaceLine(msgspec.Struct, frozen=True):
    name: str
    kind: Kind
    kind_source: str
    """Where the kind was taken from, as text: the hardware port, an address range, the config."""
    up: bool
    addresses: tuple[str, ...]
    """`address/prefix`."""
    eligible: bool
    why: str
    """What makes it eligible or not, as text."""


class NetworkCheck(msgspec.Struct, frozen=True):
    """mDNS, a port, a peer's address: something that either works or has a cure."""

    name: str
    subject: str
    ok: bool
    text: str
    cure: str = ""


class NetcheckReport(msgspec.Struct, frozen=True):
    interfaces: tuple[InterfaceLine, ...]
    checks: tuple[NetworkCheck, ...]


# --- mesh ---------------------------------------------------------------------------------------------------


class MeshHistoryLine(msgspec.Struct, frozen=True):
    at: float
    epoch: int
    plan: str
    coordinator: NodeId
    ring: tuple[NodeId, ...]
    reason: str
    detect_ms: float | None
    agree_ms: float | None


class MeshReport(msgspec.Struct, frozen=True):
    """`history` is oldest first and bounded. `names` gives each node id that occurs here a name for people."""

    mesh: MeshSummary
    plan: MeshPlan | None
    history: tuple[MeshHistoryLine, ...]
    names: dict[NodeId, str] = {}


# --- engine and preflight -----------------------------------------------------------------------------------


class RankDetail(msgspec.Struct, frozen=True):
    """One rank's process, as its node's daemon last heard of it."""

    node: NodeId
    node_name: str
    rank: int
    layers: tuple[int, int]
    pid: int | None
    restarts: int
    state: str
    """As the worker says it: empty, loading, loaded, prepared, forming, ready, generating, aborted, leaving."""
    memory_bytes: int | None = None
    text: str = ""
    recommended_bytes: int | None = None
    """Of the GPU's memory, what MLX says that a process should use at most; null where it says nothing."""
    wired_bytes: int | None = None
    """How much the rank wires at most; null where nothing is wired."""
    parts: int = 1
    """In a tensor group, of how many parts of each of these layers it has one."""
    tokens_per_s: float | None = None
    """Of the newest answers, as this rank measured them."""


class EngineReport(msgspec.Struct, frozen=True):
    engine: EngineSummary
    ranks: tuple[RankDetail, ...]
    fingerprint: str | None = None
    """Names the model's files: equal on all ranks that may form a group."""
    plan: str | None = None
    total_layers: int | None = None
    max_context_tokens: int | None = None
    load_done_bytes: int | None = None
    load_total_bytes: int | None = None
    versions: dict[str, str] = {}


class PreflightCheck(msgspec.Struct, frozen=True):
    name: str
    """Stable: rtt, loss, route, port, ring, transfer, versions, model, context, memory, serving."""
    subject: str
    """The edge, node or path that was checked."""
    ok: bool
    figure: str
    """What was measured, with its unit."""
    text: str
    cure: str = ""
    """What to do where it failed; empty where it passed."""


class PreflightReport(msgspec.Struct, frozen=True):
    ok: bool
    at: float
    checks: tuple[PreflightCheck, ...]


# --- cluster, doctor, done ----------------------------------------------------------------------------------


class ClusterReport(msgspec.Struct, frozen=True):
    name: str
    key_file: str
    key_fingerprint: str
    """Names the key without giving it away: equal on all nodes of a cluster."""
    nodes: tuple[NodeLine, ...]
    strangers: tuple[str, ...] = ()
    """Who was refused for another key lately: address and when, as text."""


class Invited(msgspec.Struct, frozen=True):
    """An invitation: one word that `exoctl cluster join` takes, and that holds no key."""

    token: str
    until: float
    """Unix seconds."""
    once: bool


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong on this host, and the command, or what to do, that mends it."""

    code: str
    severity: Literal["warning", "error"]
    subject: str
    text: str
    cure: str


class DoctorReport(msgspec.Struct, frozen=True):
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """What was looked at, in words, so that "nothing found" says something."""
    facts: tuple[str, ...] = ()
    """What is good to know and not wrong: the versions, what this MLX can do."""


class Readiness(msgspec.Struct, frozen=True):
    """Would a request be served now? `code` is stable and empty where ready."""

    ready: bool
    code: str = ""
    text: str = ""


class Done(msgspec.Struct, frozen=True):
    """The result of a command, in one line for people."""

    text: str


DECIMALS: Final = 3
"""Of an event's figures: of milliseconds a microsecond is left, of seconds a millisecond."""


def flat_event(event: Event) -> dict[str, object]:
    """An event as the contract shows it: the fields of `data` beside `ts`, `type` and `subject`."""
    shown = {name: round(one, DECIMALS) if isinstance(one, float) else one for name, one in event.data.items()}
    return {**shown, "ts": event.ts, "type": event.type, "subject": event.subject}
