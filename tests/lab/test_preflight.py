"""What would make inference fail is found before it, is named with its cure, and hangs nothing.

One pair of daemons lives through this file; each test breaks one thing that preflight checks and mends it again.
Each node has a home of its own, so that one name can mean two model folders. The route and the memory are
checked in `tests/diagnostics/test_preflight.py`: a path with a wrong route is never planned, and
memory cannot be taken away here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exoengine.embedded import model_folder
from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.conftest import skip_or_fail
from tests.lab.node import RING_PORT, Node, wait_for
from tests.lab.reading import agreed_on, can_serve
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

SERVES_WITHIN_S = 60.0
FOUND_WITHIN_S = 60.0
"""Generous: where no path lets large frames through, the test that waits for it took 32 s in all, alone."""
HOLD_UP_S = 0.2
"""For the pair that each test breaks and the next one needs whole: it doubles with each relapse."""
RING_PORTS_TRIED = 8  # core/engine/ring_port.py
FAILED = 4  # exoctl's exit code where a check fails
MODEL = "~/count"


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    for program in ("mosquitto", "mosquitto_sub"):
        if shutil.which(program) is None:
            skip_or_fail(f"this test needs {program}: install the packages mosquitto and mosquitto-clients")
    with Lab(2) as lab:
        cluster = Cluster(lab, (1, 2), config={"mesh": {"hold_up_s": HOLD_UP_S}})
        for node in cluster.nodes:
            start(node)
        yield cluster


@pytest.fixture(autouse=True)
def _serving(pair: Cluster) -> Iterator[None]:
    pair.wait_ready("thunderbolt", SERVES_WITHIN_S)
    yield
    pair.lab.restore()


def start(node: Node, **environment: str) -> None:
    """Starts the daemon with a home of its own."""
    home = node.folder / "home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"HOME": str(home)} | environment).items():
            patch.setenv(name, value)
        node.start()


def preflight(node: Node) -> tuple[int, list[dict[str, Any]]]:
    """The exit code of `exoctl preflight`, and its checks."""
    done = node.exoctl("preflight", "--json")
    assert done.returncode in (0, FAILED), f"exit code {done.returncode}: {done.stderr}"
    return done.returncode, json.loads(done.stdout)["checks"]


def failure(node: Node, name: str) -> dict[str, Any] | None:
    """The check of that name that fails, with a reason and a cure; None while it does not."""
    code, checks = preflight(node)
    found = next((check for check in checks if check["name"] == name and not check["ok"]), None)
    if found is not None:
        assert code == FAILED
        assert found["text"], found
        assert found["cure"], found
    return found


def wait_for_failure(node: Node, name: str) -> dict[str, Any]:
    found: dict[str, Any] = wait_for(lambda: failure(node, name), FOUND_WITHIN_S, f"preflight finds: {name}")
    return found


def refusal(node: Node) -> str:
    """Why `/ready` says no; empty where it says yes. The status says the same."""
    reply = node.request("GET", "/ready")
    if reply.status == 200:
        return ""
    assert reply.status == 503
    text: str = reply.json()["error"]["message"]
    return text


def on_mqtt(node: Node) -> str:
    """Why this node says on its own broker that it is not healthy."""
    me = node.status()["node"]["id"]
    argv = ["mosquitto_sub", "-h", "127.0.0.1", "-t", f"exo/1/lab/node/{me}/state", "-C", "1", "-W", "5"]
    state = json.loads(node.host.run(argv, check=True).stdout)
    return "; ".join(reason["text"] for reason in state["reasons"])


def in_status(node: Node) -> str:
    return "; ".join(reason["text"] for reason in node.status()["reasons"])


def wait_told(node: Node, words: tuple[str, ...], says: Callable[[Node], str]) -> None:
    try:
        wait_for(lambda: all(word in says(node) for word in words), FOUND_WITHIN_S, f"{node.name} says {words}")
    except AssertionError as error:
        raise AssertionError(f"{error}, but {says(node)!r}") from None


def wait_refused(pair: Cluster, *words: str) -> None:
    """Every node says why nothing is served: in `/ready`, in the status and on MQTT."""
    for node in pair.nodes:
        for says in (refusal, in_status, on_mqtt):
            wait_told(node, words, says)


@contextlib.contextmanager
def held(node: Node, interface: str, ports: range) -> Iterator[None]:
    """Another process of the host listens on these ports."""
    with contextlib.ExitStack() as sockets:
        for port in ports:
            listener = sockets.enter_context(node.host.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((node.host.address(interface), port))
            listener.listen()
        yield


def test_what_is_well_passes_every_check_with_a_figure(pair: Cluster) -> None:
    code, checks = preflight(pair.node(1))
    assert code == 0, checks
    names = [check["name"] for check in checks]
    assert set(names) == {
        "rtt", "loss", "route", "ring", "transfer", "port", "memory", "context", "packages", "versions", "model",
        "serving",
    }  # fmt: skip
    assert names.count("transfer") == 2, "each direction of the ring"
    assert all(check["ok"] and check["figure"] for check in checks)


def test_paths_that_are_all_slow_fail_the_rtt_check(pair: Cluster) -> None:
    for name in ("bridge0", "en0"):
        pair.lab.link(name).set(delay_ms=8)
    found = wait_for_failure(pair.node(1), "rtt")
    assert "over the limit of 5 ms" in found["text"]
    assert "cable" in found["cure"]
    for says in (in_status, on_mqtt):
        wait_told(pair.node(1), ("studio1–studio2 runs over", " ms"), says)


def test_a_path_that_loses_datagrams_fails_the_loss_check(pair: Cluster) -> None:
    for link in pair.lab.links.values():
        link.set(loss=0.12)
    found = wait_for_failure(pair.node(1), "loss")
    assert "over the limit of 5%" in found["text"]
    for says in (in_status, on_mqtt):
        wait_told(pair.node(1), ("studio1 loses ", "% of what studio2 sends over "), says)


def test_where_no_path_lets_large_frames_through_the_transfer_check_fails(pair: Cluster) -> None:
    """Where only one does not, the ring leaves it for the next: test_ring_evidence.py."""
    node = pair.node(1)
    for link in pair.lab.links.values():
        link.set(drop_over_bytes=1000)
    node.exoctl("mesh", "renegotiate", check=True)  # each new plan's edges are checked, unasked
    for one in pair.nodes:
        wait_told(one, ("acknowledged 0 bytes of the proof",), refusal)  # what a request meets: the ranks' own edge
        for says in (in_status, on_mqtt):
            wait_told(one, ("large frames do not pass",), says)
    assert any(reason["code"] == "preflight_failed" for reason in node.status()["reasons"])
    subject = wait_for_failure(node, "transfer")["subject"]
    assert any(network in subject for network in ("192.168.4.", "10.77.0.", "100.64.0.")), "it names the path"
    pair.lab.restore()
    wait_for(lambda: not refusal(node), FOUND_WITHIN_S, "/ready says yes again")


def test_a_port_that_someone_else_has_is_left_for_the_next_one(pair: Cluster) -> None:
    with held(pair.node(2), "en0", range(RING_PORT, RING_PORT + 1)):
        pair.lab.link("bridge0").cut()
        statuses = pair.wait_until(
            lambda found: agreed_on(found, "ethernet") and all(map(can_serve, found)),
            SERVES_WITHIN_S,
            "the ring stands on another port",
        )
        addresses = {edge["address"] for status in statuses for edge in status["mesh"]["edges"]}
        assert f"{pair.node(2).host.address('en0')}:{RING_PORT + 1}" in addresses
        assert numbers(pair.node(1).chat(count_prompt(3, 20))) == list(range(3, 21))


def test_where_all_ports_are_taken_it_is_said_and_mended_without_a_restart(pair: Cluster) -> None:
    node = pair.node(2)
    with held(node, "en0", range(RING_PORT, RING_PORT + RING_PORTS_TRIED)):
        pair.lab.link("bridge0").cut()
        wait_refused(pair, "cannot listen on", "engine.ring_port")
        found = wait_for_failure(pair.node(1), "port")
        assert node.host.address("en0") in found["subject"], (
            "and not the port that the other rank listens on itself"
        )
        assert "engine.ring_port" in found["cure"]
    pair.wait_until(lambda found: all(map(can_serve, found)), SERVES_WITHIN_S, "the ring stands")


def test_a_folder_that_is_nowhere_is_refused_and_who_lacks_one_is_left_out(pair: Cluster) -> None:
    node = pair.node(1)
    refused = node.exoctl("engine", "load", "--no-wait", "/no/such/model")
    assert (refused.returncode, "/no/such/model does not exist" in refused.stderr) == (1, True)
    assert refusal(node) == "", "the model that runs goes on"
    shutil.copytree(model_folder("embedded:count"), node.folder / "home" / "mine")
    node.exoctl("engine", "load", "--no-wait", "~/mine", check=True)
    pair.wait_until(
        lambda found: all(map(leaves_out_for_mine, found)), SERVES_WITHIN_S, "both say who is left out and why"
    )
    wait_for(lambda: refusal(node) == "", SERVES_WITHIN_S, "the node that has the folder serves it alone")
    assert node.status()["engine"]["model"] == "~/mine"
    node.exoctl("engine", "load", "--no-wait", "embedded:count", check=True)


def leaves_out_for_mine(status: dict[str, Any]) -> bool:
    said = [reason["text"] for reason in status["reasons"] if reason["code"] == "node_left_out"]
    return any("studio2" in text and "~/mine does not exist" in text for text in said)


def test_two_folders_of_one_name_with_different_files_are_refused(pair: Cluster) -> None:
    for node in pair.nodes:
        folder = node.folder / "home" / "count"
        shutil.copytree(model_folder("embedded:count"), folder)
    pair.node(1).exoctl("engine", "load", MODEL, check=True)  # a load would see that they differ: they do later
    assert pair.node(2).terminate() == 0
    spoil_weights(folder)
    start(pair.node(2))
    wait_refused(pair, "different files")
    assert "ranks differ" in wait_for_failure(pair.node(1), "model")["text"]
    pair.node(1).exoctl("engine", "load", "--no-wait", "embedded:count", check=True)


def spoil_weights(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    half = len(content) // 2
    content[half:] = bytes(len(content) - half)  # a download that broke off in a file of its full size
    weights.write_bytes(content)


def test_different_versions_are_refused(pair: Cluster) -> None:
    node = pair.node(2)
    assert node.terminate() == 0
    other_version = node.folder / "other-version" / "mlx_lm-0.0.1.dist-info"
    other_version.mkdir(parents=True)
    (other_version / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-lm\nVersion: 0.0.1\n")
    known = os.environ.get("PYTHONPATH")
    start(node, PYTHONPATH=os.pathsep.join([str(other_version.parent), *([known] if known else [])]))
    wait_refused(pair, "different versions", "0.0.1")
    assert "install the same versions" in wait_for_failure(pair.node(1), "versions")["cure"]
    assert node.terminate() == 0
    start(node)
