"""exod.app: what macOS needs to know exod by, so that a Local Network grant holds. Pure.

Decides the texts and names of the bundle; exod/cli/service/app_bundle.py writes them. The launcher (launcher.c)
ships prebuilt for Apple silicon and is the same bytes in each release until its source changes: nothing here may
depend on exod's version.
"""

from __future__ import annotations

import plistlib
from importlib import resources
from pathlib import Path, PurePosixPath

IDENTIFIER = "com.exod.launcher"
"""Signed into the bundle. Another one is another program to macOS, and the grant is asked for again."""

NAME = "exod.app"

EXECUTABLE = "exod"

BUNDLE_VERSION = "1"
"""Of the launcher, not of exod: Info.plist is sealed by the signature, and a grant is tied to that."""

OLDEST_MACOS = "14.0"
"""The oldest release that MLX has wheels for."""


def bundle_path(home: PurePosixPath) -> PurePosixPath:
    """In the user's own Applications: a fixed path, registered by the system and seen by people."""
    return home / "Applications" / NAME


def executable_path(home: PurePosixPath) -> PurePosixPath:
    return bundle_path(home) / "Contents" / "MacOS" / EXECUTABLE


def settings_path(home: PurePosixPath) -> PurePosixPath:
    """What the launcher reads. Outside the bundle, or an upgrade would break the seal. launcher.c has it, too."""
    return home / "Library" / "Application Support" / "exod" / "launcher.conf"


def info_plist() -> bytes:
    return plistlib.dumps(
        {
            "CFBundleIdentifier": IDENTIFIER,
            "CFBundleName": "exod",
            "CFBundleDisplayName": "exod",
            "CFBundleExecutable": EXECUTABLE,
            "CFBundlePackageType": "APPL",
            "CFBundleInfoDictionaryVersion": "6.0",
            "CFBundleShortVersionString": BUNDLE_VERSION,
            "CFBundleVersion": BUNDLE_VERSION,
            "LSMinimumSystemVersion": OLDEST_MACOS,
            # No icon in the Dock, no menu: exod has no window.
            "LSUIElement": True,
            "NSLocalNetworkUsageDescription": (
                "exod finds the other Macs of its cluster and exchanges the model's data with them."
            ),
            # Without the service's type a grant was seen not to last.
            "NSBonjourServices": ["_exod._tcp"],
        }
    )


def settings(library: PurePosixPath, python: PurePosixPath, binary: str) -> str:
    """`binary` says which launcher the bundle was made from; the launcher itself skips that line.

    Raises ValueError for a path that no line can carry.
    """
    for path in (library, python):
        if not path.is_absolute() or not str(path).isprintable():
            raise ValueError(
                f"{str(path)!r} is no absolute path that {settings_path(PurePosixPath('~'))} can carry"
            )
    return f"library={library}\npython={python}\nbinary={binary}\n"


def prebuilt() -> bytes:
    """The launcher for Apple silicon, as `make launcher` builds it."""
    return resources.files(__name__).joinpath("exod-arm64").read_bytes()


def source() -> Path:
    """launcher.c, for those who build it themselves."""
    return Path(str(resources.files(__name__).joinpath("launcher.c")))
