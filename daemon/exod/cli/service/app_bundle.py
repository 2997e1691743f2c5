"""exod.app on this Mac: written where it is missing or of another launcher, else left alone.

A bundle that is left alone keeps its signature and so its Local Network grant. Decides when it must be made
anew; what is in it is decided by the package `launchd.app`. Raises ServiceError.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath

from exod.cli.service.host import Host, ServiceError, remove, write_whole
from launchd import app

CODESIGN = "/usr/bin/codesign"
COMPILER = "/usr/bin/cc"

_BUILT_HERE = "cc:"
"""Marks a launcher that a person had built on this Mac: an install without that wish does not replace it."""


def install(host: Host, build: bool) -> str:
    """Makes the bundle where it must be made, and says in the launcher's settings which Python to run.

    Returns what a person should know, or an empty text. `host.library` must be known.
    """
    if host.library is None:
        raise ServiceError("exod.app needs a Python with a shared library, and this one has none")
    home = PurePosixPath(host.home)
    bundle, settings = Path(app.bundle_path(home)), Path(app.settings_path(home))
    wanted = (_digest_of_source(),) if build else (_digest_of_prebuilt(), _digest_of_source())
    found = _recorded_binary(settings)
    said = ""
    if found not in wanted or not _is_whole(host, bundle):
        found = wanted[0]
        _make(host, bundle, build)
        said = (
            f" macOS asks once whether exod may use the local network: allow it "
            f"(System Settings, Privacy & Security, Local Network, entry “exod”); {bundle} is what asks."
        )
    text = app.settings(PurePosixPath(host.library), PurePosixPath(host.python), found)
    _make_private(settings.parent)
    write_whole(settings, text)
    return said


def uninstall(host: Host) -> bool:
    """True where there was something to remove."""
    home = PurePosixPath(host.home)
    bundle = Path(app.bundle_path(home))
    had_bundle = bundle.exists()
    _remove_tree(bundle)
    return remove(Path(app.settings_path(home))) or had_bundle


def _make_private(folder: Path) -> None:
    """It is the data folder, too, unless the configuration names another."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(f"{folder}: cannot be made: {error.strerror}") from None


def _make(host: Host, bundle: Path, build: bool) -> None:
    """Beside the old one first: what launchd may start at any moment is always a whole, signed bundle."""
    fresh = bundle.parent / ".exod-new" / app.NAME
    try:
        _write(host, fresh, build)
        _sign(host, fresh)
        _remove_tree(bundle)
        fresh.rename(bundle)
    except OSError as error:
        raise ServiceError(f"{bundle}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(fresh.parent, ignore_errors=True)


def _write(host: Host, bundle: Path, build: bool) -> None:
    shutil.rmtree(bundle.parent, ignore_errors=True)
    executable = bundle / "Contents" / "MacOS" / app.EXECUTABLE
    executable.parent.mkdir(parents=True)
    (bundle / "Contents" / "Info.plist").write_bytes(app.info_plist())
    if build:
        flags = ("-Os", "-std=c11", "-D_DARWIN_C_SOURCE", f"-mmacosx-version-min={app.OLDEST_MACOS}")
        answer = host.run((COMPILER, *flags, "-o", str(executable), str(app.source())))
        if answer.code != 0:
            raise ServiceError(
                f"the launcher does not compile: {answer.text}; `xcode-select --install` brings a compiler, "
                "and without --build-launcher the prebuilt one is used"
            )
    else:
        executable.write_bytes(app.prebuilt())
    executable.chmod(0o755)


def _sign(host: Host, bundle: Path) -> None:
    """Ad hoc, with an explicit identifier: the default one would be made up from the file's contents."""
    answer = host.run((CODESIGN, "--force", "--sign", "-", "--identifier", app.IDENTIFIER, str(bundle)))
    if answer.code != 0:
        raise ServiceError(
            f"{app.NAME} cannot be signed: {answer.text}; `xcode-select --install` brings what is missing, "
            "then: exoctl service install"
        )


def _is_whole(host: Host, bundle: Path) -> bool:
    try:
        if (bundle / "Contents" / "Info.plist").read_bytes() != app.info_plist():
            return False
    except OSError:
        return False
    return host.run((CODESIGN, "--verify", "--strict", str(bundle))).code == 0


def _recorded_binary(settings: Path) -> str:
    try:
        lines = settings.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((line.removeprefix("binary=") for line in lines if line.startswith("binary=")), "")


def _digest_of_prebuilt() -> str:
    return hashlib.sha256(app.prebuilt()).hexdigest()


def _digest_of_source() -> str:
    return _BUILT_HERE + hashlib.sha256(app.source().read_bytes()).hexdigest()


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ServiceError(f"{folder}: cannot be removed: {error.strerror}") from None
