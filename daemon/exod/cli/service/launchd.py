"""launchd: installs, removes and asks for the agent or the daemon, by the commands that Apple documents.

Written against what launchctl is known to print; its exit codes differ between releases, so whether a job is loaded
is always asked of `launchctl print`. Raises ServiceError and MisuseError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import plistlib
import re
import stat
from pathlib import Path, PurePosixPath

import launchd
from exod.cli.service import app_bundle
from exod.cli.service.host import CommandResult, Host, MisuseError, ServiceError, remove, write_whole
from exod.cli.service.self_check import SelfCheck
from exod.errors import ExitCode
from launchd import Job, app

LAUNCHCTL = "/bin/launchctl"

UNLOAD_S = 35.0
"""`bootout` returns before the job is gone: as long as the plist's ExitTimeOut (30 s) and a little more."""

POLL_S = 0.5

BOOTSTRAP_ATTEMPTS = 5
"""“Bootstrap failed: 5: Input/output error” is what a domain that is still busy with the last job says."""


BOOTSTRAP_CAUSES = {
    5: "it is still loaded or disabled, nobody is logged in on the screen, or exod is switched off in System "
    "Settings, General, Login Items & Extensions, Allow in the Background",
    37: "the last job is still ending: try again in a moment",
    125: "this domain takes no such job",
}
"""What launchd means by the codes that it gives without an explanation."""

NO_LIBRARY = (
    " This Python has no shared library, so launchd starts Python itself instead of exod.app, and macOS may keep "
    "it from the local network without asking: an environment of `brew install python@3.13` has one."
)


def plist_path(host: Host, system: bool) -> Path:
    if system:
        return host.root / "Library" / "LaunchDaemons" / f"{launchd.DAEMON_LABEL}.plist"
    return host.home / "Library" / "LaunchAgents" / f"{launchd.AGENT_LABEL}.plist"


def job_of(host: Host, system: bool, config: Path | None) -> Job:
    """The agent's program is exod.app's, for Local Network privacy; a LaunchDaemon is exempt from it and needs no
    bundle in somebody's home. A host that is no Mac shows what a Mac would be given.
    """
    has_app = not system and (host.library is not None or host.system != "darwin")
    return host.job(config, app.executable_path(PurePosixPath(host.home)) if has_app else None)


def install(host: Host, system: bool, config: Path | None, build_launcher: bool = False) -> str:
    _check_who(host, system, "install")
    other = plist_path(host, not system)
    if other.exists():
        cure = "exoctl service uninstall" if system else "sudo exoctl service uninstall --system"
        raise MisuseError(f"{other} is installed already and two daemons would fight over one data folder: {cure}")
    path = plist_path(host, system)
    job = job_of(host, system, config)
    if build_launcher and job.launcher is None:
        raise MisuseError("--build-launcher is for the LaunchAgent, of a Python that has a shared library")
    # Before the old job ends: a bundle that cannot be made leaves what runs alone.
    said = app_bundle.install(host, build_launcher) if job.launcher is not None else "" if system else NO_LIBRARY
    _make_log_folder(host, Path(job.logs))
    _unload(host, system)
    check = SelfCheck(host, config)
    write_whole(path, launchd.render_daemon(job) if system else launchd.render_agent(job))
    domain = _load(host, system, path)
    # Loaded means started (RunAtLoad); after a crash moments ago launchd would wait, and this does not.
    _launchctl(host, "kickstart", f"{domain}/{_label(system)}")
    login = check.told() if system else " It starts with a login of this user; a headless Mac needs --system."
    return f"installed {path} and started {domain}/{_label(system)}; its log is {job.logs}/exod.log.{login}{said}"


def upgrade(host: Host, system: bool) -> str:
    """Runs the job from this environment. Where its property list stays the same the daemon alone is replaced: it
    is killed and not asked to leave, so that its rank's process lives on and the next daemon takes it over.
    """
    _check_who(host, system, "upgrade")
    path = plist_path(host, system)
    try:
        installed = plistlib.loads(path.read_bytes())
        given = [str(one) for one in installed["ProgramArguments"]]
    except FileNotFoundError:
        raise MisuseError(f"{path} is not installed: exoctl service install") from None
    except (OSError, ValueError, KeyError, TypeError, plistlib.InvalidFileException) as error:
        raise ServiceError(f"{path} cannot be read ({error}): exoctl service install writes it anew") from None
    config = Path(given[given.index("--config") + 1]) if "--config" in given[:-1] else None
    job = job_of(host, system, config)
    text = launchd.render_daemon(job) if system else launchd.render_agent(job)
    domain = next((one for one in _domains(host, system) if _is_loaded_in(host, one, system)), None)
    if domain is None or text.encode() != path.read_bytes():
        return f"the job changed and was loaded anew, a running answer ended: {install(host, system, config)}"
    said = app_bundle.install(host, build=False) if job.launcher is not None else ""
    _launchctl(host, "kill", "SIGKILL", f"{domain}/{_label(system)}")
    _launchctl(host, "kickstart", f"{domain}/{_label(system)}")
    job_name = f"{domain}/{_label(system)}"
    return f"{job_name} runs from {host.python} now; a running answer goes on where its rank fits.{said}"


def uninstall(host: Host, system: bool) -> str:
    _check_who(host, system, "uninstall")
    was_loaded = _unload(host, system)
    path = plist_path(host, system)
    had_file = remove(path)
    had_file = (not system and app_bundle.uninstall(host)) or had_file
    _remove_logs(Path(host.job(None).logs))
    if not was_loaded and not had_file:
        return f"nothing to do: {path} is not installed"
    return f"stopped exod and removed {path} and its logs; the data folder with this node's identity stays"


def status(host: Host, system: bool) -> tuple[str, ExitCode]:
    path = plist_path(host, system)
    for domain in _domains(host, system):
        answer = _launchctl(host, "print", f"{domain}/{_label(system)}")
        if answer.code == 0:
            return _loaded_status(domain, system, answer.out)
    if path.exists():
        return f"{path} is installed but not loaded: exoctl service install loads it", ExitCode.DEGRADED
    return f"not installed: {path} does not exist", ExitCode.NO_DAEMON


def _loaded_status(domain: str, system: bool, text: str) -> tuple[str, ExitCode]:
    state = _value(text, "state") or "unknown"
    pid = _value(text, "pid")
    last_exit = _value(text, "last exit code")
    job = f"{domain}/{_label(system)}"
    if state == "running":
        return f"{job} is running" + (f", pid {pid}" if pid else ""), ExitCode.OK
    ended = f"; it last ended with {last_exit}" if last_exit and last_exit != "(never exited)" else ""
    return f"{job} is loaded and not running (state: {state}){ended}", ExitCode.DEGRADED


def _value(text: str, key: str) -> str | None:
    """A value of the job itself: its sub-dictionaries are indented further."""
    match = re.search(rf"^\t{re.escape(key)} = (.+)$", text, re.MULTILINE)
    return match[1].strip() if match is not None else None


def _check_who(host: Host, system: bool, verb: str) -> None:
    if system and not host.is_root:
        raise MisuseError(f"a LaunchDaemon belongs to root: sudo exoctl service {verb} --system")
    if system and host.uid == 0:
        raise MisuseError(
            f"exod does not run as root: call `sudo exoctl service {verb} --system` "
            "from the account that it should run as"
        )
    if not system and host.is_root:
        raise MisuseError(f"a LaunchAgent belongs to its user: exoctl service {verb}, without sudo")


def _label(system: bool) -> str:
    return launchd.DAEMON_LABEL if system else launchd.AGENT_LABEL


def _domains(host: Host, system: bool) -> tuple[str, ...]:
    """The screen's session first; the user's own domain is what there is over SSH."""
    return ("system",) if system else (f"gui/{host.uid}", f"user/{host.uid}")


def _launchctl(host: Host, *arguments: str) -> CommandResult:
    return host.run((LAUNCHCTL, *arguments))


def _is_loaded_in(host: Host, domain: str, system: bool) -> bool:
    return _launchctl(host, "print", f"{domain}/{_label(system)}").code == 0


def _is_loaded(host: Host, system: bool) -> bool:
    return any(_is_loaded_in(host, domain, system) for domain in _domains(host, system))


def _unload(host: Host, system: bool) -> bool:
    """Out of both domains, and waits until it is gone. True where it was loaded."""
    loaded = [domain for domain in _domains(host, system) if _is_loaded_in(host, domain, system)]
    for domain in loaded:
        _launchctl(host, "bootout", f"{domain}/{_label(system)}")
    waited_s = 0.0
    while loaded and _is_loaded(host, system):
        if waited_s >= UNLOAD_S:
            raise ServiceError(
                f"{loaded[0]}/{_label(system)} is still ending after {UNLOAD_S:g} s: try again in a moment"
            )
        host.sleep(POLL_S)
        waited_s += POLL_S
    return bool(loaded)


def _load(host: Host, system: bool, path: Path) -> str:
    """Into the first domain that takes it; returns that domain. Enabled first: a job that was once disabled
    would be loaded and never started.
    """
    refused: list[str] = []
    for domain in _domains(host, system):
        target = f"{domain}/{_label(system)}"
        if not system and _launchctl(host, "print", domain).code != 0:
            refused.append(f"{domain}: no such session")
            continue
        _launchctl(host, "enable", target)
        for attempt in range(BOOTSTRAP_ATTEMPTS):
            answer = _launchctl(host, "bootstrap", domain, str(path))
            if answer.code == 0 or _launchctl(host, "print", target).code == 0:
                return domain
            if not _may_pass(answer):
                break
            if attempt + 1 < BOOTSTRAP_ATTEMPTS:
                host.sleep(POLL_S)
        refused.append(f"{domain}: {answer.text}{_cause(answer)}")
    raise ServiceError(f"launchd does not load {path}: {'; '.join(refused)}")


def _may_pass(answer: CommandResult) -> bool:
    """Input/output error, or an operation in progress: the last job's end is not over yet."""
    return answer.code in {5, 36, 37} or "Input/output error" in answer.text


def _cause(answer: CommandResult) -> str:
    cause = BOOTSTRAP_CAUSES.get(answer.code)
    return f" ({cause})" if cause is not None else ""


def _make_log_folder(host: Host, folder: Path) -> None:
    """launchd creates the files and no folder. Under sudo the folder is made for the user."""
    owner = (host.uid, host.gid) if host.is_root else None
    try:
        make_folder(folder, owner)
    except OSError as error:
        raise ServiceError(f"{folder}: cannot be made for the log: {error.strerror}") from None


def make_folder(folder: Path, owner: tuple[int, int] | None) -> None:
    """Makes `folder` and what is missing above it, for `owner` where root makes it. Follows no link but those of
    root's own: a user's link would hand a folder of the system to that user. Raises OSError.
    """
    above = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in folder.absolute().parts[1:]:
            made = False
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
                made = True
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            link = stat.S_ISLNK(found.st_mode)
            if link and owner is not None and found.st_uid != 0:
                raise OSError(errno.ELOOP, "it leads over a link of a user, which root does not follow")
            flags = os.O_RDONLY | os.O_DIRECTORY | (0 if link else os.O_NOFOLLOW)
            below = os.open(name, flags, dir_fd=above)
            os.close(above)
            above = below
            if made and owner is not None:
                os.fchown(above, *owner)
        if owner is not None and os.fstat(above).st_uid not in (0, owner[0]):
            raise OSError(errno.EPERM, "it belongs to another user")
        if owner is not None:
            os.fchown(above, *owner)
    finally:
        os.close(above)


def _remove_logs(folder: Path) -> None:
    for path in (folder / "exod.out.log", folder / "exod.err.log", *sorted(folder.glob("exod.log*"))):
        remove(path)
    with contextlib.suppress(OSError):  # not there, or with files that exod did not put there
        folder.rmdir()
