"""A process of its own that connects to a loopback port as soon as someone listens there.

MLX's ring holds the interpreter lock while it accepts, so nobody else in the worker could make the connection
that it waits for. The worker starts this before it imports MLX, and group.py tells it ports, one a line, on
standard input; `0` lets go of the last connection, and so does any other port: MLX may have refused the one before,
where nobody will ever listen. The end of the input ends the process, so that it never outlives its worker. Only the
standard library, so that it is small and starts in milliseconds.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys

TRY_EVERY_S = 0.0005
"""MLX listens within a few milliseconds; this adds next to nothing to that."""


def attempt(port: int) -> socket.socket | None:
    """A connection to 127.0.0.1:`port`, or None where nobody listens yet."""
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=1)
    except OSError:
        return None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands = sys.stdin.fileno()
    held: socket.socket | None = None
    port, said = 0, b""
    while True:
        trying = port != 0 and held is None
        if select.select([commands], [], [], TRY_EVERY_S if trying else None)[0]:
            piece = os.read(commands, 4096)
            if not piece:
                return
            *lines, said = (said + piece).split(b"\n")
            for line in lines:
                if held is not None:
                    held.close()
                port, held = int(line), None
        if port != 0 and held is None:
            held = attempt(port)


if __name__ == "__main__":
    main()
