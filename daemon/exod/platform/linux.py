"""Linux: kinds of interface from sysfs, netlink for changes, kernel stamps on the wall clock.

Linux hosts are where exod is developed and tested; a Thunderbolt cable between two of them works alike
(driver `thunderbolt-net`).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import psutil

from exod.model import ThunderboltPort
from exod.platform.linux_stamps import WallClockStamps
from exod.platform.linux_text import LinkFacts, classify_link, parse_default_route
from exod.platform.system import Ancillary, Classification
from exoengine.interface_binding import bind_on_linux

# From the kernel's headers. Numbers and not `socket`'s names, so that this file type-checks on macOS too.
_AF_NETLINK = 16
_NETLINK_ROUTE = 0
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_TCP_USER_TIMEOUT = 18  # milliseconds (tcp(7))
_SO_TIMESTAMPNS = 35

_GPUS = "CUDA_VISIBLE_DEVICES"

_TIMESPEC = struct.Struct("@ll")

_MIB = 1024 * 1024


class Linux:
    """The `Platform` of Linux."""

    def __init__(self, sysfs: Path = Path("/sys/class/net"), proc: Path = Path("/proc/net")) -> None:
        self._sysfs = sysfs
        self._proc = proc
        self._stamps = WallClockStamps()

    @property
    def system(self) -> str:
        return "linux"

    async def refresh(self) -> bool:
        """Nothing to ask in advance: sysfs is read when an interface is classified."""
        return False

    def classify(self, interface: str, addresses: Sequence[str]) -> Classification:
        kind, why = classify_link(self._link_facts(interface), addresses)
        return Classification(kind, why)

    def _link_facts(self, interface: str) -> LinkFacts:
        folder = self._sysfs / interface
        members = folder / "brif"
        return LinkFacts(
            name=interface,
            hardware_type=_read(folder / "type"),
            uevent=_read(folder / "uevent"),
            driver=_link_target(folder / "device" / "driver"),
            has_device=(folder / "device").exists(),
            is_wireless=(folder / "wireless").exists() or (folder / "phy80211").exists(),
            is_bridge=(folder / "bridge").exists(),
            is_tunnel_device=(folder / "tun_flags").exists(),
            has_physical_member=members.exists()
            and any((self._sysfs / member.name / "device").exists() for member in members.iterdir()),
        )

    def open_change_socket(self) -> socket.socket | None:
        try:
            sock = socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
        except OSError:
            return None
        sock.setblocking(False)
        try:
            sock.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
        except OSError:
            sock.close()
            return None
        return sock

    def bind_to_interface(self, sock: socket.socket, interface: str) -> None:
        bind_on_linux(sock, interface)

    def give_up_unacknowledged(self, sock: socket.socket, after_s: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, round(after_s * 1000))

    def enable_receive_stamps(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def receive_stamp(self, ancillary: Ancillary, now: float) -> float | None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack_from(data)
                return self._stamps.to_monotonic(seconds * 1_000_000_000 + nanoseconds, now)
        return None

    def network_service(self, interface: str) -> str:
        return ""

    async def primary_interface(self) -> str | None:
        return parse_default_route(_read(self._proc / "route"))

    async def thunderbolt(self) -> tuple[ThunderboltPort, ...]:
        """sysfs names the cable's interface by its driver; receptacles are not told apart here."""
        return ()

    def memory_mib(self) -> int:
        return int(psutil.virtual_memory().total) // _MIB

    def learn_recommended(self, size: int) -> None:
        """Nothing: no MLX on Linux recommends anything."""

    def wired_bytes(self) -> int | None:
        return None

    def worker_environment(self) -> dict[str, str]:
        """One GPU for MLX's CUDA build, whichever the user names: with two in sight a rank failed at its first step
        inside MLX 0.32.4 ("cudaMemcpy … invalid argument"). Other builds do not look at it.
        """
        return {} if _GPUS in os.environ else {_GPUS: "0"}

    def crash_folders(self) -> tuple[Path, ...]:
        """None that every distribution shares: how a worker ended has to do."""
        return ()

    def local_network_privacy_suspected(self, errno: int) -> bool:
        return False


def _read(path: Path) -> str:
    """A file of sysfs or proc; empty where it is gone: interfaces vanish while they are looked at."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _link_target(path: Path) -> str:
    try:
        return path.readlink().name
    except OSError:
        return ""
