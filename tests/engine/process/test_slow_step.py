"""A rank that computes for long is waited for, one that hangs is not."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exoengine.protocol import Aborted, Finished, Heartbeat, KeepWaiting, Loaded, SyncSettings
from tests.engine.driver import GENEROUS_S, Cluster, cluster, request

LONG_S = 5.0
"""Beyond the deadline of a step, which is 2 s here, and many heartbeats long."""

HANGS_FROM = 5
"""Where the prompt has more tokens than this, the answer's second step hangs; else its fourth is slow."""

SLOW_OR_HANGING = f"""
import hashlib, time
from exoengine.generate.pipeline import Pipeline
run, block = Pipeline.run, b"x" * 1_000_000
def slow(self, step, *args):
    if self._rank == 1 and step.draw == 3 and step.start <= {HANGS_FROM}:
        until = time.monotonic() + {LONG_S}
        while time.monotonic() < until:
            hashlib.sha256(block)
    if self._rank == 1 and step.draw == 1 and step.start > {HANGS_FROM}:
        time.sleep({LONG_S})
    return run(self, step, *args)
Pipeline.run = slow
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slow"), 2, prelude=SLOW_OR_HANGING) as made:
        yield made


def run(pair: Cluster, folder: Path, prompt: int, waits: bool) -> list[Aborted | Finished]:
    """Each rank's end of it. As the daemons do, all are told to wait on where one computes, if `waits`."""
    assert all(isinstance(said, Loaded) for said in pair.load(folder, [2, 3], SyncSettings(step_deadline_s=2.0)))
    pair.form()
    pair.begin(request(list(range(1, prompt + 1)), 6))
    ends: dict[int, Aborted | Finished] = {}
    until = time.monotonic() + GENEROUS_S
    while len(ends) < 2 and time.monotonic() < until:
        for place, rank in enumerate(pair.ranks):
            try:
                said = rank.fresh.get(timeout=0.02)
            except queue.Empty:
                continue
            if isinstance(said, Aborted | Finished):
                ends[place] = said
            if isinstance(said, Heartbeat) and said.computing and waits:
                for one in pair.ranks:
                    one.send(KeepWaiting(4.0))
    return [ends[place] for place in sorted(ends)]


def test_a_step_that_is_computed_for_long_is_waited_for(pair: Cluster, llama: Path) -> None:
    before = len(pair.ranks[1].seen)
    ends = run(pair, llama, 3, waits=True)
    assert [type(end) for end in ends] == [Finished, Finished]
    beats = [said for said in pair.ranks[1].seen[before:] if isinstance(said, Heartbeat)]
    assert any(beat.computing and beat.in_step_s > 2.0 for beat in beats)
    assert max(position for beat in beats for _, position in beat.positions) >= 3


def test_without_such_a_word_it_is_given_up_as_one_that_hangs(pair: Cluster, llama: Path) -> None:
    assert "deadline" in [end.code for end in run(pair, llama, 3, waits=False) if isinstance(end, Aborted)]


def test_a_step_that_hangs_is_given_up_whatever_the_others_do(pair: Cluster, llama: Path) -> None:
    before = len(pair.ranks[1].seen)
    ends = run(pair, llama, HANGS_FROM + 2, waits=True)
    assert "deadline" in [end.code for end in ends if isinstance(end, Aborted)]
    beats = [said for said in pair.ranks[1].seen[before:] if isinstance(said, Heartbeat)]
    assert not any(beat.computing for beat in beats if beat.in_step_s > 1.0)
