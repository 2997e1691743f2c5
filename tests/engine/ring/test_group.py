"""Groups of two ranks in one process: formed, aborted at any moment by any number of threads, and formed again."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest

from exoengine.native.module import NativeModule
from exoengine.ring.group import ALL_SEALED, FEW_CORES_SPIN_US, SPIN_US, RingGroup, spin_us
from exoengine.ring.message_ring import RingLostError
from exoengine.ring.ring_plan import FormError, RingPlan

FORMS_WITHIN_S = 20.0
ROUNDS = 60

_ports = itertools.count(9000 + os.getpid() % 150 * 16)


class Loaded(NativeModule):
    """The module that the session has in this process."""

    def __init__(self, module: Any) -> None:
        self._loaded = module

    def get(self) -> Any:
        return self._loaded

    @property
    def why_not(self) -> str:
        return "" if self._loaded is not None else "the test has none"


Pair = tuple[RingGroup, RingGroup]


@functools.cache
def streams() -> tuple[Any, Any]:
    """One for each rank: each has a thread of MLX's."""
    return mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)


@pytest.fixture
def pair(native: Any) -> Iterator[Pair]:
    made = RingGroup(Loaded(native)), RingGroup(Loaded(native))
    yield made
    for one in made:
        one.leave()


def plan(rank: int, hosts: tuple[str, ...]) -> RingPlan:
    return RingPlan("plan", 1, rank, 2, hosts, key=b"k")


def form(pair: Pair) -> None:
    hosts = tuple(f"127.0.0.1:{next(_ports)}" for _ in pair)
    until = time.monotonic() + FORMS_WITHIN_S
    with ThreadPoolExecutor(2) as threads:
        for formed in [threads.submit(one.form, plan(rank, hosts), until, 10.0) for rank, one in enumerate(pair)]:
            formed.result()


def total(pair: Pair) -> list[int]:
    """A sum over both ranks, each on a stream of its own."""
    sums = [
        mx.distributed.all_sum(mx.array([rank + 1]), group=one.handle, stream=stream)
        for rank, (one, stream) in enumerate(zip(pair, streams(), strict=True))
    ]
    mx.eval(sums)
    return [int(one.item()) for one in sums]


def abort_at_once(group: RingGroup, count: int) -> None:
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        group.abort("told", f"thread {number} aborts")

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(run, range(count)))


def test_any_number_of_groups_leaves_no_descriptor_behind(pair: Pair) -> None:
    form(pair)
    pair[0].leave()
    pair[1].leave()
    before = len(os.listdir("/dev/fd"))
    for _ in range(ROUNDS):
        form(pair)
        assert total(pair) == [3, 3]
        abort_at_once(pair[0], 2)
        for one in pair:
            one.leave()
    assert len(os.listdir("/dev/fd")) == before


def test_an_abort_between_two_steps_refuses_what_comes_after(pair: Pair) -> None:
    form(pair)
    assert total(pair) == [3, 3]
    for one in pair:
        one.check()
    abort_at_once(pair[1], 2)
    assert total(pair) == [0, 0]
    with pytest.raises(RingLostError, match=r"thread . aborts"):
        pair[1].check()
    with pytest.raises(RingLostError, match="an operation inside a graph failed"):
        pair[0].check()
    form(pair)
    assert total(pair) == [3, 3]
    for one in pair:
        one.check()


def test_an_abort_while_a_group_is_formed_ends_that_at_once(pair: Pair) -> None:
    hosts = tuple(f"127.0.0.1:{next(_ports)}" for _ in pair)
    with ThreadPoolExecutor(1) as threads:
        forming = threads.submit(pair[0].form, plan(0, hosts), time.monotonic() + FORMS_WITHIN_S, 10.0)
        time.sleep(0.1)  # it waits for a neighbour by now, or will find the abort before it does
        begun = time.monotonic()
        while not forming.done():
            pair[0].abort("told", "the test gives up")
            time.sleep(0.01)
        with pytest.raises(FormError, match="the test gives up"):
            forming.result()
        assert time.monotonic() - begun < FORMS_WITHIN_S / 2
    form(pair)
    assert total(pair) == [3, 3]


def test_a_wait_of_an_operation_is_measured(pair: Pair) -> None:
    form(pair)
    received = mx.distributed.recv((2,), mx.int32, 1, group=pair[0].handle, stream=streams()[0])
    mx.async_eval(received)
    time.sleep(0.2)
    mx.eval(mx.distributed.send(mx.array([1, 2]), 0, group=pair[1].handle, stream=streams()[1]))
    assert received.tolist() == [1, 2]
    assert pair[0].waited_s > 0.15
    assert pair[1].waited_s == 0.0  # a send waits for the GPU, not the other way round


def test_where_all_is_sealed_nothing_can_go_inside_a_graph(pair: Pair) -> None:
    hosts = tuple(f"127.0.0.1:{next(_ports)}" for _ in pair)
    until = time.monotonic() + FORMS_WITHIN_S
    sealed = [dataclasses.replace(plan(rank, hosts), all_sealed=True) for rank in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for formed in [threads.submit(one.form, sealed[rank], until, 10.0) for rank, one in enumerate(pair)]:
            formed.result()
    for one in pair:
        assert (one.handle, one.no_graphs) == (None, ALL_SEALED)
    here, there = pair[0].data, pair[1].data
    assert here is not None
    assert there is not None
    here.send(mx.array([1, 2]))
    arrival = there.expect((2,), mx.int32)
    arrival.let_come()
    assert arrival.array.tolist() == [1, 2]


def test_without_the_module_a_group_is_formed_that_has_no_graphs() -> None:
    pair = RingGroup(Loaded(None)), RingGroup(Loaded(None))
    form(pair)
    for one in pair:
        assert (one.handle, one.no_graphs, one.waited_s) == (None, "the test has none", 0.0)
        assert one.tokens is not None
        assert one.data is not None
        one.check()
        one.leave()


@pytest.mark.parametrize(
    ("cores", "longest_us"), [(None, FEW_CORES_SPIN_US), (2, FEW_CORES_SPIN_US), (4, SPIN_US), (10, SPIN_US)]
)
def test_a_wait_is_awake_for_long_where_there_are_cores_for_it(
    cores: int | None, longest_us: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert spin_us() == longest_us
