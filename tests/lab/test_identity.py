"""One identity on two hosts, and versions that do not fit: named on both, and the cluster goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import exod
import exoengine
from tests.lab.chat import count_prompt, numbers
from tests.lab.cluster import Cluster
from tests.lab.node import Node, wait_for
from tests.lab.reading import Status
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

LOADED_WITHIN_S = 120.0
NAMED_WITHIN_S = 10.0
STARTS_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Lab(3) as lab:
        cluster = Cluster(lab, (1, 2))
        cluster.start()
        cluster.wait_ready("thunderbolt", LOADED_WITHIN_S)
        yield cluster


def reason(status: Status | None, code: str) -> str:
    return next((one["text"] for one in (status or {}).get("reasons", ()) if one["code"] == code), "")


def test_a_copied_data_folder_is_named_on_both_hosts_and_the_copy_does_not_join(pair: Cluster) -> None:
    first, second = pair.nodes
    copy = Node(pair.lab.host(3), pair.lab.folder, pair.key)
    for name in ("identity.json", "state.json", "peers.json"):
        if (first.data_dir / name).exists():
            shutil.copy(first.data_dir / name, copy.data_dir / name)
    copy.start()
    try:
        wait_for(copy.poll_status, STARTS_WITHIN_S, "the copy runs")
        stays = wait_for(
            lambda: reason(first.poll_status(), "identity_twin"), NAMED_WITHIN_S, f"named\n{pair.report()}"
        )
        assert copy.host.address("en0") in stays
        assert "renew-identity" in stays
        yields = wait_for(lambda: reason(copy.poll_status(), "identity_twin"), NAMED_WITHIN_S, copy.log_tail())
        assert first.host.address("en0") in yields
        assert "does not join" in yields
        wait_for(
            lambda: (copy.poll_status() or {}).get("cluster", {}).get("size") == 1, NAMED_WITHIN_S, copy.log_tail()
        )
        assert "identity_twin" in first.exoctl("doctor", "--json").stdout
        for node in (first, second):
            assert numbers(node.chat(count_prompt(3, 30))) == list(range(3, 31))
        assert copy.exoctl("--config", str(copy.config_file), "cluster", "renew-identity").returncode == 0
        copy.terminate()
        copy.start()
        pair.wait_until(
            lambda statuses: all(
                one["cluster"]["size"] == 3 and not reason(one, "identity_twin") for one in statuses
            ),
            LOADED_WITHIN_S,
            "three nodes, and no twin",
        )
    finally:
        copy.terminate()


def other_version(folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of the program in which one line is another."""
    for package in (exod, exoengine):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    return folder


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("exod/peers/peer_messages.py", "CONTROL_PROTOCOL: Final = 1", "CONTROL_PROTOCOL: Final = 2"),
        ("exod/core/probe/datagram.py", "VERSION = 1", "VERSION = 2"),
    ],
)
def test_a_peer_of_another_version_is_named_on_both_with_both_versions(
    pair: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str
) -> None:
    newer = Node(pair.lab.host(3), tmp_path, pair.key)
    monkeypatch.setenv("PYTHONPATH", str(other_version(tmp_path / "program", file, before, after)))
    newer.start()
    monkeypatch.delenv("PYTHONPATH")
    assert os.environ.get("PYTHONPATH") is None
    try:
        wait_for(newer.poll_status, STARTS_WITHIN_S, "the newer one runs")
        for node in (*pair.nodes, newer):
            text = wait_for(
                lambda node=node: reason(node.poll_status(), "version_skew"),  # type: ignore[misc]
                STARTS_WITHIN_S,
                f"{node.name} names the versions\n{node.log_tail()}",
            )
            assert "version 2" in text
            assert "version 1" in text
            assert "upgrade exod on studio" in text
        assert "version_skew" in pair.nodes[0].exoctl("doctor", "--json").stdout
        wait_for(
            lambda: any(
                one["type"] == "alert.raised" and one["code"] == "version_skew" for one in pair.nodes[0].events()
            ),
            NAMED_WITHIN_S,
            "it is an event",
        )
        assert numbers(pair.nodes[0].chat(count_prompt(3, 12))) == list(range(3, 13))
    finally:
        newer.terminate()
