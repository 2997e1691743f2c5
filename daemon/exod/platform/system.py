"""What exod asks of an operating system: kinds of interface, socket options, receive stamps, memory.

`Platform` is the interface that every other room uses; `darwin.py` and `linux.py` implement it, and
`this_host.current()` gives the one of this host. A platform reports and translates. It decides nothing about paths
and never changes the host's network: where something should change it returns the command for a person to run.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from exod.model import Kind, ThunderboltPort

Ancillary = Sequence[tuple[int, int, bytes]]
"""What `socket.recvmsg` hands back beside the data: (level, type, bytes)."""

ANCILLARY_BYTES = 64
"""Room for one stamp with its header on every platform: 32 bytes on 64-bit Linux, 20 on macOS."""


class Classification(msgspec.Struct, frozen=True):
    """What an interface is, and how the platform knows, as text for `exoctl netcheck`."""

    kind: Kind
    why: str


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

    async def primary_interface(self) -> str | None:
        """The interface of the default route."""

    def network_service(self, interface: str) -> str:
        """What `networksetup` calls the interface's service on this Mac; empty where that is not known."""

    async def thunderbolt(self) -> tuple[ThunderboltPort, ...]:
        """The Thunderbolt receptacles; empty where there are none or the system does not tell."""

    def memory_mib(self) -> int:
        """What this host can give to a model, in MiB."""

    def learn_recommended(self, size: int) -> None:
        """MLX says that a process should use so many bytes of the GPU's memory at most."""

    def wired_bytes(self) -> int | None:
        """How much memory is wired by all programs; None where the system does not tell."""

    def worker_environment(self) -> dict[str, str]:
        """Variables for an engine worker's environment, beside the inherited ones."""

    def crash_folders(self) -> tuple[Path, ...]:
        """Where the system keeps reports of crashed processes; empty where it keeps none."""

    def local_network_privacy_suspected(self, errno: int) -> bool:
        """Does this error of a send or connect look like macOS's Local Network privacy?"""
