"""What `exoctl doctor` finds on a Mac beside the network: folders that services may not read, and sleep. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from exod.daemon_api.shapes import Finding

PROTECTED: Final = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents")
"""Folders of a home that macOS's privacy control (TCC) keeps from programs that nobody allowed."""

VOLUMES: Final = PurePath("/Volumes")
"""External disks and network shares: protected in the same way."""


def of_protected_folders(places: Mapping[str, PurePath], home: PurePath) -> list[Finding]:
    """`places`: what lies where, in words: `the model` -> its folder."""
    found = []
    for what, place in places.items():
        guarded = next((home / name for name in PROTECTED if place.is_relative_to(home / name)), None)
        if guarded is None and place.is_relative_to(VOLUMES):
            guarded = VOLUMES
        if guarded is None:
            continue
        text = (
            f"{what} lies in {guarded} ({place}): macOS keeps that from what launchd starts, and exod as a service "
            "is told “Operation not permitted”"
        )
        cure = (
            f"move it to another folder of the home, such as {home / 'exod'}, or allow exod in System Settings, "
            "Privacy & Security, Full Disk Access"
        )
        found.append(Finding("protected_folder", "warning", what, text, cure))
    return found


def of_sleep(pmset: str) -> list[Finding]:
    """`pmset`: what `pmset -g` prints. No output, or another form of it, finds nothing."""
    match = re.search(r"^\s*sleep\s+(\d+)", pmset, re.MULTILINE)
    if match is None or int(match[1]) == 0:
        return []
    text = (
        f"this Mac sleeps after {match[1]} min without input. exod keeps it awake while its rank loads or answers; "
        "asleep it is out of the mesh"
    )
    return [Finding("sleeps", "warning", "power", text, "sudo pmset -c sleep 0")]
