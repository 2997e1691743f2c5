"""`exoctl report`: one archive for a bug report, without secrets and without names of people.

Works with a daemon and without one. What is in the archive is listed before it is written.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exod.cli.base import values
from exod.cli.base.options import Commands, Shell
from exod.errors import ExitCode, ExodError

if TYPE_CHECKING:
    from exod.cli.report.contents import ReportFile
    from exod.cli.report.redaction import Redact
    from exod.config.settings import Config

ASKED: Final = (
    ("status", "status.json"),
    ("links", "links.json"),
    ("links_history", "links-history.json"),
    ("mesh", "mesh.json"),
    ("engine", "engine.json"),
    ("cluster", "cluster.json"),
    ("netcheck", "netcheck.json"),
)
"""Verbs of the daemon, and the files that hold its answers."""

ASK_DEADLINE_S: Final = 20.0
"""A look at the network waits 2 s for each silent peer at most, side by side; a busy Mac takes longer."""

HISTORY: Final = 1000
"""Decisions about links: hours of an ordinary day, minutes of a bad one."""


def register(commands: Commands) -> None:
    parser = commands.add("report", report)
    parser.add_argument(
        "-o",
        "--output",
        type=values.path,
        metavar="FILE",
        help="where to write it; default: exod-report-TIME.tar.gz here",
    )


def report(shell: Shell, output: Path | None) -> ExitCode:
    """Writes one archive for a bug report. Secrets and names of people are taken out, and what is in it is listed
    first.
    """
    from exod.cli.report.archive import write
    from exod.cli.report.contents import ReportFile

    now = time.time()
    path = output or Path(time.strftime("exod-report-%Y%m%d-%H%M%S.tar.gz", time.localtime(now)))
    config, gathered = _gather(shell)
    redact = _redaction(config, gathered)
    parts = [ReportFile(redact(part.name), redact(part.text)) for part in gathered]
    listed = [f"{part.name} ({len(part.text.encode())} bytes)" for part in parts]
    parts.insert(0, ReportFile("CONTENTS.txt", "\n".join(listed) + "\n"))
    if not shell.as_json:
        shell.show(["the report holds:", *(f"  {line}" for line in listed)])
    write(path, parts, now)
    if shell.as_json:
        shell.show_value({"file": str(path.absolute()), "contents": [part.name for part in parts]})
    else:
        shell.show([f"wrote {path}; secrets and names that exod knows are removed: check it before you send it"])
    return ExitCode.OK


def _gather(shell: Shell) -> tuple[Config | None, list[ReportFile]]:
    from exod.cli.report import contents
    from exod.config.settings import load

    parts = [contents.versions()]
    config: Config | None = None
    try:
        config = load(shell.config_file)
    except ExodError as error:
        parts.append(contents.ReportFile("config.txt", f"[{error}]\n"))
    else:
        parts += _configured(config)
    parts += _answers(shell)
    parts.append(_doctor(shell))
    parts += contents.outputs(_commands(sys.platform))
    return config, parts


def _configured(config: Config) -> Iterator[ReportFile]:
    """The configuration, and what the data folder and the service's logs hold."""
    from exod.cli.report import contents
    from exod.platform.this_host import current

    if config.source is not None:
        yield contents.file(config.source, "config.toml")
    import msgspec

    in_force = msgspec.json.format(msgspec.json.encode(config, enc_hook=str), indent=2).decode()
    yield contents.ReportFile("config-in-force.json", f"{in_force}\n")
    folder = config.node.data_dir
    listing = sorted(folder.iterdir()) if folder.is_dir() else []
    sizes = "".join(f"{one.name} {one.lstat().st_size}\n" for one in listing)
    yield contents.ReportFile("data-folder.txt", sizes or f"[{folder} is empty, or not there]\n")
    logs = Path.home() / "Library" / "Logs" / "exod"
    files = [folder / "events.ndjson", folder / "worker.log", logs / "exod.log", logs / "exod.err.log"]
    for path in [*files, *([config.log.file] if config.log.file is not None else [])]:
        if path.is_file():
            yield contents.file(path, f"logs/{path.name}")
    yield from contents.crash_heads(current().crash_folders())


def _answers(shell: Shell) -> Iterator[ReportFile]:
    """What the daemon says; without one, why there is none, once."""
    import msgspec

    from exod.cli.report import contents

    try:
        with shell.daemon() as daemon:
            for verb, name in ASKED:
                extra = {"limit": HISTORY} if verb == "links_history" else {}
                try:
                    answer = daemon.raw(verb, deadline_s=ASK_DEADLINE_S, **extra)
                    yield contents.ReportFile(name, msgspec.json.format(answer, indent=2).decode() + "\n")
                except ExodError as error:
                    yield contents.ReportFile(name, f"[{error}]\n")
            decoder = msgspec.json.Decoder(dict[str, object])
            lines = [msgspec.json.encode(one) for one in daemon.stream("events", decoder) if one is not None]
            yield contents.ReportFile("events.ndjson", contents.bounded(b"\n".join(lines) + b"\n"))
    except ExodError as error:
        yield contents.ReportFile("daemon.txt", f"[{error}]\n")


def _doctor(shell: Shell) -> ReportFile:
    import msgspec

    from exod.cli.commands.host_commands import examine
    from exod.cli.report.contents import ReportFile

    found = msgspec.json.format(msgspec.json.encode(examine(shell)), indent=2).decode()
    return ReportFile("doctor.json", f"{found}\n")


def _commands(system: str) -> tuple[tuple[str, ...], ...]:
    from exod.platform.raw_outputs import DARWIN, LINUX, launchd_jobs

    if system != "darwin":
        return LINUX
    from launchd import AGENT_LABEL, DAEMON_LABEL

    return DARWIN + launchd_jobs(os.getuid(), AGENT_LABEL, DAEMON_LABEL)


# --- what must not be in it ---------------------------------------------------------------------------------


def _redaction(config: Config | None, parts: list[ReportFile]) -> Redact:
    from exod.cli.report.redaction import Redaction

    return Redaction(_secrets(config), _people(), _hosts(config, parts))


def _secrets(config: Config | None) -> list[str]:
    """The cluster's key and the API's, where this user can read them; the broker's password."""
    files = [config.cluster.key_file, config.api.key_file] if config is not None else []
    found = []
    for path in files:
        with contextlib.suppress(OSError, TypeError, UnicodeDecodeError):
            found += [line.strip() for line in Path(path or "").read_text(encoding="utf-8").splitlines()]
    return [one for one in found if one]


def _people() -> list[str]:
    """This user's names: the account, the full name and each of its words."""
    import pwd

    names = []
    with contextlib.suppress(KeyError, OSError):
        names.append(getpass.getuser())
        account = pwd.getpwuid(os.getuid())
        full = account.pw_gecos.partition(",")[0]
        names += [account.pw_name, full, *full.split()]
    return [name for name in names if name]


def _hosts(config: Config | None, parts: list[ReportFile]) -> list[str]:
    """The names of this host and of every node that an answer names."""
    from exoengine.decoding import DecodingError, from_json

    names = [socket.gethostname(), *([config.node.name] if config is not None else [])]
    for part in parts:
        if part.name == "status.json":
            with contextlib.suppress(DecodingError, KeyError, TypeError):
                names += [node["name"] for node in from_json(part.text.encode(), dict[str, Any])["nodes"]]
    return names
