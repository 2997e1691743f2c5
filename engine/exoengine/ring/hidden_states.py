"""Hidden states and drawn tokens between neighbouring ranks: inside a graph, or outside of every one.

A fast step has its receive and its send in its graph, and the native group does them. A safe step does both outside
of its graph: the thread that runs the step reads the input from a connection, into memory that the graph was built
upon, evaluates the graph, and writes the output. No thread of MLX has a part in that: through MLX each of the two
would be handed from thread to thread, and a rank that sleeps meanwhile pays for every wake-up. Each mode has
connections of its own, so both ends of one must have the same mode.

An input is an `Arrival`: the array to build a graph upon, and how it comes. Decides nothing. Belongs to the MLX
thread. Every wait ends at once when the group is aborted.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

import mlx.core as mx

from exoengine.ring.message_ring import RingLostError
from exoengine.ring.seal import MAC_BYTES, SealError, StateSeal

SMALL_BYTES: Final = 64 * 1024
"""Up to here content and MAC are joined for one call of the kernel: a copy costs less than a second packet."""


class DataRing:
    """Arrays go to the right (rank + 1) and come from the left (rank - 1), in order, each with a MAC by the key of
    its connection. Without keys (`left_key`, `right_key`) nothing has one: for a wire that is a test's.
    """

    def __init__(
        self, left: socket.socket, right: socket.socket, left_key: bytes = b"", right_key: bytes = b""
    ) -> None:
        self._left, self._right = left, right
        self._sealed_left = StateSeal(left_key) if left_key else None
        self._sealed_right = StateSeal(right_key) if right_key else None

    def send(self, array: Any) -> None:
        """Of an evaluated array; returns when the kernel has it. Raises RingLostError."""
        content = _content(array)
        if not content.c_contiguous:
            array = mx.contiguous(array)
            mx.eval(array)
            content = _content(array)
        try:
            if self._sealed_right is None:
                self._right.sendall(content)
                return
            content = content.cast("B")
            mac = self._sealed_right.mac(content)
            if content.nbytes <= SMALL_BYTES:
                self._right.sendall(b"".join((content, mac)))
            else:
                self._right.sendall(content)
                self._right.sendall(mac)
        except OSError as error:
            raise RingLostError(f"the next rank is gone: {error.strerror or error}") from error

    def expect(self, shape: tuple[int, ...], dtype: Any) -> Arrival:
        return _OutsideGraph(self._left, shape, dtype, self._sealed_left)


class Arrival(Protocol):
    """An input that is not here yet."""

    array: Any
    """What to build a graph upon; of use once it was let come."""

    in_graph: bool
    """Is it an operation of a graph?"""

    def let_come(self, wait: bool = True) -> None:
        """Returns when it is here. One in a graph may be on its way still, unless this is to `wait`: a graph that
        uses it would wait for it. Raises RingLostError; one in a graph is zeros where it failed.
        """

    def sit_out(self) -> None:
        """Nobody wants it any more, but it was let come and is sent: returns when the connection is free of it."""


class InGraph:
    """A receive of the native group, in a graph that waits for it.

    On CUDA it is evaluated with the graph that uses it, never before. MLX lets the thread that evaluates wait for
    it then. For what was begun earlier a kernel would wait on the GPU, and the kernel that ends that wait may stand
    behind it (docs/engine.md).
    """

    in_graph = True

    def __init__(self, received: Any) -> None:
        self.array = received

    def let_come(self, wait: bool = True) -> None:
        if wait:
            mx.eval(self.array)
        elif not mx.cuda.is_available():
            begin_evaluation([self.array])

    def sit_out(self) -> None:
        mx.eval(self.array)


class _OutsideGraph:
    """Memory that is filled before any graph that uses it is evaluated. MLX sees an array like every other, and
    documents that what is written through its buffer shows in it.
    https://ml-explore.github.io/mlx/build/html/usage/numpy.html
    """

    in_graph = False

    def __init__(
        self, connection: socket.socket, shape: tuple[int, ...], dtype: Any, seal: StateSeal | None
    ) -> None:
        count = dtype.size
        for extent in shape:
            count *= extent
        memory = mx.zeros(count, mx.uint8, stream=mx.cpu)
        mx.eval(memory)
        self.array = memory.view(dtype).reshape(shape)
        self._connection, self._seal = connection, seal
        self._content = _content(memory)
        self._is_here = False

    def let_come(self, wait: bool = True) -> None:
        if self._is_here:
            return
        mac = bytearray(MAC_BYTES if self._seal is not None else 0)
        self._read([self._content, memoryview(mac)])
        self._is_here = True
        try:
            if self._seal is not None:
                self._seal.check(self._content, bytes(mac))
        except SealError as error:
            raise RingLostError(f"the rank before sent {error}") from None

    def _read(self, parts: list[memoryview]) -> None:
        """Fills them one after the other, of which the second mostly comes with the first."""
        while missing := [part for part in parts if part]:
            try:
                count, *_ = self._connection.recvmsg_into(missing)
            except OSError as error:
                raise RingLostError(f"the rank before is gone: {error.strerror or error}") from error
            if not count:
                raise RingLostError("the rank before closed its connection")
            first = min(count, len(missing[0]))
            parts = [missing[0][first:], *(part[count - first :] for part in missing[1:])]

    def sit_out(self) -> None:
        """It is here already."""


def _content(array: Any) -> memoryview:
    """Of an evaluated array, without a copy."""
    return memoryview(array)


def begin_evaluation(arrays: list[Any]) -> None:
    begin: Callable[[list[Any]], None] = mx.async_eval
    begin(arrays)
