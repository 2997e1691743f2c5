"""What stands on each topic of the contract."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined, Template

from exod.model import Event, NodeId, Reason
from exod.mqtt.topic_tree import TopicTree, topic_level
from exod.mqtt.topics import event_publication, publications
from tests.mqtt.mqtt_parts import BASE, A, B, alert, cluster_view

TREE = TopicTree("exo/1", "home")


def payload(topic: str, **changes: Any) -> Any:
    return json.loads(publications(cluster_view(**changes), TREE, A)[topic].payload)


def test_every_topic_of_the_contract_is_there_retained_with_qos_1() -> None:
    found = publications(cluster_view(alerts=(alert(),)), TREE, A)
    assert set(found) == {
        f"{BASE}/node/{A}/availability",
        f"{BASE}/node/{A}/state",
        f"{BASE}/node/{B}/availability",
        f"{BASE}/node/{B}/state",
        f"{BASE}/link/{A}--{B}/state",
        f"{BASE}/mesh/state",
        f"{BASE}/engine/{A}/state",
        f"{BASE}/engine/{B}/state",
        f"{BASE}/alert/no-path--{B}",
        f"homeassistant/device/exod_{A}/config",
        f"homeassistant/device/exod_{B}/config",
    }
    assert all(publication.retain and publication.qos == 1 for publication in found.values())


def test_payloads_have_the_fields_of_the_contract() -> None:
    reasons = (Reason("slow", "x", "slow link", 2.0),)
    node = payload(f"{BASE}/node/{A}/state", reasons=reasons)
    assert {"health", "reasons", "uptime", "memory", "version"} <= set(node)
    assert node["reasons"] == [{"code": "slow", "subject": "x", "text": "slow link", "since": 2.0}]
    link = payload(f"{BASE}/link/{A}--{B}/state")
    assert {"selected", "kind", "interface", "rtt_ms", "loss", "agreed", "since"} <= set(link)
    assert (link["kind"], link["interface"], link["rtt_ms"]) == ("thunderbolt", "bridge0", 0.31)
    mesh = payload(f"{BASE}/mesh/state")
    assert {"epoch", "coordinator", "members", "ring", "state", "reason"} <= set(mesh)
    engine = payload(f"{BASE}/engine/{B}/state")
    assert {"state", "model", "layers", "tokens_per_s", "sync"} <= set(engine)
    assert engine["layers"] == [1, 2]
    raised = payload(f"{BASE}/alert/no-path--{B}", alerts=(alert(),))
    assert {"severity", "text", "since"} <= set(raised)


def test_a_node_that_is_down_is_offline_and_its_health_is_down() -> None:
    found = publications(cluster_view(down=(B,)), TREE, A)
    assert found[f"{BASE}/node/{A}/availability"].payload == b"online"
    assert found[f"{BASE}/node/{B}/availability"].payload == b"offline"
    state = json.loads(found[f"{BASE}/node/{B}/state"].payload)
    assert (state["health"], state["uptime"]) == ("down", None)


def test_an_event_is_not_retained_and_has_its_fields_beside_the_others() -> None:
    event = Event(3.5, "link.selected", B, {"from": "x", "to": "y", "reason": "cable"})
    publication = event_publication(event, "id-1", TREE, A)
    assert (publication.topic, publication.retain, publication.qos) == (f"{BASE}/event/id-1", False, 1)
    assert json.loads(publication.payload) == {
        "ts": 3.5,
        "type": "link.selected",
        "subject": B,
        "from": "x",
        "to": "y",
        "reason": "cable",
        "id": "id-1",
        "node": A,
    }


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_subject_is_one_safe_level_and_two_subjects_never_share_one(one: str, other: str) -> None:
    level = topic_level(one)
    assert 0 < len(level) <= 100
    assert not set(level) & set("+#/ \t\n\0")
    assert (topic_level(other) == level) == (other == one)


def test_a_plain_subject_stays_as_it_is() -> None:
    assert topic_level("10.0.0.1-10.0.0.2") == "10.0.0.1-10.0.0.2"
    assert topic_level("a+b/c #").startswith("a-b-c-~")


@pytest.mark.parametrize("node", [A, B])
def test_home_assistant_finds_a_device_with_its_entities(node: NodeId) -> None:
    """Device-based discovery: `dev` and `o` are required, each component has a platform and a unique id."""
    view = cluster_view()
    found = publications(view, TREE, A)
    config = json.loads(found[f"homeassistant/device/exod_{node}/config"].payload)
    assert config["dev"]["ids"] == [f"exod_{node}"]
    assert config["dev"]["name"] == f"studio-{node[0]}"
    assert config["o"]["name"] == "exod"
    peer = B if node == A else A
    components = config["cmps"]
    own = {"connectivity", "health", "problem", "engine", "tokens_per_s", "sync", "memory"}
    assert set(components) == own | {f"rtt_{peer}", f"path_{peer}"}
    unique = [component["uniq_id"] for component in components.values()]
    assert len(set(unique)) == len(unique)
    for key, component in components.items():
        assert component["p"] == ("binary_sensor" if key in ("connectivity", "problem") else "sensor")
        assert component["stat_t"] in found, "an entity reads a topic that is published"
    assert components["connectivity"]["stat_t"] == f"{BASE}/node/{node}/availability"
    assert "avty_t" not in components["connectivity"], "it would be unavailable instead of off"
    assert components[f"rtt_{peer}"]["unit_of_meas"] == "ms"


def test_every_template_gives_what_its_entity_takes() -> None:
    """By the template language that Home Assistant uses."""
    found = publications(cluster_view(), TREE, A, commands=True)
    config = json.loads(found[f"homeassistant/device/exod_{A}/config"].payload)
    shown = {}
    for key, component in config["cmps"].items():
        if "val_tpl" in component:
            value = json.loads(found[component["stat_t"]].payload)
            shown[key] = Template(component["val_tpl"], undefined=StrictUndefined).render(value_json=value)
            if "ops" in component:
                assert shown[key] in component["ops"]
    assert shown == {
        "health": "healthy",
        "problem": "OFF",
        "engine": "ready",
        "tokens_per_s": "24.0",
        "sync": "fast",
        "memory": "512",
        f"rtt_{B}": "0.31",
        f"path_{B}": "bridge0",
    }


def test_a_button_only_where_commands_are_allowed_and_only_for_the_node_itself() -> None:
    def button(node: NodeId, *, commands: bool) -> Any:
        found = publications(cluster_view(), TREE, A, commands=commands)
        return json.loads(found[f"homeassistant/device/exod_{node}/config"].payload)["cmps"].get("renegotiate")

    assert button(A, commands=False) is None
    assert button(B, commands=True) is None, "B's commands are taken where B is connected"
    shown = button(A, commands=True)
    assert (shown["p"], shown["cmd_t"], shown["pl_prs"]) == ("button", TREE.command(A), "renegotiate")
    assert "stat_t" not in shown


def test_home_assistant_may_look_elsewhere() -> None:
    tree = TopicTree("exo/1", "home", "ha/discovery")
    assert f"ha/discovery/device/exod_{A}/config" in publications(cluster_view(), tree, A)
    assert ("ha/discovery/status", 0) in tree.subscriptions()
