"""Groups over RDMA, played by a native group that cannot be aborted and waits for ever for a rank that is gone."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exoengine.protocol import RDMA_STAND_IN, RdmaSetup
from exoengine.ring import rdma
from exoengine.ring.rdma import port_states

WITHIN_S = 60.0
HANGS_FOR_S = 2.0
"""What ends at all ends in milliseconds."""

IBV_DEVINFO = """\
hca_id:\trdma_en2
\ttransport:\t\t\tThunderbolt (4)
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
hca_id:\trdma_en3
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_DOWN (1)
"""
"""Constructed after the tool's usual layout: no Mac with RDMA was at hand."""


class RankProcess:
    """One process of rdma_rank.py."""

    def __init__(self, module: Path, rank: int) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.ring.rdma_rank", str(module), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {RDMA_STAND_IN: "1"},
        )
        self._selector = selectors.DefaultSelector()
        assert self.child.stdout is not None
        self._selector.register(self.child.stdout, selectors.EVENT_READ)

    def ask(self, *what: Any) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(what).encode() + b"\n")
        self.child.stdin.flush()

    def answer(self, within_s: float = WITHIN_S) -> Any:
        """None where none comes."""
        if not self._selector.select(within_s):
            return None
        assert self.child.stdout is not None
        return json.loads(self.child.stdout.readline())

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]


@pytest.fixture
def ranks(native: Any) -> Iterator[list[RankProcess]]:
    made = [RankProcess(Path(native.__file__), rank) for rank in range(2)]
    yield made
    for one in made:
        one.end()


def form(ranks: list[RankProcess], attempt: int, coordinator: str) -> list[Any]:
    hosts = free_addresses(len(ranks))
    return both(ranks, "form", hosts, coordinator, attempt)


def both(ranks: list[RankProcess], *what: Any) -> list[Any]:
    for one in ranks:
        one.ask(*what)
    return [one.answer() for one in ranks]


def test_a_group_that_all_left_at_a_steps_end_is_used_again(ranks: list[RankProcess]) -> None:
    [coordinator] = free_addresses(1)
    for attempt in range(1, 4):
        assert form(ranks, attempt, coordinator) == ["formed"] * 2
        assert both(ranks, "sum") == [3, 3]
        assert both(ranks, "leave") == ["left"] * 2


def test_a_dead_rank_hangs_the_other_for_ever_and_only_a_kill_ends_that(ranks: list[RankProcess]) -> None:
    assert form(ranks, 1, free_addresses(1)[0]) == ["formed"] * 2
    assert both(ranks, "sum") == [3, 3]
    ranks[0].end()
    ranks[1].ask("abort from another thread, then sum")
    assert ranks[1].answer(HANGS_FOR_S) is None, "JACCL would notice neither the abort nor the end of its peer"
    ranks[1].child.send_signal(signal.SIGKILL)
    assert ranks[1].child.wait(WITHIN_S) == -signal.SIGKILL


def test_who_has_a_group_that_another_lacks_is_told_that_it_must_be_replaced(
    ranks: list[RankProcess], native: Any
) -> None:
    [coordinator] = free_addresses(1)
    assert form(ranks, 1, coordinator) == ["formed"] * 2
    assert both(ranks, "leave") == ["left"] * 2
    ranks[0].end()
    ranks[0] = RankProcess(Path(native.__file__), 0)
    assert [code for code, _ in form(ranks, 2, coordinator)] == ["rdma_others", "rdma_spent"]
    ranks[1].end()
    ranks[1] = RankProcess(Path(native.__file__), 1)
    assert form(ranks, 3, coordinator) == ["formed"] * 2
    assert both(ranks, "sum") == [3, 3]


def test_other_cables_need_other_processes(ranks: list[RankProcess]) -> None:
    first, second = free_addresses(2)
    assert form(ranks, 1, first) == ["formed"] * 2
    assert both(ranks, "leave") == ["left"] * 2
    assert [code for code, _ in form(ranks, 2, second)] == ["rdma_spent"] * 2


# --- the proof ----------------------------------------------------------------------------------------------


def proof(setup: RdmaSetup, rank: int, cache: Path, stand_in: bool = True) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "exoengine.ring.rdma_proof", "--rank", str(rank), "--native", str(cache)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {RDMA_STAND_IN: "1" if stand_in else ""},
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(setup))
    child.stdin.close()
    child.stdin = None
    return child


def setup_of(size: int) -> RdmaSetup:
    devices = tuple(tuple(("rdma_en1",) if a != b else () for b in range(size)) for a in range(size))
    return RdmaSetup(devices, free_addresses(1)[0], stand_in=True)


@pytest.mark.parametrize("size", [2, 4])
def test_rdma_that_works_is_proven(native: Any, tmp_path: Path, size: int) -> None:
    setup = setup_of(size)
    for child in [proof(setup, rank, tmp_path) for rank in range(size)]:
        _, said = child.communicate(timeout=WITHIN_S)
        assert (child.returncode, said) == (0, b"")


def test_a_rank_that_does_not_come_is_no_proof(native: Any, tmp_path: Path) -> None:
    child = proof(setup_of(2), 0, tmp_path)
    _, said = child.communicate(timeout=WITHIN_S)
    assert child.returncode == 1
    assert b"the ranks did not meet at 127.0.0.1" in said


def test_without_jaccl_the_proof_says_what_it_needs(tmp_path: Path) -> None:
    child = proof(setup_of(2), 0, tmp_path, stand_in=False)
    _, said = child.communicate(timeout=WITHIN_S)
    assert (child.returncode, said.decode().strip()) == (1, rdma.NO_JACCL)


def test_the_ports_states_are_read_by_device() -> None:
    assert port_states(IBV_DEVINFO) == {"rdma_en2": "PORT_ACTIVE", "rdma_en3": "PORT_DOWN"}


def test_a_port_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "ibv_devinfo"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{IBV_DEVINFO}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    devices = ((), ("rdma_en2",), ("rdma_en3",)), (("rdma_en2",), (), ()), (("rdma_en9",), (), ())
    found = [rdma.inactive_ports(RdmaSetup(devices, "127.0.0.1:1"), rank) for rank in range(3)]
    assert "rdma_en3 is PORT_DOWN" in found[0]
    assert "rdma_en2" not in found[0]
    assert found[1] == ""
    assert "rdma_en9 is not listed" in found[2]
