"""Where an unbound connection would leave from. MLX's ring follows the route table, so exod asks it.

Needs no command and no privilege, and is alike on both systems: connecting a UDP socket sends nothing and
makes the kernel choose the route and with it the local address.
"""

from __future__ import annotations

import contextlib
import socket

_ANY_PORT = 9
"""Connecting a UDP socket needs a port other than 0; nothing is ever sent to it (9 is `discard`)."""


def route_source(remote: str) -> str | None:
    """The local IPv4 address that an unbound connection to `remote` leaves from; None: no route."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(sock):
        sock.setblocking(False)
        try:
            sock.connect((remote, _ANY_PORT))
        except OSError:
            return None
        source: str = sock.getsockname()[0]
    return source
