"""Numbers of macOS's headers that the program carries, checked by a compiler against those headers.

Python's modules have these names on a Mac alone, and a wrong number would show on a Mac alone. The headers are
those that the package `ziglang` brings.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from exod.engine_service import worker_process
from exod.platform import darwin, system
from exoengine import interface_binding
from exoengine.ring import send_queue
from launchd import app
from tests.conftest import missing
from tests.platform.mac import fake_network
from tests.platform.mac.test_launcher import EX_CONFIG

HEADERS = (
    "errno.h", "mach/mach_time.h", "netinet/in.h", "netinet/tcp.h", "stddef.h", "stdint.h", "sys/socket.h",
    "sys/un.h", "sysexits.h",
)  # fmt: skip

EQUAL = {
    "IP_BOUND_IF": interface_binding.IP_BOUND_IF,
    "PF_ROUTE": darwin._PF_ROUTE,
    "TCP_RXT_CONNDROPTIME": darwin._TCP_RXT_CONNDROPTIME,
    "SO_TIMESTAMP_MONOTONIC": darwin._SO_TIMESTAMP_MONOTONIC,
    "SCM_TIMESTAMP_MONOTONIC": darwin._SCM_TIMESTAMP_MONOTONIC,
    "SOL_SOCKET": darwin._SOL_SOCKET,
    "EHOSTUNREACH": darwin.EHOSTUNREACH,
    "SO_NWRITE": send_queue._SO_NWRITE,
    "TCP_CONNECTION_INFO": send_queue._TCP_CONNECTION_INFO,
    "sizeof(struct tcp_connection_info)": send_queue._CONNECTION_INFO.size,
    "offsetof(struct tcp_connection_info, tcpi_maxseg)": 16,
    "offsetof(struct tcp_connection_info, tcpi_snd_wnd)": 28,
    "EADDRNOTAVAIL": fake_network.EADDRNOTAVAIL,
    "ENETDOWN": fake_network.ENETDOWN,
    "EHOSTDOWN": fake_network.EHOSTDOWN,
    "EX_CONFIG": EX_CONFIG,
    "sizeof(struct mach_timebase_info)": 8,
    "sizeof(uint64_t)": darwin._UINT64.size,
}

ROOM = {
    "sizeof(((struct sockaddr_un *)0)->sun_path)": worker_process.MAX_SOCKET_PATH_BYTES + 1,
    str(system.ANCILLARY_BYTES): "ROUNDED(sizeof(struct cmsghdr)) + ROUNDED(sizeof(uint64_t))",
}
"""What must be at least so large. `CMSG_SPACE` itself is no constant there."""


def compiled(assertions: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("ziglang") is None:
        missing("the package ziglang is not installed: make setup-cross")
    rounded = "#define ROUNDED(size) (((size) + sizeof(uint32_t) - 1) & ~(sizeof(uint32_t) - 1))"
    lines = [*(f"#include <{name}>" for name in HEADERS), rounded, *assertions]
    (folder / "check.c").write_text("\n".join(lines) + "\n")
    target = ("-target", f"aarch64-macos.{app.OLDEST_MACOS}.0", "-D_DARWIN_C_SOURCE")
    files = ("-c", str(folder / "check.c"), "-o", str(folder / "check.o"))
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "ziglang", "cc", *target, *files],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def is_true(condition: str) -> str:
    return f'_Static_assert({condition}, "{condition}");'


def test_every_number_is_that_of_the_headers(tmp_path: Path) -> None:
    given = [is_true(f"{name} == {value}") for name, value in EQUAL.items()]
    given += [is_true(f"{name} >= {least}") for name, least in ROOM.items()]
    done = compiled(given, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_wrong_number_is_found(tmp_path: Path) -> None:
    done = compiled([is_true("IP_BOUND_IF == 24")], tmp_path)
    assert done.returncode != 0
    assert "IP_BOUND_IF == 24" in done.stderr
