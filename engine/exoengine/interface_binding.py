"""Keeps an IPv4 socket on one interface, whatever the route table says. No MLX.

A cable with the system's own addresses (169.254/16) shares its subnet with every other interface that has one, so
an unbound connection leaves by the interface that the route table prefers. Probes, control connections and the
ring's connections are bound here, so that all of them take the way that was measured. Sockets that a bound listener
accepts stay on its interface.

Decides nothing. Raises OSError: PermissionError where this process may not bind (Linux before 5.7 without
CAP_NET_RAW), another where the interface is gone.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

# From the systems' headers. Numbers, because Python's `socket` has each name on its own system alone.
IP_BOUND_IF: Final = 25
SO_BINDTODEVICE: Final = 25

_UINT32: Final = struct.Struct("=I")


def bind_on_macos(sock: socket.socket, interface: str) -> None:
    """Needs no privilege."""
    sock.setsockopt(socket.IPPROTO_IP, IP_BOUND_IF, _UINT32.pack(socket.if_nametoindex(interface)))


def bind_on_linux(sock: socket.socket, interface: str) -> None:
    """Needs no privilege since Linux 5.7."""
    sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")


def bind_to_interface(sock: socket.socket, interface: str) -> None:
    """On this system. An empty name binds nothing: an older daemon names no interface."""
    if not interface:
        return
    if sys.platform == "darwin":
        bind_on_macos(sock, interface)
    else:
        bind_on_linux(sock, interface)


def bind_where_allowed(sock: socket.socket, interface: str) -> None:
    """The same, but a process that may not bind goes on: then its source address and the route table decide, and
    exod has checked that they lead to the same interface before it planned this way.
    """
    try:
        bind_to_interface(sock, interface)
    except PermissionError:
        return
