"""The listening sockets of the control plane: one for every address, and one bound to each interface of the mesh.

The answer to a connection leaves by its listener's interface. Without one that is bound, the answer to a peer on a
cable with addresses of 169.254/16 leaves by whichever interface the route table prefers. The kernel hands a
connection to the listener that fits best; the one for every address takes what came another way: through a router,
or to an interface that the mesh does not use.

Decides nothing about who is accepted. Raises StartError where the port is taken.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

from exod.errors import StartError
from exod.model import Kind, LocalAddress
from exod.platform.system import Platform

log = structlog.get_logger()

PAUSE_S: Final = 0.2
"""After an accept that failed for want of descriptors: the connection waits in the kernel, and asking again at once
would turn the loop round and round."""


class Listeners:
    """`accepted` gets each connection with its source address, on the event loop; it must not block."""

    def __init__(self, platform: Platform, backlog: int, accepted: Callable[[socket.socket, str], None]) -> None:
        self._platform = platform
        self._backlog = backlog
        self._accepted = accepted
        self._port = 0
        self._addresses: tuple[LocalAddress, ...] = ()
        self._open: dict[LocalAddress | None, socket.socket] = {}
        """None: the one for every address."""
        self._accepting = False

    def listen(self, port: int) -> None:
        self._port = port
        try:
            # Bound without sharing first: the listeners share the port among themselves, and only with each other.
            _bound(("0.0.0.0", port), shared=False).close()
            self._add(None, _bound(("0.0.0.0", port), shared=True))
        except OSError as error:
            raise StartError(
                f"port {port} (mesh.port) cannot be used: {error.strerror}; is another exod running?"
            ) from None
        self._settle()

    def follow(self, addresses: tuple[LocalAddress, ...]) -> None:
        """The addresses that the mesh may use are these now."""
        self._addresses = tuple(one for one in addresses if one.kind is not Kind.LOOPBACK)
        if self._open:
            self._settle()

    def accept(self) -> None:
        """Begins to accept."""
        self._accepting = True
        for listener in self._open.values():
            self._watch(listener)

    def close(self) -> None:
        for address in list(self._open):
            self._remove(address)

    def _settle(self) -> None:
        for address in [one for one in self._open if one is not None and one not in self._addresses]:
            self._remove(address)
        for address in self._addresses:
            if address not in self._open:
                self._try(address)

    def _try(self, address: LocalAddress) -> None:
        """One that cannot be bound is left to the listener for every address."""
        try:
            listener = _bound((address.address, self._port), shared=True)
        except OSError as error:
            log.warning("listener_failed", interface=address.interface, error=error.strerror)
            return
        try:
            self._platform.bind_to_interface(listener, address.interface)
        except OSError as error:
            listener.close()
            log.info("listener_unbound", interface=address.interface, error=error.strerror)
            return
        self._add(address, listener)

    def _add(self, address: LocalAddress | None, listener: socket.socket) -> None:
        listener.listen(self._backlog)
        self._open[address] = listener
        if self._accepting:
            self._watch(listener)

    def _remove(self, address: LocalAddress | None) -> None:
        listener = self._open.pop(address)
        if self._accepting:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        listener.close()

    def _watch(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener.fileno(), self._take, listener)

    def _take(self, listener: socket.socket) -> None:
        try:
            sock, source = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # Out of descriptors, or a connection that was reset before it was taken: neither ends us.
            log.warning("accept_failed", error=error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(PAUSE_S, self._watch_again, listener)
            return
        sock.setblocking(False)
        self._accepted(sock, source[0])

    def _watch_again(self, listener: socket.socket) -> None:
        if listener in self._open.values():
            self._watch(listener)


def _bound(address: tuple[str, int], *, shared: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
