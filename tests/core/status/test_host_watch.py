"""What goes wrong beside exod is raised at one limit and cleared at another."""

from __future__ import annotations

from typing import Any

from exod.core.status.host_watch import GIB, RESTARTS_WITHIN_S, TOGETHER_S, HostFigures, HostWatch
from exod.model import NodeId

ME, PEER = NodeId("a"), NodeId("b")
NAMES = {ME: "studio1", PEER: "studio2"}


def codes(watch: HostWatch, now: float = 0.0, **figures: Any) -> list[str]:
    whole = HostFigures(**{"folder": "/data", "disk_free_bytes": 9 * GIB, "memory_available": 0.5, **figures})
    return [found.code for found in watch.facts(whole, NAMES, now)]


def test_nothing_is_wrong_with_a_usual_host() -> None:
    assert codes(HostWatch(ME), clocks={PEER: 0.4}, restarts={ME: 2, PEER: 7}) == []


def test_a_full_disk_is_told_until_there_is_room_again() -> None:
    watch = HostWatch(ME)
    assert codes(watch, disk_free_bytes=GIB // 2 - 1) == ["disk_low"]
    assert codes(watch, disk_free_bytes=int(0.9 * GIB)) == ["disk_low"]
    assert codes(watch, disk_free_bytes=GIB) == []
    assert codes(watch, disk_free_bytes=int(0.9 * GIB)) == []


def test_memory_that_is_gone_is_told_until_there_is_some_again() -> None:
    watch = HostWatch(ME)
    assert codes(watch, memory_available=0.02) == ["memory_low"]
    assert codes(watch, memory_available=0.05) == ["memory_low"]
    assert codes(watch, memory_available=0.07) == []


def test_a_clock_that_is_off_is_named_with_its_side() -> None:
    watch = HostWatch(ME)
    figures = HostFigures("/data", 9 * GIB, 0.5, clocks={PEER: -61.0})
    (found,) = watch.facts(figures, NAMES, 0.0)
    assert (found.code, found.subject) == ("clock_skew", PEER)
    assert found.text == "the clock of studio2 is 61 s behind this node's: their events do not line up"
    assert codes(watch, clocks={PEER: 3.0}) == ["clock_skew"]
    assert codes(watch, clocks={PEER: 1.0}) == []
    assert codes(watch, clocks={PEER: 3.0}) == []


def test_three_replaced_workers_in_five_minutes_are_a_loop() -> None:
    watch = HostWatch(ME)
    assert codes(watch, 0.0, restarts={ME: 5}) == [], "what was before this daemon looked does not count"
    assert codes(watch, 10.0, restarts={ME: 6}) == []
    assert codes(watch, 20.0, restarts={ME: 7}) == []
    assert codes(watch, 30.0, restarts={ME: 8}) == ["restart_loop"]
    assert codes(watch, 11.0 + RESTARTS_WITHIN_S, restarts={ME: 8}) == []


def test_a_peers_new_daemon_counts_from_zero() -> None:
    watch = HostWatch(ME)
    for count in (4, 0, 0, 0):
        assert codes(watch, restarts={PEER: count}) == []


def test_workers_of_several_nodes_that_end_together_are_one_finding() -> None:
    watch = HostWatch(ME)
    assert codes(watch, 0.0, restarts={ME: 0, PEER: 0}) == []
    assert codes(watch, 5.0, restarts={ME: 1, PEER: 0}) == []
    assert codes(watch, 10.0, restarts={ME: 1, PEER: 1}) == ["workers_crashed"]
    figures = HostFigures("/data", 9 * GIB, 0.5, restarts={ME: 1, PEER: 1})
    (found,) = watch.facts(figures, NAMES, 11.0)
    assert found.text == "the workers of studio1, studio2 ended within 10 s of each other"
    assert codes(watch, 6.0 + TOGETHER_S, restarts={ME: 1, PEER: 1}) == []
