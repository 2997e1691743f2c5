"""What the README tells a newcomer, step by step on two hosts: two nodes, a token, a model from the hub, a chat on
the page, a cut cable under its answer, the story, and the cable back.

The service is the one step that is not followed: no host of the lab has a service manager, so `exod run` stands for
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.embedded import model_folder
from tests.engine_service.stand_in_hub import MODEL, StandInHub, model_files, serving
from tests.lab.cluster import Cluster
from tests.lab.node import API_PORT, BIN, Node
from tests.lab.topology import Lab
from tests.pictures.camera import Camera

pytestmark = pytest.mark.lab

WITHIN_S = 90.0
BACK_WITHIN_S = 30.0
LAST = 300


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as one:
        yield one


@pytest.fixture
def hub(lab: Lab) -> Iterator[StandInHub]:
    host = lab.host(1)
    with (
        host.entered(),
        serving(StandInHub(model_files(Path(model_folder("embedded:count")))), host.address("en0")) as one,
    ):
        yield one


@pytest.fixture
def camera(lab: Lab) -> Iterator[Camera]:
    """The browser of whoever sits at the second host."""
    one = Camera(lab.host(2))
    yield one
    one.close()


def typed(node: Node, *words: str) -> str:
    """What a command prints that is typed on that host."""
    argv = [BIN / "exoctl", "--config", node.config_file, *words]
    return node.host.run(argv, timeout_s=WITHIN_S).stdout


def a_fresh_pair(lab: Lab, hub: StandInHub) -> Cluster:
    """As installed: no key, no model in the configuration, an empty cache of models."""
    cluster = Cluster(lab, config={"engine": {"model": "", "spare": "off"}})
    for node in cluster.nodes:
        node.environment = {"HF_HOME": str(node.folder / "hf"), "HF_ENDPOINT": hub.url}
        (node.data_dir / "cluster.key").unlink()
    return cluster


def test_the_readme_leads_from_nothing_to_an_answer_that_outlives_its_cable(
    lab: Lab, hub: StandInHub, camera: Camera
) -> None:
    cluster = a_fresh_pair(lab, hub)
    first, second = cluster.nodes
    first.start()
    typed(first, "wait", "--for", "ready", "--timeout", "60")
    token = typed(first, "cluster", "invite").strip()
    assert "joined the cluster lab" in typed(second, "cluster", "join", token)
    second.start()
    cluster.wait_ready("thunderbolt", WITHIN_S)
    assert "2 nodes" in typed(second, "status")
    assert "here" in typed(second, "model", "pull", MODEL)
    typed(first, "engine", "load", MODEL)
    cluster.wait_until(
        lambda found: all(one["engine"]["model"] == MODEL for one in found), WITHIN_S, "it is loaded"
    )
    assert "3 4 5" in " ".join(typed(second, "chat", "count from 3 to 5").split())

    camera.open(f"http://127.0.0.1:{API_PORT}/")
    camera.until("#health-text", "healthy")
    camera.ask(f"count from 1 to {LAST}")
    camera.until("#chat-log .assistant", "1 2 3")
    lab.cable(1, 2).cut()
    camera.until("#picture", "bridge0 dead")
    camera.until("#chat-figures", " generated, first")
    answer = camera.run("return document.querySelector('#chat-log .assistant').textContent")
    assert answer.split() == [str(number) for number in range(1, LAST + 1)]

    story = typed(second, "events", "--since", "10m")
    for told in ("path.dead", "link.selected", "mesh.agreed", "bridge0"):
        assert told in story, story
    lab.restore()
    cluster.wait_agreed("thunderbolt", BACK_WITHIN_S)
    assert json.loads(typed(second, "status", "--json"))["health"] == "healthy"
    assert camera.complaints() == []
