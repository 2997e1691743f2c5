"""A process of its own that connects to a loopback port as soon as someone listens there.

MLX's ring holds the interpreter lock while it accepts, so nobody else in the worker could make the connection
that it waits for. The worker starts this before it imports MLX, and group.py tells it ports, one a line, on
standard input; `0` lets go of the last connection; the end of the input ends the process, so that it never
outlives its worker. Only the standard library, so that it is small and starts in milliseconds.
"""

from __future__ import annotations

import signal
import socket
import sys
import time

TRY_EVERY_S = 0.0005
"""MLX listens within a few milliseconds; this adds next to nothing to that."""

TRY_FOR_S = 5.0
"""As long as group.py's alarm gives MLX for its `init`."""


def connect(port: int) -> socket.socket | None:
    """A connection to 127.0.0.1:`port`, or None where nobody listened in time."""
    until = time.monotonic() + TRY_FOR_S
    while time.monotonic() < until:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1)
        except OSError:
            time.sleep(TRY_EVERY_S)
    return None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held: socket.socket | None = None
    for line in sys.stdin:
        if held is not None:
            held.close()
        port = int(line)
        held = connect(port) if port else None


if __name__ == "__main__":
    main()
