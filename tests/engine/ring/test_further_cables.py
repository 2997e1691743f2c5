"""Two neighbours with more than one cable: all carry a large message, and none of them can fail the group."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest

from exoengine.ring.group import RingGroup
from exoengine.ring.ring_plan import Cable, RingPlan
from tests.engine.ring.test_group import Loaded, streams

pytestmark = pytest.mark.usefixtures("second_loopback")

FORMS_WITHIN_S = 20.0
LOW, HIGH = "127.0.0.2", "127.0.0.3"
COUNT = 2 * 1024 * 1024
"""Of float32: 8 MiB."""

_ports = itertools.count(11000 + os.getpid() % 100 * 8)

Pair = tuple[RingGroup, RingGroup]


@pytest.fixture
def pair(native: Any) -> Iterator[Pair]:
    made = RingGroup(Loaded(native)), RingGroup(Loaded(native))
    yield made
    for one in made:
        one.leave()


def form(pair: Pair, *cables: tuple[Cable, ...], within_s: float = FORMS_WITHIN_S) -> None:
    hosts = tuple(f"127.0.0.1:{next(_ports)}" for _ in pair)
    plan = RingPlan("plan", 1, 0, 2, hosts, key=b"k")
    plans = [dataclasses.replace(plan, rank=rank, cables=mine) for rank, mine in enumerate(cables)]
    until = time.monotonic() + within_s
    with ThreadPoolExecutor(2) as threads:
        forming = [threads.submit(one.form, mine, until, 10.0) for one, mine in zip(pair, plans, strict=True)]
        for formed in forming:
            formed.result()


def sums_are_right(pair: Pair, count: int) -> bool:
    mine = [mx.full((count,), rank + 1.0) for rank in range(2)]
    mx.eval(mine)
    sums = [
        mx.distributed.all_sum(one, group=group.handle, stream=stream)
        for one, group, stream in zip(mine, pair, streams(), strict=True)
    ]
    mx.eval(sums)
    return all(mx.all(one == 3.0).item() for one in sums)


def carried(rank: RingGroup) -> list[int]:
    """By each connection to the other rank, since the group was formed."""
    ((_, counts),) = rank._control.carried().items()
    return list(counts)


def cable(peer: int, near: str, far: str) -> tuple[Cable, ...]:
    return (Cable(peer, "", near, far),)


def test_a_large_message_takes_both_cables_and_a_small_one_the_first(pair: Pair) -> None:
    form(pair, cable(1, LOW, HIGH), cable(0, HIGH, LOW))
    assert [one.further_cables for one in pair] == [1, 1]
    before = [carried(one)[-1] for one in pair]
    assert sums_are_right(pair, 16)
    assert [carried(one)[-1] for one in pair] == before
    assert sums_are_right(pair, COUNT)
    for one, bytes_before in zip(pair, before, strict=True):
        assert carried(one)[-1] > bytes_before
        assert sum(carried(one)) > COUNT * 4


def test_a_cable_that_one_end_alone_knows_is_left_out(pair: Pair) -> None:
    form(pair, cable(1, LOW, HIGH), ())
    assert [one.further_cables for one in pair] == [0, 0]
    form(pair, (), cable(0, HIGH, LOW))
    assert [one.further_cables for one in pair] == [0, 0]
    assert sums_are_right(pair, COUNT)


def test_a_cable_that_comes_from_another_address_than_expected_is_left_out(pair: Pair) -> None:
    form(pair, cable(1, "127.0.0.4", HIGH), cable(0, HIGH, LOW))
    assert [one.further_cables for one in pair] == [0, 0]
    assert sums_are_right(pair, COUNT)


def test_a_cable_whose_address_is_gone_is_left_out(pair: Pair) -> None:
    """203.0.113.0/24 is nobody's (RFC 5737)."""
    form(pair, cable(1, "203.0.113.1", HIGH), cable(0, HIGH, "203.0.113.1"))
    form(pair, cable(1, LOW, "203.0.113.2"), cable(0, "203.0.113.2", LOW))
    assert [one.further_cables for one in pair] == [0, 0]
    assert sums_are_right(pair, COUNT)


def test_of_two_further_cables_the_one_that_works_is_used_by_both_ends(pair: Pair) -> None:
    broken = Cable(1, "", "203.0.113.1", "127.0.0.5"), Cable(0, "", "127.0.0.5", "203.0.113.1")
    form(pair, (broken[0], *cable(1, LOW, HIGH)), (broken[1], *cable(0, HIGH, LOW)))
    assert [one.further_cables for one in pair] == [1, 1]
    assert sums_are_right(pair, COUNT)


def test_an_aborted_group_forms_again_with_its_cables(pair: Pair) -> None:
    for _ in range(3):
        form(pair, cable(1, LOW, HIGH), cable(0, HIGH, LOW))
        assert [one.further_cables for one in pair] == [1, 1]
        pair[0].abort("told", "the test does")
