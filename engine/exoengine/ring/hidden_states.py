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
from typing import Any, Protocol

import mlx.core as mx

from exoengine.ring.message_ring import RingLostError


class DataRing:
    """Arrays go to the right (rank + 1) and come from the left (rank - 1), in order."""

    def __init__(self, left: socket.socket, right: socket.socket) -> None:
        self._left, self._right = left, right

    def send(self, array: Any) -> None:
        """Of an evaluated array; returns when the kernel has it. Raises RingLostError."""
        content = _content(array)
        if not content.c_contiguous:
            array = mx.contiguous(array)
            mx.eval(array)
            content = _content(array)
        try:
            self._right.sendall(content)
        except OSError as error:
            raise RingLostError(f"the next rank is gone: {error.strerror or error}") from error

    def expect(self, shape: tuple[int, ...], dtype: Any) -> Arrival:
        return _OutsideGraph(self._left, shape, dtype)


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
    """A receive of the native group, in a graph that waits for it."""

    in_graph = True

    def __init__(self, received: Any) -> None:
        self.array = received

    def let_come(self, wait: bool = True) -> None:
        if wait:
            mx.eval(self.array)
        else:
            begin_evaluation([self.array])

    def sit_out(self) -> None:
        mx.eval(self.array)


class _OutsideGraph:
    """Memory that is filled before any graph that uses it is evaluated. MLX sees an array like every other, and
    documents that what is written through its buffer shows in it.
    https://ml-explore.github.io/mlx/build/html/usage/numpy.html
    """

    in_graph = False

    def __init__(self, connection: socket.socket, shape: tuple[int, ...], dtype: Any) -> None:
        count = dtype.size
        for extent in shape:
            count *= extent
        memory = mx.zeros(count, mx.uint8, stream=mx.cpu)
        mx.eval(memory)
        self.array = memory.view(dtype).reshape(shape)
        self._connection = connection
        self._missing = _content(memory)

    def let_come(self, wait: bool = True) -> None:
        while self._missing:
            try:
                count = self._connection.recv_into(self._missing)
            except OSError as error:
                raise RingLostError(f"the rank before is gone: {error.strerror or error}") from error
            if not count:
                raise RingLostError("the rank before closed its connection")
            self._missing = self._missing[count:]

    def sit_out(self) -> None:
        """It is here already."""


def _content(array: Any) -> memoryview:
    """Of an evaluated array, without a copy."""
    return memoryview(array)


def begin_evaluation(arrays: list[Any]) -> None:
    begin: Callable[[list[Any]], None] = mx.async_eval
    begin(arrays)
