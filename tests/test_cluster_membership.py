"""Invite, rotate and remove with daemons of their own on loopback, as a person at two machines would do it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_single_node import BIN, exoctl, free_port, start, write_config

PATIENCE_S = 60.0
NO_DAEMON = 3


def until(condition: Callable[[], object], text: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never: {text}"
        time.sleep(0.2)


class Machine:
    """A data folder, and the daemon that may run on it. It lies on an address of its own."""

    def __init__(self, folder: Path, number: int, ports: list[int]) -> None:
        folder.mkdir()
        self.folder = folder
        others = [f"127.0.0.{place + 2}:{port}" for place, port in enumerate(ports) if place != number]
        self.config = write_config(
            folder,
            node={"name": f"studio{number + 1}"},
            mesh={"port": ports[number]},
            cluster={"peers": others},
            engine={"enabled": False},
        )
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = start(self.config)
        until(lambda: exoctl(self.config, "status").returncode != NO_DAEMON, "it answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    @property
    def key(self) -> str:
        return (self.folder / "data" / "cluster.key").read_text().strip()

    def ask(self, *arguments: str) -> str:
        done = exoctl(self.config, "cluster", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def names(self) -> set[str]:
        return {node["name"] for node in json.loads(self.ask("show", "--json"))["nodes"]}

    def join(self, word: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "exoctl", "--config", self.config, "cluster", "join", "-"]
        return subprocess.run(command, input=word, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    ports = [free_port(), free_port()]
    machines = [Machine(tmp_path / f"m{number}", number, ports) for number in range(2)]
    yield machines[0], machines[1]
    for machine in machines:
        machine.stop()


def test_a_guest_joins_by_an_invitation_and_both_live_through_rotations(two: tuple[Machine, Machine]) -> None:
    host, guest = two
    host.start()
    word = host.ask("invite", "--for", "10m", "--once").strip()
    assert word.startswith("exod2-")
    joined = guest.join(word)
    assert joined.returncode == 0, joined.stderr
    assert guest.key == host.key
    guest.start()
    until(lambda: host.names() == {"studio1", "studio2"}, "both are members")

    first = host.key
    assert "studio2 took it over" in host.ask("rotate")
    assert guest.key == host.key != first

    guest.stop()
    assert "away: studio2" in host.ask("rotate")
    assert guest.key != host.key
    guest.start()
    until(lambda: guest.key == host.key, "it took the new key over")
    until(lambda: host.names() == {"studio1", "studio2"}, "both are members again")

    assert "studio2 was removed" in host.ask("remove", "studio2")
    assert guest.key != host.key
    until(lambda: host.names() == {"studio1"}, "it is out")
    assert (guest.folder / "data" / "cluster.key").stat().st_mode & 0o077 == 0
    assert (host.folder / "data" / "membership.json").stat().st_mode & 0o077 == 0


def test_an_invitation_needs_the_node_that_gave_it_and_says_so(two: tuple[Machine, Machine]) -> None:
    host, guest = two
    host.start()
    word = host.ask("invite", "--once").strip()
    host.stop()
    refused = guest.join(word)
    assert refused.returncode == 2
    assert "is exod running there" in refused.stderr
    host.start()
    assert guest.join(word).returncode == 0  # an invitation outlives the daemon that gave it
    assert exoctl(host.config, "cluster", "invite", "--for", "nonsense").returncode == 2
