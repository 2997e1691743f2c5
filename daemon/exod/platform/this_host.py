"""Which platform this host is. Decides nothing else."""

from __future__ import annotations

import functools
import sys

from exod.platform.system import Platform


@functools.cache
def current() -> Platform:
    """This host's platform. macOS and Linux; anything else is treated like Linux and finds less."""
    if sys.platform == "darwin":
        from exod.platform.darwin import Darwin

        return Darwin()
    from exod.platform.linux import Linux

    return Linux()
