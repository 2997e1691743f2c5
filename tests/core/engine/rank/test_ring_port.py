"""A port that someone else has is left for the next one, and what cannot be had is not asked for all the time."""

from __future__ import annotations

import msgspec

from exod.core.cluster.plan_diff import describe_change
from exod.core.engine.rank.ring_port import PORTS, REST_S, RingPorts
from tests.core.engine.engine_samples import A, B, a_plan

FIRST = 52420


def take_all(ports: RingPorts, now: float) -> list[int]:
    """Every port that is tried until none is left."""
    tried = [ports.port]
    while ports.taken(ports.port, now):
        tried.append(ports.port)
    return tried


def test_a_port_that_is_taken_is_left_for_the_next() -> None:
    ports = RingPorts(FIRST)
    assert ports.taken(FIRST, 0.0)
    assert ports.port == FIRST + 1


def test_a_port_of_an_earlier_plan_changes_nothing() -> None:
    ports = RingPorts(FIRST)
    ports.taken(FIRST, 0.0)
    assert not ports.taken(FIRST, 0.1)
    assert ports.port == FIRST + 1


def test_a_round_tries_each_port_once_and_then_rests() -> None:
    ports = RingPorts(FIRST)
    assert take_all(ports, 0.0) == list(range(FIRST, FIRST + PORTS))
    assert not ports.taken(ports.port, REST_S / 2)
    assert ports.port == FIRST + PORTS - 1
    assert sorted(take_all(ports, REST_S)) == list(range(FIRST, FIRST + PORTS))


def test_a_group_that_formed_makes_the_next_trouble_a_new_one() -> None:
    ports = RingPorts(FIRST)
    take_all(ports, 0.0)
    ports.listened()
    assert ports.taken(ports.port, 1.0)


def test_ports_end_where_ports_end() -> None:
    ports = RingPorts(65534)
    assert take_all(ports, 0.0) == [65534, 65535]


def test_a_plan_that_only_moves_a_port_says_so() -> None:
    before = a_plan(A, B)
    edges = tuple(
        msgspec.structs.replace(edge, target_port=52421 if edge.target == B else edge.target_port)
        for edge in before.edges
    )
    after = msgspec.structs.replace(before, edges=edges)
    assert describe_change(before, after, {B: "studio2"}) == "studio2 moved its ring to port 52421"
