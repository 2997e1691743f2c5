"""One framer for all streams: whole frames come out whatever the pieces, and none that is too long."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exoengine import framing


@given(bodies=st.lists(st.binary(max_size=40), max_size=6), piece=st.integers(1, 17))
def test_bodies_come_out_whole_and_in_order_however_they_are_cut(bodies: list[bytes], piece: int) -> None:
    stream = b"".join(framing.frame(body, 40) for body in bodies)
    buffer, found = bytearray(), []
    for start in range(0, len(stream), piece):
        buffer += stream[start : start + piece]
        while (body := framing.take(buffer, 40)) is not None:
            found.append(body)
    assert found == bodies
    assert not buffer


def test_a_frame_over_the_limit_is_refused_before_its_body_is_there() -> None:
    with pytest.raises(framing.FrameError, match="5 bytes is over the limit of 4"):
        framing.frame(b"12345", 4)
    with pytest.raises(framing.FrameError, match="5 bytes is over the limit of 4"):
        framing.take(bytearray(b"\0\0\0\x05"), 4)


@pytest.mark.parametrize("rest", [b"", b"\0\0", framing.frame(b"abc", 3)[:-1]])
def test_a_stream_that_ends_in_a_frame_ends(rest: bytes) -> None:
    async def read() -> list[bytes | None]:
        reader = asyncio.StreamReader()
        reader.feed_data(framing.frame(b"whole", 9) + rest)
        reader.feed_eof()
        return [await framing.read(reader, 9), await framing.read(reader, 9)]

    assert asyncio.run(read()) == [b"whole", None]


def sent(data: bytes) -> socket.socket:
    """The reading end of a connection that carried these bytes and ended."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
    return ours


def test_a_socket_that_blocks_gives_the_same_bodies_and_says_its_end() -> None:
    with sent(framing.frame(b"whole", 9) + framing.frame(b"", 9)) as stream:
        assert [framing.receive(stream, 9) for _ in range(3)] == [b"whole", b"", None]


def test_a_body_is_read_into_a_buffer_that_is_its_limit() -> None:
    buffer = memoryview(bytearray(5))
    with sent(framing.frame(b"whole", 9) + framing.frame(b"larger", 9)) as stream:
        assert framing.receive_into(stream, buffer) == 5
        assert buffer == b"whole"
        with pytest.raises(framing.FrameError):
            framing.receive_into(stream, buffer)


@pytest.mark.parametrize("rest", [b"\0\0", b"\0\0\0\x03", framing.frame(b"abc", 3)[:-1]])
def test_a_socket_that_ends_in_a_frame_raises(rest: bytes) -> None:
    with sent(rest) as stream, pytest.raises(ConnectionResetError, match="within a message"):
        framing.receive(stream, 9)


def test_a_socket_refuses_a_frame_over_the_limit_before_its_body() -> None:
    with sent(b"\0\0\0\x05") as stream, pytest.raises(framing.FrameError, match="5 bytes is over the limit of 4"):
        framing.receive(stream, 4)
