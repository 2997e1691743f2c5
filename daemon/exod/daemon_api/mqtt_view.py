"""What the MQTT publisher gets: the whole cluster as this node knows it, frozen.

`app.py` fills an MqttView whenever the core's state changed and hands it to `MqttService.update`. Nothing here
decides anything. Where a figure of another node is not known, it is None and is published as null.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from exod.daemon_api.model_lines import ModelLine
from exod.model import EngineState, Health, Kind, MeshState, NodeId, NodeState, PathId, Reason


class NodeMemory(msgspec.Struct, frozen=True):
    """In MiB. `model_mib` is what the node gives to a model (its card says it)."""

    model_mib: int | None = None
    total_mib: int | None = None
    used_mib: int | None = None


class MqttNode(msgspec.Struct, frozen=True):
    id: NodeId
    name: str
    state: NodeState
    version: str
    health: Health | None
    """None: not known here; a node that is down is published as `down` whatever stands here."""
    reasons: tuple[Reason, ...] = ()
    uptime_s: float | None = None
    memory: NodeMemory = NodeMemory()
    models: tuple[ModelLine, ...] = ()
    """What it has of the models that people asked for."""


class MqttLink(msgspec.Struct, frozen=True):
    """One pair, `a` being the lower node id. `interface` is the one on the publishing node's own end, or on
    `a`'s where neither end is its own.
    """

    a: NodeId
    b: NodeId
    agreed: bool
    selected: PathId | None
    kind: Kind | None
    interface: str | None
    rtt_ms: float | None
    loss: float | None
    since: float | None
    """Wall clock: when this path was selected."""


class MqttMesh(msgspec.Struct, frozen=True):
    state: MeshState
    epoch: int | None
    coordinator: NodeId | None
    members: tuple[NodeId, ...]
    ring: tuple[NodeId, ...]
    reason: str


class MqttEngine(msgspec.Struct, frozen=True):
    """One node's rank of the hosted engine."""

    node: NodeId
    state: EngineState
    model: str | None
    layers: tuple[int, int] | None
    """First, and last exclusive; None where the node hosts no rank."""
    tokens_per_s: float | None
    sync_mode: str
    sync_reason: str
    download: tuple[int, int] | None = None
    """Bytes of the model that are on the node and of all of it, while it is downloaded."""


class MqttAlert(msgspec.Struct, frozen=True):
    """One alert that is raised now. `node` is who raised it."""

    code: str
    subject: str
    severity: Literal["warning", "error"]
    text: str
    cure: str
    since: float
    node: NodeId


class MqttView(msgspec.Struct, frozen=True):
    nodes: tuple[MqttNode, ...]
    """All nodes that this one knows, itself included."""
    links: tuple[MqttLink, ...]
    mesh: MqttMesh
    engines: tuple[MqttEngine, ...]
    alerts: tuple[MqttAlert, ...]
