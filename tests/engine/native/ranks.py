"""Ranks as processes of their own, with real TCP connections between each two: for tests of the native group."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GENEROUS_S = 120.0
"""A hang fails here instead of blocking the suite."""


def connections(count: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """`count` TCP connections over loopback, both ends of each."""
    for _ in range(count):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        yield near, far


SO_MAX_PACING_RATE = 47
"""Linux; `socket` does not name it."""


def run(module: Path, size: int, program: str, lanes: int = 1, bytes_per_s: int = 0, **options: Any) -> list[Any]:
    """Runs `program` of programs.py as `size` ranks; gives what each returned, by rank. `bytes_per_s`: what each
    connection carries in each direction at most, as a cable of its own would (on Linux).
    """
    sockets: list[dict[int, list[socket.socket]]] = [{} for _ in range(size)]
    with contextlib.ExitStack() as stack:
        for low in range(size):
            for high in range(low + 1, size):
                for near, far in connections(lanes):
                    for end in (near, far) if bytes_per_s else ():
                        end.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_s)
                    sockets[low].setdefault(high, []).append(stack.enter_context(near))
                    sockets[high].setdefault(low, []).append(stack.enter_context(far))
        children = [
            stack.enter_context(_start(module, size, rank, program, options, mine))
            for rank, mine in enumerate(sockets)
        ]
        for mine in sockets:
            for ends in mine.values():
                for end in ends:
                    end.close()
        answers = []
        for rank, child in enumerate(children):
            said, _ = child.communicate(timeout=GENEROUS_S)
            assert child.returncode == 0, f"rank {rank} ended with {child.returncode}"
            answers.append(json.loads(said.splitlines()[-1]))
        return answers


@contextlib.contextmanager
def _start(
    module: Path, size: int, rank: int, program: str, options: dict[str, Any], mine: dict[int, list[socket.socket]]
) -> Iterator[subprocess.Popen[str]]:
    numbers = {peer: [end.fileno() for end in ends] for peer, ends in mine.items()}
    order = json.dumps([str(module), size, rank, program, options, list(numbers.items())])
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.native.programs", order],
        pass_fds=[number for each in numbers.values() for number in each],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
