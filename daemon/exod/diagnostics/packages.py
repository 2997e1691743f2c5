"""What this environment lacks of the packages that exod needs, as a finding with the command that brings it."""

from __future__ import annotations

from exod.daemon_api.shapes import Finding
from exoengine.installed import Lack, install_command, lacking


def look() -> list[Finding]:
    """Reads a file or two of each package, some 70: half a second, so not for an event loop."""
    return of_packages(lacking())


def of_packages(lacks: list[Lack]) -> list[Finding]:
    if not lacks:
        return []
    text = "; ".join(one.text for one in lacks)
    cure = install_command([one.requirement for one in lacks])
    return [Finding("package_missing", "error", "packages", text, cure)]
