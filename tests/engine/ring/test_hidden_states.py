"""Arrays between neighbouring ranks outside of MLX: what arrives is what was sent, or the end of the group."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from exoengine.ring import hidden_states
from exoengine.ring.hidden_states import DataRing, InGraph
from exoengine.ring.message_ring import RingLostError

Ends = tuple[DataRing, DataRing, socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A rank, the one to its right, and the two ends of the connection between them."""
    right, left = socket.socketpair()
    unused, other = socket.socketpair()
    with right, left, unused, other:
        yield DataRing(unused, right), DataRing(left, other), right, left


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.int32])
def test_a_graph_sees_what_arrived_after_it_was_built(ends: Ends, dtype: Any) -> None:
    here, there, *_ = ends
    sent = (mx.arange(24) * 3).astype(dtype).reshape(1, 2, 12)
    mx.eval(sent)
    arrival = there.expect((1, 2, 12), dtype)
    built = arrival.array + 1
    here.send(sent)
    arrival.let_come()
    assert built.dtype == dtype
    assert built.tolist() == (sent + 1).tolist()


def test_what_lies_in_memory_in_another_order_is_sent_in_its_own(ends: Ends) -> None:
    here, there, *_ = ends
    turned = mx.arange(24).reshape(4, 6).T
    mx.eval(turned)
    here.send(turned)
    arrival = there.expect((6, 4), mx.int32)
    arrival.let_come()
    assert arrival.array.tolist() == turned.tolist()


def test_two_arrivals_take_what_is_theirs_however_it_comes(ends: Ends) -> None:
    here, there, right, _ = ends
    large = mx.arange(1_000_000)  # more than the kernel holds: both ends must be at it
    mx.eval(large)
    sending = threading.Thread(target=here.send, args=(large,))
    sending.start()
    first, second = there.expect((1_000_000,), mx.int32), there.expect((2,), mx.int32)
    first.let_come()
    sending.join()
    for byte in memoryview(mx.array([7, 8])).tobytes():  # type: ignore[arg-type]
        right.send(bytes([byte]))
    second.let_come()
    assert mx.array_equal(first.array, large).item()
    assert second.array.tolist() == [7, 8]


def test_what_is_here_is_not_asked_for_again(ends: Ends) -> None:
    here, there, *_ = ends
    here.send(mx.array([5]))
    arrival = there.expect((1,), mx.int32)
    arrival.let_come()
    arrival.let_come()
    assert arrival.array.item() == 5


@pytest.mark.parametrize("how", [socket.SHUT_RDWR, socket.SHUT_RD])
def test_a_wait_ends_when_the_group_is_aborted(ends: Ends, how: int) -> None:
    _, there, _, left = ends
    abort = threading.Timer(0.2, left.shutdown, (how,))
    abort.start()
    with pytest.raises(RingLostError, match="the rank before"):
        there.expect((2,), mx.int32).let_come()
    abort.join()


def test_a_send_to_a_rank_that_is_gone_says_so(ends: Ends) -> None:
    here, _, _, left = ends
    left.close()
    with pytest.raises(RingLostError, match="the next rank is gone"):
        here.send(mx.zeros((1_000_000,)))


@pytest.mark.parametrize("on_cuda", [False, True])
def test_on_cuda_a_receive_is_not_begun_before_its_graph(monkeypatch: pytest.MonkeyPatch, on_cuda: bool) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(hidden_states, "begin_evaluation", begun.extend)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: on_cuda)
    InGraph(mx.array([1])).let_come(wait=False)
    assert len(begun) == (0 if on_cuda else 1)
