"""What the operating system knows that exod needs: kinds of interface, socket options, clocks, memory.

`Platform` is the one interface that services see; `current()` gives the one of this host. A platform reports
and translates; it decides nothing about paths, and it never changes the host's network: where something
should change it hands out the command, for a person to run.

Called by network/interfaces.py, network/probe_sockets.py, engine_service/worker_process.py, the app and the doctor.
"""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from exod.model import Kind
from exod.platform.clocks import ClockReadings

Ancillary = Sequence[tuple[int, int, bytes]]
"""What `socket.recvmsg` hands back beside the data: (level, type, bytes)."""

ANCILLARY_BYTES = 64
"""Room for one stamp with its header on every platform: 32 bytes on 64-bit Linux, 20 on macOS."""


class Classification(msgspec.Struct, frozen=True):
    """What an interface is, and how the platform knows, in words for `exoctl netcheck`."""

    kind: Kind
    why: str


class ThunderboltPort(msgspec.Struct, frozen=True):
    """One Thunderbolt receptacle. Empty strings and None stand for what the system did not say."""

    receptacle: str
    connected: bool | None
    speed: str
    interface: str
    """The port's own interface (`en5`); its bridge, where it has one, is another."""
    domain: str
    peer_name: str
    peer_domain: str
    """Set where the other end is a computer: it is that port's `domain` over there."""


class Platform(Protocol):
    """One operating system. Only the async methods run commands; the others are quick and never block."""

    @property
    def system(self) -> str:
        """`darwin` or `linux`."""

    async def refresh(self) -> bool:
        """Asks the system anew which interfaces there are; True where the answer changed. Never raises:
        where a command is missing or hangs, the names of interfaces have to do.
        """

    def classify(self, interface: str, addresses: Sequence[str]) -> Classification:
        """What the interface is, from the last refresh, its name and its IPv4 addresses."""

    def open_change_socket(self) -> socket.socket | None:
        """A non-blocking socket that becomes readable when links or addresses change; None: only polling."""

    def bind_to_interface(self, sock: socket.socket, interface: str) -> None:
        """Keeps an IPv4 socket on one interface whatever the route table says. Raises OSError."""

    def give_up_unacknowledged(self, sock: socket.socket, after_s: float) -> None:
        """Ends a TCP connection whose peer's kernel acknowledges nothing for so long; 0: the system's patience."""

    def enable_receive_stamps(self, sock: socket.socket) -> None:
        """Asks the kernel to stamp each datagram as it arrives. Raises OSError."""

    def receive_stamp(self, ancillary: Ancillary, now: float) -> float | None:
        """When the datagram arrived, on `time.monotonic()`'s clock; None where there is no stamp to trust.

        `now` is `time.monotonic()` right after the read. Callers fall back on it.
        """

    def route_fix_command(self, remote: str, interface: str, local: str) -> str:
        """The command that makes unbound connections to `remote` leave from `interface`."""

    async def route_interface(self, remote: str) -> str | None:
        """The interface that an unbound connection to `remote` uses."""

    async def primary_interface(self) -> str | None:
        """The interface of the default route."""

    async def thunderbolt(self) -> tuple[ThunderboltPort, ...]:
        """The Thunderbolt receptacles; empty where there are none or the system does not tell."""

    def clock_readings(self) -> ClockReadings:
        """For `exod.platform.clocks.slept_s`."""

    def memory_mib(self) -> int:
        """What this host can give to a model, in MiB."""

    def worker_environment(self) -> dict[str, str]:
        """Variables for an engine worker's environment, beside the inherited ones."""

    def crash_folders(self) -> tuple[Path, ...]:
        """Where the system keeps reports of crashed processes; empty where it keeps none."""

    def local_network_privacy_suspected(self, errno: int) -> bool:
        """Does this error of a send or connect look like macOS's Local Network privacy?"""


@functools.cache
def current() -> Platform:
    """This host's platform. macOS and Linux; anything else is treated like Linux and finds less."""
    if sys.platform == "darwin":
        from exod.platform.darwin import Darwin

        return Darwin()
    from exod.platform.linux import Linux

    return Linux()
