"""`exoctl service print | install | uninstall | status`: exod as a service of launchd or systemd.

Decides which system and which unit; the two installers know the commands, the `launchd` package the texts. It
never talks to the daemon. Each function raises ExodError with one line for a person.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import launchd
from exod.cli.service import launchd as service_darwin
from exod.cli.service import systemd as service_linux
from exod.cli.service.host import Host, MisuseError, ServiceError, this_host
from exod.errors import ExitCode

PlatformName = Literal["darwin", "linux"]


def print_unit(
    platform: PlatformName | None = None,
    system: bool = False,
    config: Path | None = None,
    host: Host | None = None,
) -> str:
    """The plist or unit that `install` would write, for either platform on any host."""
    host = host if host is not None else this_host()
    config = config if config is not None else _config_of_environment()
    job = host.job(config)
    try:
        match platform or host.system, system:
            case "darwin", False:
                return launchd.render_agent(service_darwin.job_of(host, system, config))
            case "darwin", True:
                return launchd.render_daemon(job)
            case "linux", False:
                return launchd.render_user_unit(job)
            case "linux", True:
                return launchd.render_system_unit(job)
            case other, _:
                raise MisuseError(f"--platform is darwin or linux, not {other!r}")
    except ValueError as error:
        raise ServiceError(str(error)) from None


def install(
    system: bool = False, config: Path | None = None, host: Host | None = None, build_launcher: bool = False
) -> str:
    """Writes the unit, loads it and starts the daemon. Safe to repeat: the newest unit is the one that runs.

    `build_launcher`: on macOS, compile exod.app's launcher here instead of taking the prebuilt one.
    """
    host = host if host is not None else this_host()
    config = config if config is not None else _config_of_environment()
    if config is not None and not config.is_file():
        raise MisuseError(f"{config}: there is no such config file, and the service would start without it")
    try:
        if host.system == "darwin":
            return service_darwin.install(host, system, config, build_launcher)
        if build_launcher:
            raise MisuseError("--build-launcher is for macOS: systemd starts Python itself")
        return service_linux.install(host, system, config)
    except ValueError as error:
        raise ServiceError(str(error)) from None


def upgrade(system: bool = False, host: Host | None = None) -> str:
    """Runs an installed service from this environment: after a new wheel or another `make setup`."""
    host = host if host is not None else this_host()
    try:
        if host.system == "darwin":
            return service_darwin.upgrade(host, system)
        return service_linux.upgrade(host, system)
    except ValueError as error:
        raise ServiceError(str(error)) from None


def uninstall(system: bool = False, host: Host | None = None) -> str:
    """Stops the daemon and removes what `install` made. Safe to repeat."""
    host = host if host is not None else this_host()
    if host.system == "darwin":
        return service_darwin.uninstall(host, system)
    return service_linux.uninstall(host, system)


def status(system: bool = False, host: Host | None = None) -> tuple[str, ExitCode]:
    """One line, and OK where it runs, DEGRADED where it is installed and does not, NO_DAEMON where it is not."""
    host = host if host is not None else this_host()
    if host.system == "darwin":
        return service_darwin.status(host, system)
    return service_linux.status(host, system)


def _config_of_environment() -> Path | None:
    """A service does not inherit `$EXOD_CONFIG`: what holds for the person's commands is written down for it."""
    value = os.environ.get("EXOD_CONFIG")
    return Path(value) if value else None
