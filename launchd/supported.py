"""Can this machine and this Python run exod? One line that says what does, else.

Run by `make setup` with whatever Python there is, so it is written for old ones, too, and imports nothing of ours.
"""

from __future__ import annotations

import platform
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_MACOS = 14
"""MLX has no wheels for older ones."""


def complaint(system: str, machine: str, macos: str, python: tuple) -> str:  # type: ignore[type-arg]
    """An empty text where exod runs. `macos` is `platform.mac_ver()[0]`."""
    if system == "Darwin" and machine != "arm64":
        return "exod needs a Mac with Apple silicon: MLX has no build for Intel (or this Python runs under Rosetta)"
    if system == "Darwin" and macos and int(macos.split(".")[0]) < OLDEST_MACOS:
        return "exod needs macOS 14 or newer, this is %s: MLX has no build for it" % macos  # noqa: UP031
    if python[:2] < OLDEST_PYTHON:
        cure = "brew install python@3.13, then: make setup PYTHON=python3.13"
        if system != "Darwin":
            cure = "make setup PYTHON=/path/to/python3.11"
        return "exod needs Python 3.11 or newer, this is %d.%d: %s" % (python[0], python[1], cure)  # noqa: UP031
    return ""


if __name__ == "__main__":
    sys.exit(complaint(platform.system(), platform.machine(), platform.mac_ver()[0], tuple(sys.version_info)) or 0)
