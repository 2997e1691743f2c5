"""What the ring's own connections tell of a path, on loopback: who does not answer, and what goes through.

That the kernel's counts show lost packets is shown in the lab, where packets can be lost.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from exoengine.ring.edge_proof import PROOF_BYTES, THOROUGH_BYTES, EdgeProof, ProofError
from exoengine.ring.rendezvous import meet
from exoengine.ring.ring_plan import FormError, RingPlan
from exoengine.ring.send_queue import SendWatch, unacknowledged_bytes

Pair = tuple[socket.socket, socket.socket]
Told = list[tuple[int, str, int, float]]
WAKE = socket.socketpair()[0]
BURST = 128 * 1024


def note(told: Told) -> Callable[[int, str, int, float], None]:
    return lambda *what: told.append(what)


def a_connection() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setblocking(False)
    return one, other


@pytest.fixture
def connections() -> Iterator[tuple[Pair, Pair]]:
    forth, back = a_connection(), a_connection()
    yield forth, back
    for end in (*forth, *back):
        end.close()


def prove(connections: tuple[Pair, Pair], thorough: tuple[bool, bool]) -> dict[str, Told]:
    """Each end decides for itself how much it sends. Returns what each told."""
    (a_to_b, b_from_a), (b_to_a, a_from_b) = connections
    told: dict[str, Told] = {"a": [], "b": []}
    proofs = (
        EdgeProof((a_from_b, 1), (a_to_b, 1), note(told["a"]), thorough=thorough[0]),
        EdgeProof((b_from_a, 0), (b_to_a, 0), note(told["b"]), thorough=thorough[1]),
    )
    threads = [
        threading.Thread(target=proof.run, args=(time.monotonic() + 20.0, lambda: None, WAKE)) for proof in proofs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    return told


@pytest.mark.parametrize("thorough", [(False, False), (True, False), (True, True)])
def test_both_ends_of_an_edge_tell_that_its_bytes_went_through(
    connections: tuple[Pair, Pair], thorough: tuple[bool, bool]
) -> None:
    (a_to_b, b_from_a), (b_to_a, a_from_b) = connections
    told = prove(connections, thorough)
    ((from_b, fault_b, by_b, _),), ((from_a, fault_a, by_a, _),) = told["a"], told["b"]
    assert (from_b, fault_b, from_a, fault_a) == (1, "moved", 0, "moved")
    for moved, much in zip((by_a, by_b), thorough, strict=True):
        if much:
            assert 2 * PROOF_BYTES < moved <= THOROUGH_BYTES, "less than all only where it took long"
        else:
            assert moved == PROOF_BYTES
    for end, other in ((a_to_b, b_from_a), (b_to_a, a_from_b)):  # nothing of the proof is left behind
        end.sendall(b"the group's first message")
        other.setblocking(True)
        assert other.recv(100) == b"the group's first message"


def test_what_a_token_bucket_holds_is_not_taken_for_the_rate(connections: tuple[Pair, Pair]) -> None:
    """A first burst of 128 KiB passes at once, then next to nothing: a path that is slow, and is told to be."""
    (a_to_b, b_from_a), (b_to_a, a_from_b) = connections
    policed, far_end = a_connection()
    over = threading.Event()
    threading.Thread(target=police, args=(far_end, b_to_a, over), daemon=True).start()
    told: Told = []
    proof = EdgeProof((a_from_b, 1), (a_to_b, 1), note(told), thorough=False)
    sender = EdgeProof((b_from_a, 0), (policed, 0), note([]), thorough=True)
    threads = [
        threading.Thread(target=one.run, args=(time.monotonic() + 20.0, lambda: None, WAKE))
        for one in (proof, sender)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    over.set()
    assert {fault for _, fault, _, _ in told} == {"moved"}
    assert all(moved / seconds < 1e6 for _, _, moved, seconds in told), "a megabyte a second is what Ethernet must"


def police(source: socket.socket, target: socket.socket, over: threading.Event) -> None:
    """Passes on BURST bytes at once, then 64 KiB a second."""
    source.setblocking(True)
    source.settimeout(0.2)
    target.setblocking(True)
    passed, began = 0, time.monotonic()
    while not over.is_set():
        with contextlib.suppress(OSError):  # nothing has come yet, or the test is over
            piece = source.recv(4096)
            passed += len(piece)
            while passed > BURST + (time.monotonic() - began) * 65_536 and not over.wait(0.01):
                pass
            target.sendall(piece)


def test_a_neighbour_that_leaves_while_the_edge_is_tried_ends_it(
    connections: tuple[Pair, Pair],
) -> None:
    (a_to_b, _), (b_to_a, a_from_b) = connections
    b_to_a.close()
    with pytest.raises(ProofError, match="rank 1 left"):
        EdgeProof((a_from_b, 1), (a_to_b, 1), note([]), thorough=False).run(
            time.monotonic() + 20.0, lambda: None, WAKE
        )


def test_a_port_that_refuses_is_told_once_a_second() -> None:
    with socket.socket() as mine, socket.socket() as closed:
        for one in (mine, closed):
            one.bind(("127.0.0.1", 0))
        hosts = tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in (mine, closed))
        mine.close()
        told: Told = []
        plan = RingPlan("plan", 1, 0, 2, hosts, b"key")
        with pytest.raises(FormError):
            meet(plan, time.monotonic() + 2.6, lambda: None, WAKE, note(told))
    assert [(rank, fault) for rank, fault, _, _ in told] == [(1, "refused"), (1, "refused")]


def test_bytes_that_wait_for_a_process_are_no_standstill() -> None:
    """The receiving machine acknowledges, its process reads nothing: its window closes, and nothing was lost."""
    one, other = a_connection()
    try:
        with contextlib.suppress(BlockingIOError):
            while one.send(bytes(1 << 20)):
                pass
        watch = SendWatch()
        ends_at = time.monotonic() + 1.2
        while time.monotonic() < ends_at:
            assert watch.stalled([one], time.monotonic()) is None
            time.sleep(0.1)
        assert unacknowledged_bytes(one) > 0
    finally:
        one.close()
        other.close()


class OnAMac:
    """A connection as macOS tells of it: bytes in its send buffer, and the window of the other end."""

    def __init__(self, window: int) -> None:
        self.window = window

    def fileno(self) -> int:
        return 7

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        if (level, option) == (socket.SOL_SOCKET, 0x1024):
            return 70_000
        assert (level, option, size) == (socket.IPPROTO_TCP, 0x106, 112)
        return struct.pack("=16xI8xI80x", 1448, self.window)


@pytest.mark.parametrize(("window", "is_lost"), [(131_072, True), (1448, True), (1447, False), (0, False)])
def test_on_a_mac_a_window_that_is_closed_is_no_standstill(
    monkeypatch: pytest.MonkeyPatch, window: int, is_lost: bool
) -> None:
    """macOS counts what it may not send yet: a rank that computes for a second must not lose its group by that."""
    monkeypatch.setattr("exoengine.ring.send_queue.sys.platform", "darwin")
    watch, connection = SendWatch(), cast(socket.socket, OnAMac(window))
    told = [watch.stalled([connection], now) for now in (0.0, 0.3, 0.7)]
    assert told == [None, None, 0.7 if is_lost else None]
