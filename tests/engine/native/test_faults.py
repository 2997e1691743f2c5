"""The native group when a peer goes, is silent, or somebody aborts: zeros and a count, no exception, no hang."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest

from tests.engine.native.programs import OPERATIONS
from tests.engine.native.ranks import run

ABORTS = 1000
NO_DESCRIPTOR = 1_000_000
WARM_UP = 100
MOST_GROWTH_BYTES = 4 * 1024 * 1024
"""4 KiB for each abort would show."""


@pytest.mark.parametrize("at", range(OPERATIONS))
def test_a_peer_that_goes_at_any_operation_of_a_graph_has_the_step_refused(module: Path, at: int) -> None:
    waiting, gone = run(module, 2, "failing", at=at)
    assert waiting["raised"] == ""
    assert waiting["next_failed"] == 1
    assert waiting["reason"]
    if at < OPERATIONS - 1:  # the last one is a send: the kernel takes it for a peer that is gone
        assert waiting["failed"] == OPERATIONS - at
    assert gone["failed"] == 0


def test_a_silent_peer_is_waited_for_up_to_the_deadline(module: Path) -> None:
    waiting, silent = run(module, 2, "silent", deadline_s=0.3)
    assert waiting["values"] == [0, 0, 0]
    assert (waiting["failed"], waiting["reason"]) == (1, "no byte moved within the deadline")
    assert waiting["took_s"] >= 0.3
    assert silent["failed"] == 1  # the other end learns of it at once, not at its own deadline of 30 s


def test_ranks_that_disagree_on_a_size_fail_instead_of_mixing_messages(module: Path) -> None:
    for answer in run(module, 2, "out_of_step"):
        assert set(answer["values"]) == {0.0}
        assert answer["failed"] == 1
        assert "were expected" in answer["reason"] or "closed its connection" in answer["reason"]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("aborters", [1, 2])
def test_aborts_of_one_or_two_threads_within_and_between_steps(module: Path, aborters: int, between: bool) -> None:
    for answer in run(module, 2, "stopping", aborters=aborters, between=between):
        assert answer == {"values": [0, 0, 0], "failed": 1, "over": True}


def test_a_connection_that_was_closed_before_the_group_was_made_fails_its_operations(native: Any) -> None:
    group, control = native.make(0, 2, {1: [NO_DESCRIPTOR]}, spin_us=0, deadline_s=5.0)
    assert control.is_over
    assert mx.distributed.all_sum(mx.ones((2,)), group=group, stream=mx.cpu).tolist() == [0, 0]
    assert control.failed == 1
    assert "closed before" in control.reason


def test_a_rank_without_a_connection_fails_its_operation(native: Any) -> None:
    near, far = socket.socketpair()
    group, control = native.make(0, 3, {1: [near.fileno()]}, spin_us=0, deadline_s=5.0)
    assert mx.distributed.recv((2,), mx.int32, 2, group=group, stream=mx.cpu).tolist() == [0, 0]
    assert (control.failed, control.reason) == (1, "there is no connection to rank 2")
    near.close()
    far.close()


def test_a_split_of_a_group_that_is_over_raises_nothing_and_is_counted(native: Any) -> None:
    near, far = socket.socketpair()
    group, control = native.make(0, 2, {1: [near.fileno()]}, spin_us=0, deadline_s=5.0)
    control.abort()
    assert group.split(0).size() == 1
    assert control.failed == 1
    near.close()
    far.close()


def test_a_thousand_aborts_leave_no_thread_no_descriptor_and_no_memory(native: Any) -> None:
    process = psutil.Process()

    def held() -> tuple[int, int, int, int]:
        descriptors = len(os.listdir("/dev/fd"))
        return threading.active_count(), process.num_threads(), descriptors, process.memory_info().rss

    before = held()
    for number in range(ABORTS):
        _abort_once(native)
        if number + 1 == WARM_UP:
            before = held()
    *threads_and_descriptors, memory = held()
    assert tuple(threads_and_descriptors) == before[:3]  # MLX's own threads among them; no group has any
    assert memory - before[3] < MOST_GROWTH_BYTES


def _abort_once(native: Any) -> None:
    ends = socket.socketpair()
    group, control = native.make(0, 2, {1: [ends[0].fileno()]}, spin_us=0, deadline_s=30.0)
    received = mx.distributed.recv((256,), mx.float32, 1, group=group, stream=mx.cpu)
    total = mx.distributed.all_sum(received, group=group, stream=mx.cpu)
    mx.async_eval(total)
    control.abort()
    mx.eval(total)
    assert control.failed == 2
    for end in ends:
        end.close()
