"""systemd: installs, removes and asks for exod's unit, the user's or the system's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import launchd
from exod.cli.service.host import CommandResult, Host, MisuseError, ServiceError, remove, write_whole
from exod.errors import ExitCode


def unit_path(host: Host, system: bool) -> Path:
    if system:
        return host.root / "etc" / "systemd" / "system" / launchd.UNIT_NAME
    return host.home / ".config" / "systemd" / "user" / launchd.UNIT_NAME


def install(host: Host, system: bool, config: Path | None) -> str:
    _check_who(host, system, "install")
    other = unit_path(host, not system)
    if other.exists():
        cure = "exoctl service uninstall" if system else "sudo exoctl service uninstall --system"
        raise MisuseError(f"{other} is installed already and two daemons would fight over one data folder: {cure}")
    path = unit_path(host, system)
    job = host.job(config)
    _check_manager(host, system)
    write_whole(path, launchd.render_system_unit(job) if system else launchd.render_user_unit(job))
    _must(_systemctl(host, system, "daemon-reload"), "systemd does not read its units")
    _must(_systemctl(host, system, "enable", launchd.UNIT_NAME), f"systemd does not enable {path}")
    # Not `enable --now`: a daemon that runs from an older unit is to run from this one.
    _must(_systemctl(host, system, "restart", launchd.UNIT_NAME), f"systemd does not start {path}")
    journal = "journalctl -u exod" if system else "journalctl --user -u exod"
    login = "" if system else f" It starts with a login; `loginctl enable-linger {host.user}` starts it at boot."
    return f"installed {path} and started it; its log is `{journal}`.{login}"


def upgrade(host: Host, system: bool) -> str:
    """Installs again, with the configuration of the unit that is there. systemd ends the rank with the daemon."""
    _check_who(host, system, "upgrade")
    path = unit_path(host, system)
    try:
        unit = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MisuseError(f"{path} is not installed: exoctl service install") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"{path} cannot be read: {error}") from None
    return install(host, system, launchd.config_of_unit(unit))


def uninstall(host: Host, system: bool) -> str:
    _check_who(host, system, "uninstall")
    path = unit_path(host, system)
    if not path.exists():
        return f"nothing to do: {path} is not installed"
    _check_manager(host, system)
    _must(_systemctl(host, system, "disable", "--now", launchd.UNIT_NAME), "systemd does not stop exod")
    remove(path)
    _systemctl(host, system, "daemon-reload")
    _systemctl(host, system, "reset-failed", launchd.UNIT_NAME)
    if not system:
        _remove_empty(host, path.parent)
    return f"stopped exod and removed {path}; the data folder with this node's identity stays"


def status(host: Host, system: bool) -> tuple[str, ExitCode]:
    path = unit_path(host, system)
    if not path.exists():
        return f"not installed: {path} does not exist", ExitCode.NO_DAEMON
    answer = _systemctl(
        host, system, "show", launchd.UNIT_NAME, "--property=ActiveState,SubState,MainPID,ExecMainStatus"
    )
    _must(answer, "systemd does not answer")
    shown = dict(line.split("=", 1) for line in answer.out.splitlines() if "=" in line)
    state = f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', 'unknown')})"
    if shown.get("ActiveState") == "active":
        return f"{launchd.UNIT_NAME} is running, pid {shown.get('MainPID', '?')}", ExitCode.OK
    ended = shown.get("ExecMainStatus", "0")
    last = f"; it last ended with exit code {ended}" if ended != "0" else ""
    return f"{launchd.UNIT_NAME} is installed and not running: {state}{last}", ExitCode.DEGRADED


def _check_who(host: Host, system: bool, verb: str) -> None:
    if system and not host.is_root:
        raise MisuseError(f"a system unit belongs to root: sudo exoctl service {verb} --system")
    if not system and host.is_root and host.uid != 0:
        raise MisuseError(f"a user unit belongs to its user: exoctl service {verb}, without sudo")


def _systemctl(host: Host, system: bool, *arguments: str) -> CommandResult:
    return host.run(("systemctl", *(() if system else ("--user",)), *arguments))


def _check_manager(host: Host, system: bool) -> None:
    """Before anything is written: is there a systemd to talk to? A container often has none."""
    answer = _systemctl(host, system, "show", "--property=Version")
    if answer.code != 0:
        raise ServiceError(
            f"systemd does not answer ({answer.text}); in a container or over `su` there may be none: "
            "run `exod run` under the supervisor that is there instead"
        )


def _must(answer: CommandResult, otherwise: str) -> None:
    if answer.code != 0:
        raise ServiceError(f"{otherwise}: {answer.text}")


def _remove_empty(host: Host, folder: Path) -> None:
    """Folders that installing made, up to ~/.config: only while they are empty."""
    with contextlib.suppress(OSError):
        while folder not in {host.home, host.home / ".config"}:
            folder.rmdir()
            folder = folder.parent
