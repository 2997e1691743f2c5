"""macOS: kinds of interface from the hardware ports, the routing socket for changes, mach time for stamps.

Written from Apple's documentation and from the texts that its tools print; the parsers are in darwin_text.py.
Nothing here needs root, and nothing changes the host.
"""

from __future__ import annotations

import asyncio
import errno as errnos
import math
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import psutil

from exod.model import ThunderboltPort
from exod.platform.commands import CommandOutputs
from exod.platform.darwin_text import (
    NetworkFacts,
    classify_interface,
    parse_disabled_services,
    parse_hardware_ports,
    parse_ifconfig,
    parse_nwi_primary,
    parse_service_names,
    parse_thunderbolt,
)
from exod.platform.system import Ancillary, Classification
from exoengine.interface_binding import bind_on_macos

# From Darwin's headers. Numbers, because Python's `socket` and `time` have these names on macOS alone (or not
# at all), and the file is type-checked and tested on Linux.
_PF_ROUTE = 17
_TCP_RXT_CONNDROPTIME = 0x80  # netinet/tcp.h
_SO_TIMESTAMP_MONOTONIC = 0x0800
_SCM_TIMESTAMP_MONOTONIC = 0x04
_SOL_SOCKET = 0xFFFF

_UINT64 = struct.Struct("=Q")

EHOSTUNREACH = 65
"""Darwin's number: what Local Network privacy answers with, silently, while `ping` works (macOS 15 and on)."""

OLDEST_S = 10.0
"""A stamp older than this was not converted with the right timebase, or is no stamp."""

FUTURE_S = 0.001
"""A stamp after the read is impossible; this much is rounding."""

_MIB = 1024 * 1024

_REPORTS = "Library/Logs/DiagnosticReports"

_GPU_SHARE = 3, 4
"""Of memory, what the GPU may wire where `iogpu.wired_limit_mb` is 0, its default: about three quarters."""


class Darwin:
    """The `Platform` of macOS. Owns what the system's tools said last."""

    def __init__(self, commands: CommandOutputs | None = None, timebase: tuple[int, int] | None = None) -> None:
        self._commands = commands if commands is not None else CommandOutputs()
        self._timebase = timebase
        self._facts = NetworkFacts()
        self._wired_limit_mib = 0
        self._recommended_mib = 0

    @property
    def system(self) -> str:
        return "darwin"

    async def refresh(self) -> bool:
        ask = self._commands.output
        ports, services, interfaces, limit = await asyncio.gather(
            ask("/usr/sbin/networksetup", "-listallhardwareports"),
            ask("/usr/sbin/networksetup", "-listnetworkserviceorder"),
            ask("/sbin/ifconfig", "-v"),
            ask("/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"),
        )
        before = self._facts
        # A tool that failed this time takes back nothing that it said before.
        self._facts = NetworkFacts(
            ports=parse_hardware_ports(ports) if ports else before.ports,
            disabled=parse_disabled_services(services) if services else before.disabled,
            services=parse_service_names(services) if services else before.services,
            interfaces=parse_ifconfig(interfaces) if interfaces else before.interfaces,
        )
        if limit is not None and limit.strip().isdecimal():
            self._wired_limit_mib = int(limit.strip())
        return self._facts != before

    def classify(self, interface: str, addresses: Sequence[str]) -> Classification:
        kind, why = classify_interface(self._facts, interface, addresses)
        return Classification(kind, why)

    def open_change_socket(self) -> socket.socket | None:
        try:
            sock = socket.socket(_PF_ROUTE, socket.SOCK_RAW, 0)
        except OSError:
            return None
        sock.setblocking(False)
        return sock

    def bind_to_interface(self, sock: socket.socket, interface: str) -> None:
        bind_on_macos(sock, interface)

    def give_up_unacknowledged(self, sock: socket.socket, after_s: float) -> None:
        """In whole seconds."""
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RXT_CONNDROPTIME, math.ceil(after_s))

    def enable_receive_stamps(self, sock: socket.socket) -> None:
        sock.setsockopt(_SOL_SOCKET, _SO_TIMESTAMP_MONOTONIC, 1)

    def receive_stamp(self, ancillary: Ancillary, now: float) -> float | None:
        """The stamp is mach absolute time, which is also what `time.monotonic()` counts on macOS."""
        for level, kind, data in ancillary:
            if level == _SOL_SOCKET and kind == _SCM_TIMESTAMP_MONOTONIC and len(data) >= _UINT64.size:
                if self._timebase is None:
                    self._timebase = _mach_timebase()
                numerator, denominator = self._timebase
                ticks: int = _UINT64.unpack_from(data)[0]
                received = ticks * numerator // denominator / 1e9
                if now - OLDEST_S <= received <= now + FUTURE_S:
                    return min(received, now)
        return None

    async def primary_interface(self) -> str | None:
        return parse_nwi_primary(await self._commands.output("/usr/sbin/scutil", "--nwi") or "")

    def network_service(self, interface: str) -> str:
        return self._facts.services.get(interface, "")

    async def thunderbolt(self) -> tuple[ThunderboltPort, ...]:
        report = await self._commands.output("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json")
        return parse_thunderbolt(report or "", self._facts.ports)

    def memory_mib(self) -> int:
        """What MLX recommends, once a worker has told. Until then `iogpu.wired_limit_mb` where a person has set it
        (reported, never set by exod), else about what its default comes to.
        """
        if self._recommended_mib > 0:
            return self._recommended_mib
        if self._wired_limit_mib > 0:
            return self._wired_limit_mib
        return int(psutil.virtual_memory().total) // _MIB * _GPU_SHARE[0] // _GPU_SHARE[1]

    def learn_recommended(self, size: int) -> None:
        self._recommended_mib = size // _MIB

    def wired_bytes(self) -> int | None:
        wired = getattr(psutil.virtual_memory(), "wired", None)
        return int(wired) if wired is not None else None

    def worker_environment(self) -> dict[str, str]:
        """Asks Metal not to time command buffers out. Undocumented by Apple and of doubtful effect: set
        because it costs nothing, relied on by nothing. Safe sync is what keeps the GPU from waiting.
        """
        return {"MTL_DISABLE_TIMEOUT": "1", "MTL_COMMAND_BUFFER_TIMEOUT": "0"}

    def crash_folders(self) -> tuple[Path, ...]:
        """The user's and the system's; each moves what it has sent to Apple to `Retired`."""
        reports = (Path.home() / _REPORTS, Path("/") / _REPORTS)
        return tuple(folder for report in reports for folder in (report, report / "Retired"))

    def local_network_privacy_suspected(self, errno: int) -> bool:
        return errno in {EHOSTUNREACH, errnos.EHOSTUNREACH}


def _mach_timebase() -> tuple[int, int]:
    """Nanoseconds per mach tick as a fraction: 125/3 on Apple silicon, 1/1 on Intel."""
    import ctypes

    class Timebase(ctypes.Structure):
        _fields_ = (("numer", ctypes.c_uint32), ("denom", ctypes.c_uint32))

    info = Timebase()
    ctypes.CDLL(None).mach_timebase_info(ctypes.byref(info))
    return int(info.numer), int(info.denom)
