"""Home Assistant's device discovery: one retained message a node, with all of its entities. Pure.

The format is Home Assistant's device-based MQTT discovery (2024.11 and later): `dev` the device, `o` the origin
(both required), `cmps` the entities by a key that stays, each with its platform `p` and a `unique_id`.
"""

from __future__ import annotations

from typing import Final

from exod.daemon_api.mqtt_view import MqttLink, MqttNode, MqttView
from exod.model import EngineState, Health
from exod.mqtt.topic_tree import TopicTree

MANUFACTURER: Final = "exod"
RENEGOTIATE: Final = "renegotiate"
"""The one command that a topic may carry: it moves nothing but the mesh."""
Component = dict[str, object]


def device_config(node: MqttNode, view: MqttView, tree: TopicTree, *, commands: bool = False) -> dict[str, object]:
    """The discovery payload of `node`: its health, engine, memory, and RTT and path of each of its links; with
    `commands` a button, too.
    """
    components: dict[str, Component] = {
        "connectivity": _connectivity(node, tree),
        "health": _health(node, tree),
        "engine": _engine_state(node, tree),
        "problem": _problem(node, tree),
        "tokens_per_s": _tokens_per_s(node, tree),
        "sync": _sync(node, tree),
        "memory": _memory(node, tree),
    }
    if commands:
        components["renegotiate"] = _renegotiate(node, tree)
    names = {other.id: other.name for other in view.nodes}
    for link in view.links:
        if node.id in (link.a, link.b):
            peer = link.b if link.a == node.id else link.a
            components[f"rtt_{peer}"] = _link_rtt(node, link, names.get(peer, peer), tree)
            components[f"path_{peer}"] = _link_path(node, link, names.get(peer, peer), tree)
    return {
        "dev": {"ids": [f"exod_{node.id}"], "name": node.name, "mf": MANUFACTURER, "sw": node.version},
        "o": {"name": "exod", "sw": node.version},
        "cmps": components,
        "qos": 1,
    }


def _entity(node: MqttNode, tree: TopicTree, key: str, platform: str, name: str, topic: str) -> Component:
    """An entity that is unavailable while its node is offline."""
    return {
        "p": platform,
        "uniq_id": f"exod_{node.id}_{key}",
        "name": name,
        "stat_t": topic,
        "avty_t": tree.availability(node.id),
    }


def _connectivity(node: MqttNode, tree: TopicTree) -> Component:
    """Reads the availability itself, so it is never unavailable: it is on or off."""
    topic = tree.availability(node.id)
    component = _entity(node, tree, "connectivity", "binary_sensor", "Connectivity", topic)
    del component["avty_t"]
    return {
        **component,
        "dev_cla": "connectivity",
        "ent_cat": "diagnostic",
        "pl_on": "online",
        "pl_off": "offline",
    }


def _health(node: MqttNode, tree: TopicTree) -> Component:
    return {
        **_entity(node, tree, "health", "sensor", "Health", tree.node(node.id)),
        "dev_cla": "enum",
        "ops": [health.value for health in Health],
        "val_tpl": "{{ value_json.health }}",
        "json_attr_t": tree.node(node.id),
    }


def _problem(node: MqttNode, tree: TopicTree) -> Component:
    """On where a request would not be served as it should; the reasons are its attributes."""
    return {
        **_entity(node, tree, "problem", "binary_sensor", "Problem", tree.node(node.id)),
        "dev_cla": "problem",
        "pl_on": "ON",
        "pl_off": "OFF",
        "val_tpl": "{{ 'OFF' if value_json.health == 'healthy' else 'ON' }}",
        "json_attr_t": tree.node(node.id),
        "json_attr_tpl": "{{ {'reasons': value_json.reasons} | tojson }}",
    }


def _memory(node: MqttNode, tree: TopicTree) -> Component:
    return {
        **_entity(node, tree, "memory", "sensor", "Memory in use", tree.node(node.id)),
        "dev_cla": "data_size",
        "unit_of_meas": "MiB",
        "stat_cla": "measurement",
        "ent_cat": "diagnostic",
        "val_tpl": "{{ value_json.memory.used_mib }}",
    }


def _sync(node: MqttNode, tree: TopicTree) -> Component:
    return {
        **_entity(node, tree, "sync", "sensor", "Steps", tree.engine(node.id)),
        "ent_cat": "diagnostic",
        "val_tpl": "{{ value_json.sync.mode }}",
    }


def _renegotiate(node: MqttNode, tree: TopicTree) -> Component:
    component = _entity(node, tree, "renegotiate", "button", "Renegotiate the mesh", "")
    del component["stat_t"]
    return {**component, "cmd_t": tree.command(node.id), "pl_prs": RENEGOTIATE, "ent_cat": "config"}


def _engine_state(node: MqttNode, tree: TopicTree) -> Component:
    return {
        **_entity(node, tree, "engine", "sensor", "Engine", tree.engine(node.id)),
        "dev_cla": "enum",
        "ops": [state.value for state in EngineState],
        "val_tpl": "{{ value_json.state }}",
        "json_attr_t": tree.engine(node.id),
    }


def _tokens_per_s(node: MqttNode, tree: TopicTree) -> Component:
    return {
        **_entity(node, tree, "tokens_per_s", "sensor", "Tokens per second", tree.engine(node.id)),
        "unit_of_meas": "tokens/s",
        "stat_cla": "measurement",
        "val_tpl": "{{ value_json.tokens_per_s }}",
    }


def _link_rtt(node: MqttNode, link: MqttLink, peer_name: str, tree: TopicTree) -> Component:
    peer = link.b if link.a == node.id else link.a
    topic = tree.link(link.a, link.b)
    return {
        **_entity(node, tree, f"rtt_{peer}", "sensor", f"Link to {peer_name}", topic),
        "dev_cla": "duration",
        "unit_of_meas": "ms",
        "stat_cla": "measurement",
        "val_tpl": "{{ value_json.rtt_ms }}",
        "json_attr_t": topic,
    }


def _link_path(node: MqttNode, link: MqttLink, peer_name: str, tree: TopicTree) -> Component:
    peer = link.b if link.a == node.id else link.a
    return {
        **_entity(node, tree, f"path_{peer}", "sensor", f"Path to {peer_name}", tree.link(link.a, link.b)),
        "ent_cat": "diagnostic",
        "val_tpl": "{{ value_json.interface or 'none' }}",
    }
