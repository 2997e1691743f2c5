"""A model is downloaded once in the cluster: the second host takes it from the first over the cable, whatever is
cut.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.embedded import model_folder
from tests.engine_service.stand_in_hub import MODEL, StandInHub, model_files, serving
from tests.lab import filters
from tests.lab.cluster import Cluster
from tests.lab.node import BIN, Node, wait_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

WEIGHTS_BYTES = 60_000_000
EXTRA = "model-extra.safetensors"
WITHIN_S = 90.0
SLOW_KIB_A_SECOND = 4096
"""A quarter of a minute for all of it: longer than any command of a busy machine."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(2) as one:
        yield one


@pytest.fixture
def hub(lab: Lab) -> Iterator[StandInHub]:
    """In the first host; the second reaches it over the Ethernet."""
    files = model_files(Path(model_folder("embedded:count")), weights_bytes=WEIGHTS_BYTES)
    host = lab.host(1)
    with host.entered(), serving(StandInHub(files), host.address("en0")) as one:
        yield one


@pytest.fixture
def pair(lab: Lab, hub: StandInHub) -> Cluster:
    cluster = Cluster(lab)
    for node in cluster.nodes:
        node.environment = {"HF_HOME": str(node.folder / "hf"), "HF_ENDPOINT": hub.url}
    cluster.start()
    cluster.wait_ready("thunderbolt")
    return cluster


def blob(node: Node, hub: StandInHub, name: str = EXTRA) -> Path:
    return node.folder / "hf" / "hub" / f"models--{MODEL.replace('/', '--')}" / "blobs" / hub.etag(name)


def part(node: Node, hub: StandInHub) -> int:
    found = Path(f"{blob(node, hub)}.exod-part")
    return found.stat().st_size if found.exists() else 0


def has_all(node: Node, hub: StandInHub) -> bool:
    """Every file under its final name, with the bytes that the hub has."""
    for name in hub.files:
        if name.endswith((".md", ".py")):
            continue
        found = blob(node, hub, name)
        if not found.exists() or found.read_bytes() != hub.files[name]:
            return False
    return True


def sent_once(hub: StandInHub) -> bool:
    return hub.sent[EXTRA] <= len(hub.files[EXTRA]) * 1.1


def pull(node: Node) -> dict[str, str]:
    """Asks and waits; the state of each node."""
    done = node.exoctl("model", "pull", MODEL, "--json", timeout_s=WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line["node_name"]: line["state"] for line in json.loads(done.stdout)["nodes"]}


def start(pair: Cluster, node: Node) -> None:
    """Until it is a member again."""
    node.start()
    pair.wait_until(lambda found: all(len(one["nodes"]) == 2 for one in found), WITHIN_S, "both are there")


def begin(node: Node) -> None:
    """Asks, and does not wait for the end."""
    process = node.host.popen(
        [BIN / "exoctl", "--socket", node.socket, "model", "pull", MODEL], stdout=-3, stderr=-3
    )
    wait_for(lambda: (node.poll_status() or {}).get("models"), WITHIN_S, "the daemon was asked")
    process.kill()
    process.wait()


def test_one_download_serves_two_hosts_over_the_cable(pair: Cluster, hub: StandInHub) -> None:
    first, second = pair.nodes
    before = second.host.counters("bridge0").rx_bytes, second.host.counters("en0").rx_bytes
    assert pull(second) == {"studio1": "here", "studio2": "here"}
    assert has_all(first, hub)
    assert has_all(second, hub)
    assert sent_once(hub), f"the hub sent {hub.sent[EXTRA]} bytes of {len(hub.files[EXTRA])}"
    asked = [one for one in pair.statuses() or [] for line in one["models"] if line["state"] == "here"]
    assert asked
    over_cable = second.host.counters("bridge0").rx_bytes - before[0]
    over_ethernet = second.host.counters("en0").rx_bytes - before[1]
    from_first = any("studio1" in line["sources"] for line in second.status()["models"])
    if from_first:
        assert over_cable > WEIGHTS_BYTES
        assert over_ethernet < WEIGHTS_BYTES / 4
    else:
        assert first.host.counters("bridge0").rx_bytes > WEIGHTS_BYTES
    events = [event["type"] for event in second.events()]
    assert "model.here" in events
    assert hashlib.sha256(blob(first, hub).read_bytes()).hexdigest() == hub.etag(EXTRA)


@pytest.mark.parametrize("victim", [0, 1], ids=["giver", "taker"])
def test_a_cut_cable_and_a_killed_daemon_cost_nothing_that_had_come(
    pair: Cluster, hub: StandInHub, lab: Lab, victim: int
) -> None:
    """studio1 has it and the hub is silent: all comes from there. With a packet filter it comes slowly, and each
    fault is sure to find it in the middle.
    """
    first, second = pair.nodes
    second.terminate()
    pull(first)
    hub.silent_after = 0
    cable = lab.link("bridge0")
    if filters.AVAILABLE:
        filters.slow_files(second.host, SLOW_KIB_A_SECOND)
    else:
        cable.set(delay_ms=4.0)
    over_cable = second.host.counters("bridge0").rx_bytes
    start(pair, second)
    begin(second)
    wait_for(lambda: part(second, hub) > 2_000_000, WITHIN_S, "some of it came", every_s=0.005)
    if filters.AVAILABLE:
        wait_for(
            lambda: second.host.counters("bridge0").rx_bytes - over_cable > 2_000_000, WITHIN_S, "over the cable"
        )
    cable.cut()
    before = part(second, hub)
    wait_for(lambda: part(second, hub) > before + 1_000_000 or has_all(second, hub), WITHIN_S, "it goes on")
    (first, second)[victim].kill9()
    kept = part(second, hub)
    (first, second)[victim].start()
    cable.restore()
    if filters.AVAILABLE:
        assert 2_000_000 < before < kept < WEIGHTS_BYTES, "each fault came in mid-transfer"
        wait_for(lambda: part(second, hub) > kept, WITHIN_S, "it goes on where it was")
        filters.clear(second.host)
    wait_for(lambda: has_all(second, hub), WITHIN_S, "all of it is there, with the right bytes")
    assert kept > 0 or blob(second, hub).exists()
    assert not list(blob(second, hub).parent.glob("*.exod-part"))


def test_a_copy_that_is_damaged_is_thrown_away_and_told_in_one_line(pair: Cluster, hub: StandInHub) -> None:
    first, second = pair.nodes
    second.terminate()
    pull(first)
    damaged = blob(first, hub)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    hub.refuse = (503, "")
    start(pair, second)
    done = second.exoctl("model", "pull", MODEL, timeout_s=WITHIN_S)
    assert done.returncode == 4
    said = done.stdout + done.stderr
    assert "another checksum" in said
    assert "exoctl model rm" in said
    assert not blob(second, hub).exists()
    hub.refuse = None
    assert pull(second)["studio2"] == "here"
    assert has_all(second, hub), "the hub gives what no node has right"


def test_nodes_that_start_at_once_and_need_a_model_ask_the_hub_once(lab: Lab, hub: StandInHub) -> None:
    """Each has it in its configuration, and knows nobody yet."""
    cluster = Cluster(lab, config={"engine": {"model": MODEL}})
    for node in cluster.nodes:
        node.environment = {"HF_HOME": str(node.folder / "hf"), "HF_ENDPOINT": hub.url}
    cluster.start()
    wait_for(lambda: all(has_all(node, hub) for node in cluster.nodes), WITHIN_S, "both have it")
    listed = [path for _, path in hub.asked if path.startswith("/api/models/")]
    assert len(listed) == 1, hub.asked
    assert sent_once(hub), f"the hub sent {hub.sent[EXTRA]} bytes of {len(hub.files[EXTRA])}"


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(pair: Cluster, hub: StandInHub) -> None:
    """studio2's cache is a disk of 20 MB."""
    second = pair.nodes[1]
    second.terminate()
    place = second.folder / "hf"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "exod-small", place], check=True)
    try:
        start(pair, second)
        done = second.exoctl("model", "pull", MODEL, "--json", timeout_s=WITHIN_S)
        assert done.returncode == 4, done.stdout + done.stderr
        lines = {line["node_name"]: line for line in json.loads(done.stdout)["nodes"]}
        assert lines["studio1"]["state"] == "here"
        assert (lines["studio2"]["state"], lines["studio2"]["code"]) == ("failed", "disk_full")
        assert "free" in lines["studio2"]["text"]
        assert "\n" not in lines["studio2"]["text"]
        assert not [one for one in place.rglob("blobs/*") if one.stat().st_size]
    finally:
        second.terminate()
        subprocess.run(["umount", place], check=True)


def test_a_folder_is_copied_to_the_node_that_lacks_it_and_loaded_there(pair: Cluster) -> None:
    first, second = pair.nodes
    folder = first.folder / "mine"
    shutil.copytree(model_folder("embedded:count"), folder)
    second.terminate()
    second.hidden = [first.folder]
    start(pair, second)
    before = second.host.counters("bridge0").rx_bytes
    done = first.exoctl("model", "pull", str(folder), "--all", "--json", timeout_s=WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    states = {line["node_name"]: line["state"] for line in second.status()["models"]}
    assert states == {"studio1": "here", "studio2": "here"}
    assert second.host.counters("bridge0").rx_bytes - before > sum(file.stat().st_size for file in folder.iterdir())
    loaded = first.exoctl("engine", "load", str(folder), timeout_s=WITHIN_S)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    engine = second.status()["engine"]
    assert (engine["state"], len(engine["ranks"])) == ("ready", 2), "studio2 computes from its copy"
