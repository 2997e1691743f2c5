"""Messages between ranks that somebody else sends, changes, repeats, leaves out or puts in another order."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from exoengine import framing
from exoengine.ring.message_ring import MAX_MESSAGE_BYTES, RingLostError, TokenRing
from exoengine.ring.seal import Seal, SealError

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
