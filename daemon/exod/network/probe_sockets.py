"""Moves probe datagrams: one UDP socket for each local address, bound to its interface.

Takes the kernel's receive stamps and stamps each send; decides nothing. The mesh driver hands it datagrams to send
and gets what arrived. `add_reader` and `recvmsg` are used because asyncio's datagram protocol hides the ancillary
data in which the kernel's stamps come.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import Final

import structlog

from exod.core.base.events import DatagramReceived, DatagramSent, Input, SendDatagram, SendFailed
from exod.model import LocalAddress
from exod.platform.system import Platform

log = structlog.get_logger()

RECEIVE_BYTES: Final = 2048
"""A datagram of the protocol is under 1,200 bytes; a longer one is cut here and fails its check."""

ANCILLARY_BYTES: Final = 128

DRAIN_LIMIT: Final = 256
"""Datagrams read from one socket in one go. 8 peers with 16 paths at 20 a second send 2,560 in a second, so a
loop that was late by 100 ms still empties its socket; a flood leaves room for the other sockets."""

SOCKET_BUFFER_BYTES: Final = 256 * 1024
"""What peers send in about a second of stall: the stalled node must find those of the witness path afterwards."""

WIDE_SEND_S: Final = 1e-3
"""A send call takes 10-20 µs. Where the stamps around it lie further apart the process was interrupted inside, most
often after the datagram left; if before, the RTT comes out too long by what is between them, which the floor, the
smallest of ten, forgives. Beyond a fifth of the 5 ms that verdicts are about, no RTT is taken. A tighter limit cost
a busy machine half its samples, and the verdict on a slow path as much time."""


class ProbeSockets:
    """The probe sockets of this host. `deliver` gets each Input; it must not block."""

    def __init__(self, platform: Platform, port: int, deliver: Callable[[Input], None]) -> None:
        self._platform = platform
        self._port = port
        self._deliver = deliver
        self._sockets: dict[LocalAddress, socket.socket] = {}
        self._by_address: dict[str, socket.socket] = {}
        self.on_refused: Callable[[str, int], None] = lambda address, number: None
        """Told the local address and the errno of each datagram that the system refused to send."""

    def follow(self, addresses: tuple[LocalAddress, ...]) -> None:
        """Opens a socket for each new address and closes those of addresses that are gone. Raises OSError where no
        descriptor is left: to be tried again.
        """
        for address in [known for known in self._sockets if known not in addresses]:
            self._close(address)
        for address in addresses:
            if address not in self._sockets:
                self._open(address)

    def _open(self, address: LocalAddress) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0))
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
            with contextlib.suppress(PermissionError):  # then the route table decides, and is what routes.py asks
                self._platform.bind_to_interface(sock, address.interface)
            self._platform.enable_receive_stamps(sock)
            sock.bind((address.address, self._port))
        except OSError as error:
            sock.close()
            log.warning(
                "probe_socket_failed",
                interface=address.interface,
                address=f"{address.address}:{self._port}",
                error=error.strerror,
            )
            return
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read, address.address, sock)
        self._sockets[address] = sock
        self._by_address[address.address] = sock

    def _close(self, address: LocalAddress) -> None:
        sock = self._sockets.pop(address)
        if self._by_address.get(address.address) is sock:
            del self._by_address[address.address]
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()

    def close(self) -> None:
        for address in list(self._sockets):
            self._close(address)

    def drain(self) -> None:
        """Hands over everything that waits in the sockets: called before timers are judged after a stall."""
        for address, sock in list(self._sockets.items()):
            self._drain(address.address, sock)

    def _drain(self, local_address: str, sock: socket.socket) -> None:
        for _ in range(DRAIN_LIMIT):
            if not self._read(local_address, sock):
                return

    def _read(self, local_address: str, sock: socket.socket) -> bool:
        """Hands over one datagram. Returns whether there may be more: the event loop calls again while there are,
        so a loop that is on time needs no second read, which finds nothing, for each datagram.
        """
        try:
            data, ancillary, _flags, source = sock.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            # An ICMP error of an earlier send (no listener there yet), or the interface went: not a datagram.
            return error.errno not in (errno.EBADF, errno.ENOTCONN)
        now = time.monotonic()
        stamp = self._platform.receive_stamp(ancillary, now)
        self._deliver(DatagramReceived(local_address, source[0], data, received_at=now if stamp is None else stamp))
        return True

    def send(self, command: SendDatagram) -> None:
        """Sends now (or after a debug fault's delay) and reports DatagramSent or SendFailed."""
        if command.delay_s > 0:
            asyncio.get_running_loop().call_later(command.delay_s, self._send, command)
        else:
            self._send(command)

    def _send(self, command: SendDatagram) -> None:
        sock = self._by_address.get(command.local_address)
        if sock is None:
            self._deliver(SendFailed(command.path, command.peer, errno.EADDRNOTAVAIL))
            return
        before = time.monotonic()
        try:
            sock.sendto(command.data, (command.remote_address, command.remote_port))
        except BlockingIOError:
            return  # a full send buffer is a lost datagram
        except OSError as error:
            number = error.errno or errno.EIO
            self.on_refused(command.local_address, number)
            self._deliver(SendFailed(command.path, command.peer, number))
            return
        wide = time.monotonic() - before > WIDE_SEND_S
        self._deliver(DatagramSent(command.path, command.peer, command.seq, None if wide else before))
