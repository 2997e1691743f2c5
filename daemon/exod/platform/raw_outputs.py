"""The system's own outputs that a bug report carries: those that our parsers read, and what stands around them.

With them a parser's wrong guess can be mended from one file. Decides only which; changes nothing on a host.
"""

from __future__ import annotations

from typing import Final

DARWIN: Final[tuple[tuple[str, ...], ...]] = (
    ("/usr/bin/sw_vers",),
    ("/sbin/ifconfig", "-v"),
    ("/usr/sbin/networksetup", "-listallhardwareports"),
    ("/usr/sbin/networksetup", "-listnetworkserviceorder"),
    ("/usr/sbin/system_profiler", "SPThunderboltDataType", "-json"),
    ("/usr/sbin/scutil", "--nwi"),
    ("/usr/sbin/netstat", "-rn", "-f", "inet"),
    ("/usr/sbin/arp", "-an"),
    ("/usr/bin/pmset", "-g"),
    ("/usr/bin/vm_stat",),
    ("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate"),
    ("/usr/sbin/sysctl", "hw.model", "hw.memsize", "hw.pagesize", "machdep.cpu.brand_string", "vm.swapusage"),
    ("/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"),
    # Where `sudo defaults write` puts it; only root may read it, so without sudo this says that.
    ("/usr/bin/defaults", "read", "/var/root/Library/Preferences/com.apple.network.local-network"),
    (
        "/usr/bin/log", "show", "--last", "10m", "--style", "compact", "--predicate",
        'process == "exod" OR (eventMessage CONTAINS "exod" AND eventMessage CONTAINS[c] "local network")',
    ),
)  # fmt: skip

LINUX: Final[tuple[tuple[str, ...], ...]] = (
    ("uname", "-a"),
    ("ip", "-details", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "neighbour"),
    ("free", "-m"),
)


def launchd_jobs(uid: int, agent: str, daemon: str) -> tuple[tuple[str, ...], ...]:
    """What launchd says of exod's jobs."""
    targets = (f"gui/{uid}/{agent}", f"user/{uid}/{agent}", f"system/{daemon}")
    return tuple(("/bin/launchctl", "print", target) for target in targets)
