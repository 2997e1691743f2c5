"""Two ranks meet by real sockets, also when others connect to their ports."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from exoengine.ring.rendezvous import ANSWER_BYTES, HELLO_BYTES, MAX_STRANGERS, Edges, meet
from exoengine.ring.ring_plan import FormError, RingConnection, RingPlan, split_host

GENEROUS_S = 20.0
KEY = b"k" * 32
CHANNEL_AT = 5
"""In a hello."""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def plans(size: int = 2, key: bytes = KEY) -> list[RingPlan]:
    hosts = tuple(f"127.0.0.1:{port}" for port in free_ports(size))
    return [RingPlan("plan", 1, rank, size, hosts, key) for rank in range(size)]


def meeting(plan: RingPlan, pool: ThreadPoolExecutor, within_s: float = GENEROUS_S) -> Future[Edges]:
    def run() -> Edges:
        wake, other = socket.socketpair()
        with wake, other:
            return meet(plan, time.monotonic() + within_s, lambda: None, wake)

    return pool.submit(run)


@contextlib.contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def close(*edges: Edges) -> None:
    for side in edges:
        for connection in side.all():
            connection.close()


def connect(plan: RingPlan, source: str = "") -> socket.socket:
    """To where `plan`'s rank listens, as soon as it does."""
    until = time.monotonic() + GENEROUS_S
    while True:
        connection = socket.socket()
        try:
            if source:
                connection.bind((source, 0))
            connection.connect(split_host(plan.hosts[plan.rank]))
            return connection
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > until:
                raise
            time.sleep(0.005)


def assert_connected(first: Edges, second: Edges) -> None:
    for left, right in (
        (first.control_right, second.control_left),
        (second.control_right, first.control_left),
        (first.data_right, second.data_left),
    ):
        left.sendall(b"next")
        right.settimeout(GENEROUS_S)
        assert right.recv(4) == b"next"


def test_neighbours_meet_and_share_a_key_for_each_connection() -> None:
    with pool() as threads:
        first, second = (future.result(GENEROUS_S) for future in [meeting(plan, threads) for plan in plans()])
    assert_connected(first, second)
    assert first.keys[first.control_right] == second.keys[second.control_left]
    assert second.keys[second.control_right] == first.keys[first.control_left]
    keys = [side.keys[connection] for side in (first, second) for connection in side.all()]
    assert len(set(keys)) == len(keys) // 2, "each connection has its own"
    close(first, second)


def test_silent_strangers_do_not_delay_a_meeting() -> None:
    with pool() as threads:
        left, right = plans()
        waiting = meeting(right, threads)
        strangers = [connect(right) for _ in range(2 * MAX_STRANGERS)]
        begun = time.monotonic()
        first, second = meeting(left, threads).result(GENEROUS_S), waiting.result(GENEROUS_S)
        took_s = time.monotonic() - begun
        assert_connected(first, second)
        close(first, second)
        for stranger in strangers:
            stranger.close()
    assert took_s < 1.5, "less than a stranger is given to say who it is"


def test_a_flood_of_strangers_does_not_prevent_a_meeting() -> None:
    over = threading.Event()

    def flood(plan: RingPlan) -> None:
        kept: list[socket.socket] = []
        while not over.is_set():
            with contextlib.suppress(OSError):
                kept.append(socket.create_connection(split_host(plan.hosts[plan.rank])))
                kept[-1].send(b"x" * (len(kept) % HELLO_BYTES))
            if len(kept) > 100:
                kept.pop(0).close()
        for connection in kept:
            connection.close()

    with pool() as threads:
        left, right = plans()
        waiting = meeting(right, threads)
        flooding = threads.submit(flood, right)
        try:
            first, second = meeting(left, threads).result(GENEROUS_S), waiting.result(GENEROUS_S)
        finally:
            over.set()
        flooding.result(GENEROUS_S)
        assert_connected(first, second)
        close(first, second)


def recorded_hellos(left: RingPlan) -> list[bytes]:
    """What rank 0 sends to rank 1, taken down by somebody on the wire."""
    with socket.create_server(split_host(left.hosts[1])) as listener, pool() as threads:
        listener.settimeout(GENEROUS_S)
        trying = meeting(left, threads, within_s=1.0)
        hellos = []
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                hellos.append(connection.recv(HELLO_BYTES, socket.MSG_WAITALL))
        with pytest.raises(FormError):
            trying.result(GENEROUS_S)
    return hellos


def test_a_recorded_hello_takes_nobodys_place() -> None:
    left, right = plans()
    hellos = recorded_hellos(left)
    with pool() as threads:
        waiting = meeting(right, threads)
        replayed = [connect(right) for _ in hellos]
        nonces = set()
        for connection, hello in zip(replayed, hellos, strict=True):
            connection.settimeout(GENEROUS_S)
            connection.sendall(hello)
            answer = connection.recv(48, socket.MSG_WAITALL)
            assert len(answer) == 48, "a hello of this plan is answered"
            nonces.add(answer[:16])
            connection.sendall(answer[16:])  # it cannot do better than to say it back
        assert len(nonces) == len(hellos) > 1, "or a recorded proof would be good for the next meeting"
        first, second = meeting(left, threads).result(GENEROUS_S), waiting.result(GENEROUS_S)
        assert_connected(first, second)
        for connection in replayed:
            assert connection.recv(1) == b""
            connection.close()
        close(first, second)


def recorded_answers(right: RingPlan, hellos: list[bytes]) -> dict[int, bytes]:
    """What rank 1 answers to these hellos, by their channel."""
    with pool() as threads:
        waiting = meeting(right, threads, within_s=1.0)
        answers = {}
        for hello in hellos:
            with connect(right) as connection:
                connection.settimeout(GENEROUS_S)
                connection.sendall(hello)
                answers[hello[CHANNEL_AT]] = connection.recv(ANSWER_BYTES, socket.MSG_WAITALL)
        with pytest.raises(FormError):
            waiting.result(GENEROUS_S)
    return answers


def test_a_recorded_answer_takes_nobodys_place() -> None:
    """The one that connects adds a nonce, too: else one answer would be good for every meeting of the plan."""
    left, right = plans()
    answers = recorded_answers(right, recorded_hellos(left))
    with socket.create_server(split_host(left.hosts[1])) as listener, pool() as threads:
        listener.settimeout(GENEROUS_S)
        trying = meeting(left, threads, within_s=1.0)
        for _ in answers:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(GENEROUS_S)
                hello = connection.recv(HELLO_BYTES, socket.MSG_WAITALL)
                connection.sendall(answers[hello[CHANNEL_AT]])
                assert connection.recv(1) == b"", "it proves nothing to one who only says back an answer"
        with pytest.raises(FormError):
            trying.result(GENEROUS_S)


@pytest.mark.parametrize("change", [{"key": b"x" * 32}, {"attempt": 2}, {"plan_hash": "other"}, {"size": 3}])
def test_a_rank_of_another_plan_or_cluster_is_no_neighbour(change: dict[str, object]) -> None:
    left, right = plans(3)[:2]
    strange = dataclasses.replace(left, **change)  # type: ignore[arg-type]
    if "size" in change:
        strange = dataclasses.replace(left, rank=2, hosts=(left.hosts[1], *left.hosts[1:]))
    with pool() as threads:
        trying = [meeting(strange, threads, within_s=1.0), meeting(right, threads, within_s=1.0)]
        for future in trying:
            with pytest.raises(FormError):
                future.result(GENEROUS_S)


@pytest.mark.usefixtures("second_loopback")
def test_only_the_planned_address_is_listened_to() -> None:
    left, right = plans()
    left = dataclasses.replace(left, connect_from="127.0.0.3")
    right = dataclasses.replace(right, accept_from="127.0.0.3")
    with pool() as threads:
        waiting = meeting(right, threads)
        stranger = connect(right, "127.0.0.2")
        stranger.settimeout(GENEROUS_S)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b"", "turned away without being asked"
        first, second = meeting(left, threads).result(GENEROUS_S), waiting.result(GENEROUS_S)
        assert_connected(first, second)
        close(first, second)


def test_there_is_no_key_for_a_plan_without_one() -> None:
    wake, other = socket.socketpair()
    with wake, other, pytest.raises(FormError, match="key"):
        meet(plans(key=b"")[0], time.monotonic() + 1.0, lambda: None, wake)


def test_ranks_that_are_no_neighbours_meet_across_the_ring_where_the_plan_says_so() -> None:
    made = plans(4)
    hosts = made[0].hosts
    for rank, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        made[rank] = dataclasses.replace(
            made[rank], across=(RingConnection(other, rank < other, hosts[max(rank, other)]),)
        )
    with ThreadPoolExecutor(4) as pool:
        edges = [each.result() for each in [meeting(plan, pool) for plan in made]]
    for one, other in ((0, 2), (1, 3)):
        edges[one].across[other].sendall(b"across")
        assert edges[other].across[one].recv(6) == b"across"
    for each in edges:
        for connection in each.all():
            connection.close()
