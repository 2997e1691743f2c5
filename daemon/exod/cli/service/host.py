"""What installing a service needs of a host: who asks, where files go, and running a command.

A value that tests replace: with it, macOS's sequence of commands runs anywhere against recorded answers.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from exod.errors import ExitCode, ExodError
from launchd import Job

COMMAND_DEADLINE_S = 60.0
"""`systemctl restart` waits for a stop, which may take the 30 s that the unit allows."""


class ServiceError(ExodError):
    """The service could not be installed, removed or asked for."""


class MisuseError(ServiceError):
    exit_code = ExitCode.USAGE


class CommandResult(NamedTuple):
    """What a command came to."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def text(self) -> str:
        """What it said, in one line."""
        return " ".join((self.err.strip() or self.out.strip()).split()) or f"exit code {self.code}"


Runner = Callable[[Sequence[str]], CommandResult]


class Host(NamedTuple):
    """The host, and the account that the service is for."""

    system: str
    """`darwin` or `linux`."""
    is_root: bool
    user: str
    uid: int
    gid: int
    home: Path
    python: Path
    run: Runner
    sleep: Callable[[float], None] = time.sleep
    root: Path = Path("/")
    """Where the system's folders hang: a test's folder in tests."""
    library: Path | None = None
    """Python's shared library, which exod.app loads; None where this Python has none."""

    def job(self, config: Path | None, launcher: PurePosixPath | None = None) -> Job:
        absolute = PurePosixPath(config.absolute()) if config is not None else None
        return Job(PurePosixPath(self.python), self.user, PurePosixPath(self.home), absolute, launcher)


def this_host() -> Host:
    """This host, for the user who asks: under sudo that is the one who called sudo."""
    import pwd

    is_root = os.geteuid() == 0
    uid = int(os.environ.get("SUDO_UID", "0")) if is_root else os.getuid()
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise ServiceError(f"user {uid} has no entry in the password database, so no home folder") from None
    return Host(
        system="darwin" if sys.platform == "darwin" else "linux",
        is_root=is_root,
        user=account.pw_name,
        uid=uid,
        gid=account.pw_gid,
        home=Path(account.pw_dir),
        # Not resolved: the link in the virtual environment is what finds the installed packages.
        python=Path(sys.executable).absolute(),
        run=run_command,
        library=shared_library(),
    )


def shared_library() -> Path | None:
    """The library of the Python that runs this, by a path that an upgrade of its patch version keeps."""
    name = sysconfig.get_config_var("LDLIBRARY")
    if not isinstance(name, str) or name.endswith(".a"):
        return None  # built without --enable-shared, as pyenv does by default
    folders = (
        sysconfig.get_config_var("PYTHONFRAMEWORKPREFIX"),  # Homebrew and python.org: a framework
        sysconfig.get_config_var("LIBDIR"),
        Path(sys.base_prefix) / "lib",  # a Python that was moved after it was built, as uv's are
    )
    candidates = (Path(folder) / name for folder in folders if folder)
    return next((_lasting(path) for path in candidates if path.is_absolute() and path.is_file()), None)


_OF_ONE_VERSION = re.compile(r"/Cellar/([^/]+)/[^/]+/")


def _lasting(path: Path) -> Path:
    """By Homebrew's link to a formula's newest version: the folder of one version goes when it is upgraded."""
    linked = Path(_OF_ONE_VERSION.sub(r"/opt/\1/", str(path)))
    return linked if linked.is_file() else path


def run_command(argv: Sequence[str]) -> CommandResult:
    """Runs a command to its end. Raises ServiceError where it is not installed or hangs."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_DEADLINE_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ServiceError(f"{argv[0]} is not installed on this host: the service cannot be managed") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"`{' '.join(argv)}` did not end within {COMMAND_DEADLINE_S:g} s") from None
    return CommandResult(done.returncode, done.stdout, done.stderr)


def write_whole(path: Path, text: str) -> None:
    """The whole file or none of it: a service manager may look at any moment. Raises ServiceError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise ServiceError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # replaced it is gone, and without a folder it never was
            temporary.unlink()


def remove(path: Path) -> bool:
    """True where there was something to remove. Raises ServiceError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ServiceError(f"{path}: cannot be removed: {error.strerror}") from None
    return True
