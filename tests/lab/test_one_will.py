"""One cluster, one will: which model runs, and whether requests are admitted, whichever node is asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine import embedded
from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.reading import Status, can_serve
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

SERVES_WITHIN_S = 90.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """studio2 names a model, studio1 none; whichever of them coordinates."""
    folder = tmp_path_factory.mktemp("models") / "real"
    shutil.copytree(embedded.model_folder("embedded:count"), folder)
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2))
        for node, model in zip(cluster.nodes, ("", str(folder)), strict=True):
            node.configure({"engine": {"model": model}})
        cluster.start()
        yield cluster


def hosts(statuses: list[Status], model: str) -> bool:
    return all(can_serve(status) and status["engine"]["model"] == model for status in statuses)


def real_model(pair: Cluster) -> str:
    return next(line.split('"')[1] for line in pair.node(2).config_file.read_text().splitlines() if "real" in line)


def test_a_node_that_names_no_model_takes_the_one_that_another_names(pair: Cluster) -> None:
    model = real_model(pair)
    pair.wait_until(lambda found: hosts(found, model), SERVES_WITHIN_S, "the named model on both")
    for node in pair.nodes:
        assert numbers(node.chat(count_prompt(3, 12))) == list(range(3, 13))


def test_a_typo_in_load_leaves_the_model_that_runs(pair: Cluster) -> None:
    model = real_model(pair)
    pair.wait_until(lambda found: hosts(found, model), SERVES_WITHIN_S, "the named model on both")
    for node in pair.nodes:
        for typo in ("embedded:cuont", str(Path(model).with_name("raal"))):
            done = node.exoctl("engine", "load", "--no-wait", typo)
            assert done.returncode == 1, done.stdout + done.stderr
            assert "goes on" in done.stdout + done.stderr
    assert hosts(pair.statuses() or [], model)
    assert numbers(pair.nodes[0].chat(count_prompt(3, 12))) == list(range(3, 13))


@pytest.mark.parametrize("place", [0, 1])
def test_a_drain_on_any_node_is_refused_and_shown_by_both_until_the_next_load(pair: Cluster, place: int) -> None:
    model = real_model(pair)
    pair.wait_until(lambda found: hosts(found, model), SERVES_WITHIN_S, "the named model on both")
    assert pair.nodes[place].exoctl("engine", "drain", timeout_s=60.0).returncode == 0
    statuses = pair.wait_until(
        lambda found: all(any(one["code"] == "draining" for one in status["reasons"]) for status in found),
        10.0,
        "both say that they are drained",
    )
    assert all(status["health"] == "degraded" for status in statuses)
    for node in pair.nodes:
        assert node.request("GET", "/ready").status == 503
        body = {"messages": [{"role": "user", "content": "count from 1 to 3"}]}
        assert node.request("POST", "/v1/chat/completions", body, timeout_s=30.0).status == 503
    assert pair.nodes[1 - place].exoctl("engine", "load", "--no-wait", model).returncode == 0
    pair.wait_until(lambda found: hosts(found, model), SERVES_WITHIN_S, "they serve again")
    for node in pair.nodes:
        assert numbers(node.chat(count_prompt(3, 12))) == list(range(3, 13))


def test_a_model_loaded_by_command_outlives_the_coordinator(pair: Cluster) -> None:
    assert pair.nodes[0].exoctl("engine", "load", "--no-wait", "embedded:count").returncode == 0
    statuses = pair.wait_until(lambda found: hosts(found, "embedded:count"), SERVES_WITHIN_S, "the loaded model")
    coordinator = next(
        node
        for node, status in zip(pair.nodes, statuses, strict=True)
        if status["node"]["id"] == status["mesh"]["coordinator"]
    )
    coordinator.kill9()
    coordinator.start()
    pair.wait_until(
        lambda found: hosts(found, "embedded:count") and all(one["mesh"]["state"] == "agreed" for one in found),
        SERVES_WITHIN_S,
        "the loaded model after the restart",
    )
