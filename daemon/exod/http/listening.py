"""The sockets that the HTTP API listens on.

Decides the addresses: the configured one, and [::1] beside 127.0.0.1, because `localhost` means both and some
clients try only one. Never decides who may ask.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

import structlog

from exod.errors import StartError

BACKLOG: Final = 512
"""Connections that the kernel queues until the loop accepts them: enough for a burst of clients, not for a
flood."""

BOTH_LOOPBACKS: Final = ("127.0.0.1", "localhost")

_log = structlog.get_logger("http_api")


def listen(host: str, port: int) -> list[socket.socket]:
    """Bound sockets, all on one port (with port 0 any free one). Raises StartError."""
    first = _listen(host, port)
    if host not in BOTH_LOOPBACKS:
        return [first]
    bound: int = first.getsockname()[1]
    try:
        return [first, _bound(socket.AF_INET6, 0, ("::1", bound))]
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a host without IPv6
            _log.warning("http_no_ipv6_loopback", address=f"[::1]:{bound}", error=error.strerror)
        return [first]


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises StartError."""
    try:
        family, _, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartError(f"api.host = {host!r} is no address: {error.strerror}") from None
    try:
        return _bound(family, protocol, address)
    except OSError as error:
        raise StartError(_why_not(host, port, error)) from None


def _bound(family: int, protocol: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    place = f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{place}: the HTTP API's port is in use (by whom: lsof -i :{port}); set api.port to another"
        case errno.EADDRNOTAVAIL:
            return f"{place}: no interface of this host has the address; set api.host to another"
        case errno.EACCES:
            return f"{place}: only root may listen on this port; set api.port to one above 1023"
    return f"{place}: the HTTP API cannot listen: {os.strerror(error.errno or 0)}"
