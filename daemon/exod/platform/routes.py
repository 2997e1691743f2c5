"""Where a path's own sockets leave. Sends nothing: connecting a UDP socket makes the kernel choose the way.

A socket that is bound to the path's interface and address goes that way or fails. Where this process may not bind
(Linux before 5.7 without CAP_NET_RAW) the route table decides, and then it is the route table that is asked.
"""

from __future__ import annotations

import contextlib
import socket

from exod.model import PathEnds
from exod.platform.system import Platform

_ANY_PORT = 9
"""Connecting a UDP socket needs a port other than 0; nothing is ever sent to it (9 is `discard`)."""


def path_source(platform: Platform, ends: PathEnds) -> str | None:
    """The local address that our sockets of this path leave from; None: they cannot connect at all. Where nobody
    can be asked, because no descriptor is left, nothing speaks against the path's own.
    """
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return ends.local
    with contextlib.closing(sock):
        sock.setblocking(False)
        try:
            platform.bind_to_interface(sock, ends.interface)
        except PermissionError:
            return route_source(ends.remote)
        except OSError:
            return None
        try:
            sock.bind((ends.local, 0))
        except OSError:
            return None
        return _connected_source(sock, ends.remote)


def route_source(remote: str) -> str | None:
    """The local IPv4 address that an unbound connection to `remote` leaves from; None: no route."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(sock):
        sock.setblocking(False)
        return _connected_source(sock, remote)


def _connected_source(sock: socket.socket, remote: str) -> str | None:
    try:
        sock.connect((remote, _ANY_PORT))
    except OSError:
        return None
    source: str = sock.getsockname()[0]
    return source
