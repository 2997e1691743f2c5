"""From a view of the cluster to the retained messages of the contract. Pure: no clock, no socket, no state.

Decides what stands on which topic, and whose topic it is: its *author* is the node that it is about (for a link its
lower end, for the mesh the coordinator, for an alert the node that raised it). Who really publishes a topic on a
given broker is decided in `publish_schedule.py`.

A payload has parts of three kinds, because "on change" must not mean "on every measurement": what is published
at once when it changes, what drifts (an RTT, a rate) and is published at most every few seconds, where it moved
beyond its noise, and what only the clock moves (the uptime), which goes along with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from exod.daemon_api.mqtt_view import MqttAlert, MqttEngine, MqttLink, MqttMesh, MqttNode, MqttView
from exod.daemon_api.shapes import flat_event
from exod.model import Event, Health, NodeId, NodeState
from exod.mqtt.home_assistant import device_config
from exod.mqtt.topic_tree import TopicTree

ONLINE: Final = b"online"
OFFLINE: Final = b"offline"


NOISE: Final = {"rtt_ms": (0.5, 0.25), "loss": (0.02, 0.25), "tokens_per_s": (0.5, 0.1)}
"""By figure, how far it moves where nothing happened: so much, or such a share of it, whichever is more. The floor
of an idle cable's RTT wanders between 0.1 and 0.3 ms."""


class Publication(msgspec.Struct, frozen=True):
    """One message. `steady` and `drifting` decide when a change is published; see the module's docstring."""

    topic: str
    payload: bytes
    author: NodeId
    retain: bool = True
    qos: int = 1
    steady: bytes = b""
    drifting: Mapping[str, object] = {}


def has_moved(before: Mapping[str, object], now: Mapping[str, object]) -> bool:
    """Is a drifting figure beyond its noise, or another than it was where none is known of it?"""
    return any(_is_beyond(name, before.get(name), figure) for name, figure in now.items())


def _is_beyond(name: str, before: object, now: object) -> bool:
    if name not in NOISE or not isinstance(before, float) or not isinstance(now, float):
        return before != now
    least, share = NOISE[name]
    return abs(now - before) > max(least, share * before)


def publications(
    view: MqttView, tree: TopicTree, publisher: NodeId, *, commands: bool = False
) -> dict[str, Publication]:
    """Every retained topic that is true by `view`, keyed by topic. `publisher` is named in each payload (`by`).
    `commands`: this node takes commands from its topic.
    """
    found: list[Publication] = []
    for node in view.nodes:
        found += (
            _availability(node, tree),
            _node(node, tree, publisher),
            _discovery(node, view, tree, commands and node.id == publisher),
        )
    found += (_link(link, tree, publisher) for link in view.links)
    found.append(_mesh(view.mesh, tree, publisher))
    found += (_engine(engine, tree, publisher) for engine in view.engines)
    found += (_alert(alert, tree, publisher) for alert in view.alerts)
    return {publication.topic: publication for publication in found}


def event_publication(event: Event, event_id: str, tree: TopicTree, publisher: NodeId) -> Publication:
    """One event, not retained. `event_id` is unique in the cluster's life."""
    payload = {**flat_event(event), "id": event_id, "node": publisher}
    return Publication(tree.event(event_id), _json(payload), publisher, retain=False)


def _availability(node: MqttNode, tree: TopicTree) -> Publication:
    payload = OFFLINE if node.state is NodeState.DOWN else ONLINE
    return Publication(tree.availability(node.id), payload, node.id, steady=payload)


def _node(node: MqttNode, tree: TopicTree, publisher: NodeId) -> Publication:
    down = node.state is NodeState.DOWN
    steady = {
        "name": node.name,
        "state": node.state,
        "health": Health.DOWN if down else node.health,
        "reasons": [{"code": r.code, "subject": r.subject, "text": r.text, "since": r.since} for r in node.reasons],
        "version": node.version,
        "models": [{"model": one.model, "state": one.state, "text": one.text} for one in node.models],
        "by": publisher,
    }
    fetching = [
        {
            "model": one.model,
            "done_bytes": one.done_bytes,
            "total_bytes": one.total_bytes,
            "bytes_per_s": one.bytes_per_s,
            "left_s": one.left_s,
        }
        for one in node.models
        if one.state == "fetching"
    ]
    memory = {
        "model_mib": node.memory.model_mib,
        "total_mib": node.memory.total_mib,
        "used_mib": None if down else node.memory.used_mib,
    }
    clocked = {"uptime": None if down or node.uptime_s is None else round(node.uptime_s), "memory": memory}
    return _state(tree.node(node.id), node.id, steady, {"fetching": fetching}, clocked=clocked)


def _link(link: MqttLink, tree: TopicTree, publisher: NodeId) -> Publication:
    steady = {
        "a": link.a,
        "b": link.b,
        "agreed": link.agreed,
        "selected": link.selected,
        "kind": link.kind,
        "interface": link.interface,
        "since": link.since,
        "by": publisher,
    }
    drifting = {"rtt_ms": _rounded(link.rtt_ms, 3), "loss": _rounded(link.loss, 3)}
    return _state(tree.link(link.a, link.b), link.a, steady, drifting)


def _mesh(mesh: MqttMesh, tree: TopicTree, publisher: NodeId) -> Publication:
    steady = {
        "state": mesh.state,
        "epoch": mesh.epoch,
        "coordinator": mesh.coordinator,
        "members": mesh.members,
        "ring": mesh.ring,
        "reason": mesh.reason,
        "by": publisher,
    }
    return _state(tree.mesh(), mesh.coordinator or publisher, steady)


def _engine(engine: MqttEngine, tree: TopicTree, publisher: NodeId) -> Publication:
    done, total = engine.download or (None, None)
    steady = {
        "state": engine.state,
        "model": engine.model,
        "layers": engine.layers,
        "sync": {"mode": engine.sync_mode, "reason": engine.sync_reason},
        "download_total_bytes": total,
        "by": publisher,
    }
    drifting = {"tokens_per_s": _rounded(engine.tokens_per_s, 2), "download_done_bytes": done}
    return _state(tree.engine(engine.node), engine.node, steady, drifting)


def _alert(alert: MqttAlert, tree: TopicTree, publisher: NodeId) -> Publication:
    steady = {
        "code": alert.code,
        "subject": alert.subject,
        "severity": alert.severity,
        "text": alert.text,
        "cure": alert.cure,
        "since": alert.since,
        "node": alert.node,
        "by": publisher,
    }
    return _state(tree.alert(alert.code, alert.subject), alert.node, steady)


def _discovery(node: MqttNode, view: MqttView, tree: TopicTree, commands: bool) -> Publication:
    payload = _json(device_config(node, view, tree, commands=commands))
    return Publication(tree.discovery(node.id), payload, node.id, steady=payload)


def _state(
    topic: str,
    author: NodeId,
    steady: Mapping[str, object],
    drifting: Mapping[str, object] | None = None,
    clocked: Mapping[str, object] | None = None,
) -> Publication:
    payload = _json({**steady, **(drifting or {}), **(clocked or {})})
    return Publication(topic, payload, author, steady=_json(steady), drifting=drifting or {})


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _json(value: Mapping[str, object]) -> bytes:
    return msgspec.json.encode(value)
