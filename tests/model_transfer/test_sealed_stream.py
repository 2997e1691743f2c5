"""Records between two ends: what arrives is what was sent, in its order, or an error."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from exod.model_transfer.sealed_stream import RECORD_BYTES, SealedStream
from exod.model_transfer.transfer_messages import AskFiles, receive_question, send
from exoengine.framing import FrameError

HERE, THERE = b"h" * 32, b"t" * 32
WITHIN_S = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[SealedStream, SealedStream]]:
    one, other = pair()
    with one, other:
        yield SealedStream(one, HERE, THERE), SealedStream(other, THERE, HERE)


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    one.settimeout(WITHIN_S)
    other.settimeout(WITHIN_S)
    return one, other


def sealed(*contents: bytes) -> list[bytes]:
    """Each record as it lies on the wire."""
    one, other = pair()
    with one, other:
        stream, found = SealedStream(one, HERE, THERE), []
        for content in contents:
            stream.sendall(content)
            found.append(other.recv(RECORD_BYTES))
        return found


def received(wire: bytes, count: int = 4096) -> bytes:
    """What the other end takes of these bytes, until their end."""
    one, other = pair()
    with one, other:
        one.sendall(wire)
        one.shutdown(socket.SHUT_WR)
        stream, got, buffer = SealedStream(other, THERE, HERE), bytearray(), memoryview(bytearray(count))
        while taken := stream.recv_into(buffer):
            got += buffer[:taken]
        return bytes(got)


@pytest.mark.parametrize("size", [1, 7, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1, 3 * RECORD_BYTES + 5])
@pytest.mark.parametrize("at_once", [1000, RECORD_BYTES, 4 * RECORD_BYTES])
def test_what_is_sent_arrives_whatever_its_length(
    ends: tuple[SealedStream, SealedStream], size: int, at_once: int
) -> None:
    here, there = ends
    content, got, buffer = os.urandom(size), bytearray(), memoryview(bytearray(at_once))
    sending = threading.Thread(target=here.sendall, args=(content,))
    sending.start()
    while len(got) < size:
        got += buffer[: there.recv_into(buffer)]
    sending.join(WITHIN_S)
    assert got == content


def test_messages_and_bytes_follow_one_another_in_both_directions(ends: tuple[SealedStream, SealedStream]) -> None:
    here, there = ends
    for _ in range(3):
        send(here, AskFiles("maker/tiny"))
        assert receive_question(there) == AskFiles("maker/tiny")
        send(there, AskFiles("maker/other"))
        assert receive_question(here) == AskFiles("maker/other")


def test_nothing_of_the_content_is_on_the_wire() -> None:
    (wire,) = sealed(b"secret weights" * 10)
    assert b"secret" not in wire


def changed(wire: bytes) -> bytes:
    return wire[:-20] + bytes([wire[-20] ^ 1]) + wire[-19:]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: changed(a) + b,
        lambda a, b: b + a,
        lambda a, b: a + a,
        lambda a, b: b,
        lambda a, b: bytes([0, 0, 0, len(a) - 5]) + a[4:],
        lambda a, b: bytes(4) + a[4:],
        lambda a, b: bytes([0, 0, 0, 16]) + a[4:],
        lambda a, b: bytes([0, 0, 0, 3]) + a[4:],
        lambda a, b: b"\xff" * 100,
    ],
    ids=["changed", "swapped", "repeated", "left out", "shortened", "empty", "no content", "no tag", "no protocol"],
)
def test_a_record_that_is_not_the_next_one_as_it_was_made_is_found(make: Callable[[bytes, bytes], bytes]) -> None:
    first, second = sealed(b"a" * 100, b"b" * 100)
    assert received(first + second) == b"a" * 100 + b"b" * 100
    with pytest.raises(FrameError):
        received(make(first, second))


def test_an_end_within_a_record_is_no_end() -> None:
    (wire,) = sealed(b"a" * 100)
    for count in range(1, len(wire)):
        with pytest.raises(ConnectionResetError):
            received(wire[:count])


def test_the_directions_have_keys_of_their_own() -> None:
    """What this end sent cannot be sent back to it."""
    one, other = pair()
    with one, other:
        here = SealedStream(one, HERE, THERE)
        here.sendall(b"question")
        other.sendall(other.recv(RECORD_BYTES))
        with pytest.raises(FrameError):
            here.recv_into(memoryview(bytearray(100)))
