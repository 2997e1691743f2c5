"""Plays JACCL where there is none, for tests: the native group over connections of its own, made stubborn.

As JACCL it meets at rank 0's address, cannot be aborted, and waits for ever where a rank is gone. Its connections
are plain TCP and prove nothing to each other, so it is for tests alone: `debug.rdma_stand_in` must be set on every
node. Raises RdmaError.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Final

from exoengine.protocol import RdmaSetup
from exoengine.ring.ring_plan import RdmaError, split_host

WITHIN_S: Final = 10.0
"""JACCL gives up to connect after some tens of seconds; a test has no need to wait so long."""

AGAIN_S: Final = 0.05


def join(setup: RdmaSetup, rank: int, native: Any) -> Any:
    """The `mx.distributed.Group` of all ranks."""
    if native is None:
        raise RdmaError("the stand-in of RDMA needs the native group, and it is not ready")
    try:
        ends = _connections(setup, rank, time.monotonic() + WITHIN_S)
    except (OSError, ValueError, KeyError) as error:
        raise RdmaError(f"the ranks did not meet at {setup.coordinator}: {error}") from error
    try:
        numbers = {peer: [end.fileno()] for peer, end in ends.items()}
        handle, _ = native.make(rank, len(setup.devices), numbers, spin_us=50, deadline_s=3600.0, stubborn=True)
    finally:
        for end in ends.values():
            end.close()  # the group has copies
    return handle


def _connections(setup: RdmaSetup, rank: int, deadline: float) -> dict[int, socket.socket]:
    """By rank. All meet at rank 0, which tells each where the others listen; of two the higher one connects."""
    size = len(setup.devices)
    if rank == 0:
        return _as_first(setup, size, deadline)
    first = _connect(split_host(setup.coordinator), deadline)
    with socket.create_server((first.getsockname()[0], 0)) as listener:
        _say(first, {"rank": rank, "port": listener.getsockname()[1], "host": first.getsockname()[0]})
        told = {int(peer): (place[0], place[1]) for peer, place in _hear(first, deadline).items()}
        ends = {0: first}
        for peer in range(1, rank):
            ends[peer] = _connect(told[peer], deadline)
            _say(ends[peer], {"rank": rank})
        for _ in range(rank + 1, size):
            end = _accept(listener, deadline)
            ends[_hear(end, deadline)["rank"]] = end
    return ends


def _as_first(setup: RdmaSetup, size: int, deadline: float) -> dict[int, socket.socket]:
    ends: dict[int, socket.socket] = {}
    places = {}
    with socket.create_server(split_host(setup.coordinator)) as listener:
        while len(ends) < size - 1:
            end = _accept(listener, deadline)
            said = _hear(end, deadline)
            ends[said["rank"]] = end
            places[said["rank"]] = (said["host"], said["port"])
    for end in ends.values():
        _say(end, places)
    return ends


def _connect(place: tuple[str, int], deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(place, max(0.1, deadline - time.monotonic()))
        except OSError:
            if time.monotonic() + AGAIN_S > deadline:
                raise
            time.sleep(AGAIN_S)


def _accept(listener: socket.socket, deadline: float) -> socket.socket:
    listener.settimeout(max(0.1, deadline - time.monotonic()))
    return listener.accept()[0]


def _say(end: socket.socket, what: dict[Any, Any]) -> None:
    end.sendall(json.dumps(what).encode() + b"\n")


def _hear(end: socket.socket, deadline: float) -> dict[str, Any]:
    end.settimeout(max(0.1, deadline - time.monotonic()))
    line = b""
    while not line.endswith(b"\n"):
        byte = end.recv(1)  # what follows belongs to the group
        if not byte:
            raise ConnectionResetError("a rank left")
        line += byte
    said: dict[str, Any] = json.loads(line)
    return said
