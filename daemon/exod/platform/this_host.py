"""Which platform this host is, and its clock that goes on while it sleeps. Decides nothing else."""

from __future__ import annotations

import functools
import sys
import time

from exod.platform.system import Platform


@functools.cache
def current() -> Platform:
    """This host's platform. macOS and Linux; anything else is treated like Linux and finds less."""
    if sys.platform == "darwin":
        from exod.platform.darwin import Darwin

        return Darwin()
    from exod.platform.linux import Linux

    return Linux()


def since_boot_s() -> float:
    """A clock that nobody sets and that goes on while the host sleeps. `time.monotonic` stands still then, on both
    systems (a Mac's by its manual, whose CLOCK_MONOTONIC goes on).
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
