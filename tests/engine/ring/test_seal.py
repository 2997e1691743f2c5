"""Messages between ranks that somebody else sends, changes, repeats, leaves out or puts in another order."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from exoengine import framing
from exoengine.ring.hidden_states import DataRing
from exoengine.ring.message_ring import MAX_MESSAGE_BYTES, RingLostError, TokenRing
from exoengine.ring.seal import Seal, SealError, StateSeal

KEY, OTHER = b"k" * 32, b"o" * 32
MESSAGES = [b"one", b"", b"three" * 1000]

Wire = tuple[socket.socket, TokenRing]


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The end that anybody on the wire has, and the rank that hears it."""
    sender, left = socket.socketpair()
    right, unused = socket.socketpair()
    ring = TokenRing(1, 2, left, right, KEY, OTHER)
    with sender, left, right, unused:
        yield sender, ring
        ring.close()


def sealed() -> list[bytes]:
    seal = Seal(KEY)
    return [seal.close(message) for message in MESSAGES]


def put(sender: socket.socket, *messages: bytes) -> None:
    for message in messages:
        sender.sendall(framing.frame(message, MAX_MESSAGE_BYTES))


def test_what_the_neighbour_sends_is_heard_in_order(wire: Wire) -> None:
    sender, ring = wire
    put(sender, *sealed())
    assert [ring.receive() for _ in MESSAGES] == MESSAGES


@pytest.mark.parametrize(
    "change",
    [
        lambda good: [MESSAGES[0]],
        lambda good: [b""],
        lambda good: [good[0][:-1]],
        lambda good: [bytes([good[0][0] ^ 1]) + good[0][1:]],
        lambda good: [good[0][:-1] + bytes([good[0][-1] ^ 1])],
        lambda good: [good[1]],
        lambda good: [Seal(OTHER).close(MESSAGES[0])],
        lambda good: [MESSAGES[0] + bytes(16)],
    ],
    ids=["bare", "empty", "short", "changed", "another MAC", "another place", "another key", "no MAC"],
)
def test_what_is_not_the_neighbours_next_message_ends_the_ring(
    wire: Wire, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    sender, ring = wire
    put(sender, *change(sealed()))
    with pytest.raises(RingLostError, match="not made for this place"):
        ring.receive()


def test_a_message_that_is_repeated_or_left_out_is_found(wire: Wire) -> None:
    first, second, third = sealed()
    repeated = Seal(KEY)
    assert repeated.open(first) == MESSAGES[0]
    with pytest.raises(SealError):
        repeated.open(first)
    left_out = Seal(KEY)
    left_out.open(first)
    with pytest.raises(SealError):
        left_out.open(third)
    assert Seal(KEY).open(first) == MESSAGES[0]
    assert second != third


# --- hidden states --------------------------------------------------------------------------------------------


def states(seal: StateSeal) -> list[bytes]:
    """Two states as they are sent."""
    return [content + seal.mac(memoryview(content)) for content in (bytes(range(16)), bytes(16))]


def arrives(*sent: bytes) -> list[int]:
    """What a rank takes for the last of these hidden states."""
    sender, left = socket.socketpair()
    right, unused = socket.socketpair()
    with sender, left, right, unused:
        ring = DataRing(left, right, KEY, OTHER)
        for content in sent:
            sender.sendall(content)
        for _ in sent:
            arrival = ring.expect((16,), mx.uint8)
            arrival.let_come()
        found: list[int] = arrival.array.tolist()
        return found


def test_hidden_states_arrive_in_order() -> None:
    assert arrives(*states(StateSeal(KEY))) == [0] * 16


@pytest.mark.parametrize(
    "change",
    [
        lambda good: [bytes(16) + bytes(16)],
        lambda good: [bytes([good[0][0] ^ 1]) + good[0][1:]],
        lambda good: [good[0][:-1] + bytes([good[0][-1] ^ 1])],
        lambda good: [good[1]],
        lambda good: [good[0], good[0]],
        lambda good: states(StateSeal(OTHER))[:1],
    ],
    ids=["no MAC", "changed", "another MAC", "another place", "repeated", "another key"],
)
def test_a_hidden_state_of_somebody_else_ends_the_group(change: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(RingLostError, match="not made for this place"):
        arrives(*change(states(StateSeal(KEY))))


@pytest.mark.parametrize("count", [10, 30_000])
def test_arrays_of_every_size_and_kind_are_sealed(count: int) -> None:
    sender, left = socket.socketpair()
    right, unused = socket.socketpair()
    with sender, left, right, unused:
        here, there = DataRing(right, sender, OTHER, KEY), DataRing(left, unused, KEY, OTHER)
        for kind in (mx.bfloat16, mx.float16, mx.float32, mx.int32):
            array = mx.arange(count).astype(kind).reshape(2, -1)
            mx.eval(array)
            sending = threading.Thread(target=here.send, args=(array,))
            sending.start()
            arrival = there.expect(tuple(array.shape), kind)
            arrival.let_come()
            sending.join()
            assert mx.array_equal(arrival.array, array)
