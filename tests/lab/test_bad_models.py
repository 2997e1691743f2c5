"""A model folder that cannot be hosted ends in one clear line on every node, and costs nothing but that.

One pair of daemons lives through this file, each with a home of its own, so that `~/model` can be a good folder on
one node and something else on the other.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exoengine.embedded import model_folder
from tests.lab.chat import ChatStream, count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node, wait_for
from tests.lab.reading import Status, can_serve
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

FAILS_WITHIN_S = 30.0
TOLD_WITHIN_S = 20.0
SERVES_WITHIN_S = 60.0
ASKED_EVERY_S = 0.1
MANY = 60
"""The queue takes 64."""
MODEL = "~/model"


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(2) as lab:
        cluster = Cluster(lab, config={"mqtt": {"broker": "off"}})
        for node in cluster.nodes:
            home(node).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOME", str(home(node)))
                node.start()
        cluster.wait_ready("thunderbolt", SERVES_WITHIN_S)
        yield cluster


def home(node: Node) -> Path:
    return node.folder / "home"


def without_a_file_of_the_index(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def with_a_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "missing file": (without_a_file_of_the_index, "missing_file", "model-00002-of-00002.safetensors is missing"),
    "truncated": (truncated, "truncated", "model.safetensors is truncated"),
    "unknown architecture": (with_config(model_type="quux"), "unknown_architecture", "no architecture 'quux'"),
    "no tokenizer": (without_a_tokenizer, "no_tokenizer", "has no tokenizer"),
    "damaged tokenizer": (with_a_damaged_tokenizer, "bad_tokenizer", "the tokenizer cannot be read"),
    "too many layers": (with_config(num_hidden_layers=12), "layers_differ", "says 12 layers"),
    "too few layers": (with_config(num_hidden_layers=4), "", "config and weights differ"),
    "other sizes": (with_config(hidden_size=64), "", "config and weights differ"),
    "no folder": (shutil.rmtree, "no_folder", "the model folder ~/model does not exist"),
}


REFUSED_AT_ONCE = (
    "missing file", "truncated", "unknown architecture", "no tokenizer", "too many layers", "no folder",
)  # fmt: skip
"""What each node sees in its own folder without loading it: where all say so, nothing is let go."""


def lay_out(node: Node) -> Path:
    """A good model in the node's home."""
    folder = home(node) / "model"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(model_folder("embedded:count"), folder))


def failed_with(words: str) -> Callable[[list[Status]], bool]:
    def is_so(statuses: list[Status]) -> bool:
        return all(
            status["engine"]["state"] == "failed" and words in status["engine"]["text"] for status in statuses
        )

    return is_so


def load(pair: Cluster, model: str, number: int = 2) -> None:
    """From whichever node: the coordinator hears of it."""
    pair.node(number).exoctl("engine", "load", "--no-wait", model, check=True)


def check_refusal(node: Node, words: str) -> str:
    """What `/ready`, a chat and the screen say: one line, the same."""
    ready = node.request("GET", "/ready")
    chat = node.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
    assert (ready.status, chat.status) == (503, 503)
    text: str = ready.json()["reason"]
    assert words in text
    assert "\n" not in text
    assert chat.json()["error"]["message"] == text
    screen = node.exoctl("status")
    assert screen.returncode == 4
    assert "✖ down" in screen.stdout
    assert words in " ".join(screen.stdout.split())
    return text


def alerts(node: Node, words: str) -> list[str]:
    """The alerts of the event log that are raised now and say so."""
    raised: dict[tuple[str, str], str] = {}
    for event in node.events():
        if event["type"] == "alert.raised":
            raised[event["subject"], event["code"]] = event["text"]
        elif event["type"] == "alert.cleared":
            raised.pop((event["subject"], event["code"]), None)
    return [code for (_, code), text in raised.items() if words in text]


def check_health(pair: Cluster) -> None:
    """Nothing but the model was lost: the same daemons, and workers that were not replaced."""
    load(pair, "embedded:count")
    statuses = pair.wait_until(lambda found: all(map(can_serve, found)), SERVES_WITHIN_S, "the good model is back")
    assert [rank["restarts"] for status in statuses for rank in status["engine"]["ranks"]] == [0] * 4
    for node in pair.nodes:
        assert numbers(node.chat(count_prompt(3, 9))) == list(range(3, 10))
        assert not alerts(node, "")


@pytest.mark.parametrize("case", [case for case in CASES if case not in REFUSED_AT_ONCE])
def test_a_folder_that_is_bad_everywhere_is_one_clear_line_on_every_node(pair: Cluster, case: str) -> None:
    spoil, code, words = CASES[case]
    for node in pair.nodes:
        spoil(lay_out(node))
    load(pair, MODEL)
    pair.wait_until(failed_with(words), FAILS_WITHIN_S, f"all nodes say: {words}")
    for node in pair.nodes:
        check_refusal(node, words)
        wait_for(
            lambda node=node: len(told := alerts(node, words)) == 1 and code in ("", told[0]),
            TOLD_WITHIN_S,
            f"{node.name} tells it in its events, by its own cause",
        )
    check_health(pair)


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_a_node_whose_folder_is_bad_is_left_out_and_the_other_serves(pair: Cluster, case: str) -> None:
    spoil, _, words = CASES[case]
    for node in pair.nodes:
        lay_out(node)
    spoil(home(pair.node(1)) / "model")
    load(pair, MODEL)
    asked = ask_until_it_serves(pair)  # a plan without the node is on its way
    for stream in asked:
        assert numbers(stream.result(SERVES_WITHIN_S)) == list(range(3, 10))
    check_left_out(pair, 1, words)
    check_health(pair)


def ask_until_it_serves(pair: Cluster) -> list[ChatStream]:
    """From the moment at which all nodes want the new model."""

    def wanted(statuses: list[Status]) -> bool:
        return all(status["engine"]["model"] == MODEL for status in statuses)

    statuses = pair.wait_until(wanted, FAILS_WITHIN_S, "all nodes want the new model")
    asked: list[ChatStream] = []
    while not all(map(can_serve, statuses)) and len(asked) < MANY:
        asked += [node.stream_chat(count_prompt(3, 9)) for node in pair.nodes]
        time.sleep(ASKED_EVERY_S)
        statuses = pair.statuses()
    return asked


def left_out(status: Status) -> list[str]:
    """What is said of nodes that have no rank."""
    return [reason["text"] for reason in status["reasons"] if reason["code"] == "node_left_out"]


def check_left_out(pair: Cluster, number: int, words: str) -> None:
    """The other node serves it alone, both say who is left out and why, and the plan does not change any more."""

    def is_so(statuses: list[Status]) -> bool:
        return all(
            (status["engine"]["state"], status["engine"]["model"]) == ("ready", MODEL)
            and len(status["engine"]["ranks"]) == 1
            and any(
                reason["code"] == "node_left_out"
                and f"studio{number}" in reason["text"]
                and words in reason["text"]
                for reason in status["reasons"]
            )
            for status in statuses
        )

    statuses = pair.wait_until(is_so, FAILS_WITHIN_S, f"the other serves, and all nodes say: {words}")
    for node in pair.nodes:
        assert numbers(node.chat(count_prompt(3, 9))) == list(range(3, 10))
        wait_for(
            lambda node=node: alerts(node, words) == ["node_left_out"],
            TOLD_WITHIN_S,
            f"{node.name} tells it in its events",
        )
    assert [status["mesh"]["epoch"] for status in pair.statuses()] == [
        status["mesh"]["epoch"] for status in statuses
    ]


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_a_folder_that_no_node_can_read_is_refused_and_the_model_goes_on(pair: Cluster, case: str) -> None:
    spoil, _, words = CASES[case]
    for node in pair.nodes:
        spoil(lay_out(node))
    refused = pair.node(2).exoctl("engine", "load", "--no-wait", MODEL)
    assert refused.returncode == 1
    assert words in refused.stderr.replace(str(home(pair.node(2))), "~")
    assert "the model that runs goes on" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    check_health(pair)


@pytest.mark.parametrize("number", [1, 2])
def test_a_node_that_lacks_the_folder_is_left_out(pair: Cluster, number: int) -> None:
    """The coordinator, or the other one."""
    for node in pair.nodes:
        lay_out(node)
    shutil.rmtree(home(pair.node(number)) / "model")
    load(pair, MODEL, 3 - number)
    check_left_out(pair, number, "~/model does not exist")
    check_health(pair)


def test_a_node_that_is_given_the_folder_is_taken_back(pair: Cluster) -> None:
    """It looks again by itself; the other one serves on meanwhile, and no plan is made for a look in vain."""
    lay_out(pair.node(2))
    shutil.rmtree(home(pair.node(1)) / "model", ignore_errors=True)
    load(pair, MODEL)
    check_left_out(pair, 1, "~/model does not exist")
    lay_out(pair.node(1))
    pair.wait_until(
        lambda found: all(can_serve(status) and len(status["engine"]["ranks"]) == 2 for status in found),
        SERVES_WITHIN_S,
        "both compute again",
    )
    check_health(pair)


def test_each_node_says_what_is_wrong_with_its_own_folder(pair: Cluster) -> None:
    without_a_tokenizer(lay_out(pair.node(1)))
    with_config(num_hidden_layers=4)(lay_out(pair.node(2)))
    load(pair, MODEL)
    pair.wait_until(failed_with("has no tokenizer"), FAILS_WITHIN_S, "the first folder is named")
    pair.wait_until(failed_with("config and weights differ"), FAILS_WITHIN_S, "the second folder is named")
    for node in pair.nodes:
        text = check_refusal(node, "has no tokenizer")
        assert "studio1: " in text
        assert "studio2: " in text
    check_health(pair)


def test_folders_with_different_weights_are_refused_with_both_nodes(pair: Cluster) -> None:
    lay_out(pair.node(1))
    file = lay_out(pair.node(2)) / "model.safetensors"
    weights = file.read_bytes()
    half = len(weights) // 2
    file.write_bytes(weights[:half] + bytes(len(weights) - half))
    for number in (1, 2):
        refused = pair.node(number).exoctl("engine", "load", "--no-wait", MODEL)
        assert refused.returncode == 1
        assert "studio1 and studio2 hold different files of ~/model" in refused.stderr
        assert "the model that runs goes on" in refused.stderr
    check_health(pair)


def test_a_folder_that_was_mended_is_loaded_by_the_same_command_again(pair: Cluster) -> None:
    """The wish has not changed; that a person asks once more is reason enough to try at once."""
    for node in pair.nodes:
        with_config(hidden_size=64)(lay_out(node))
    load(pair, MODEL)
    pair.wait_until(failed_with("config and weights differ"), FAILS_WITHIN_S, "all nodes say what is wrong")
    for node in pair.nodes:
        with_a_damaged_tokenizer(lay_out(node))
    load(pair, MODEL)
    pair.wait_until(failed_with("the tokenizer cannot be read"), FAILS_WITHIN_S, "all nodes say what is wrong now")
    for node in pair.nodes:
        lay_out(node)
    pair.node(1).exoctl("engine", "load", MODEL, check=True)  # waits for it, and must not take up the old failure
    pair.wait_until(lambda found: all(map(can_serve, found)), SERVES_WITHIN_S, "the mended model serves")
    check_health(pair)
