"""What starts exod with the machine: launchd's plists and systemd's units, rendered from the templates here.

Pure: from a Job to a text, for either system, anywhere. Nothing is written or started here: exod/cli/service/ does
that. The templates say why each key is as it is.
"""

from __future__ import annotations

import html
import re
from importlib import resources
from pathlib import Path, PurePosixPath
from string import Template
from typing import NamedTuple

AGENT_LABEL = "com.exod.agent"
DAEMON_LABEL = "com.exod.daemon"
"""A label is the plist's file name without `.plist`: launchd and people both rely on that."""

UNIT_NAME = "exod.service"

_SYSTEM_PATH = (
    "/opt/homebrew/bin",
    "/opt/homebrew/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/bin",
    "/bin",
    "/usr/sbin",
    "/sbin",
)


class Job(NamedTuple):
    """What is to run, and as whom. All paths are absolute."""

    python: PurePosixPath
    """The interpreter of the environment that exod is installed in."""
    user: str
    home: PurePosixPath
    config: PurePosixPath | None = None
    launcher: PurePosixPath | None = None
    """exod.app's executable, which starts `python -P -m exod` inside itself: see launchd/app."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """`-P`: a folder called `exod` in the user's home must not be taken for the package."""
        config = ("--config", str(self.config)) if self.config is not None else ()
        program = (str(self.python), "-P", "-m", "exod") if self.launcher is None else (str(self.launcher),)
        return (*program, "run", *config)

    @property
    def path(self) -> str:
        return ":".join((str(self.python.parent), *_SYSTEM_PATH))

    @property
    def logs(self) -> PurePosixPath:
        """On macOS: where Console.app looks, too. systemd has its journal."""
        return self.home / "Library" / "Logs" / "exod"


def render_agent(job: Job) -> str:
    """The LaunchAgent's property list."""
    return _render_plist("com.exod.agent.plist.template", job, AGENT_LABEL)


def render_daemon(job: Job) -> str:
    """The LaunchDaemon's property list: at boot, as `job.user`."""
    return _render_plist("com.exod.daemon.plist.template", job, DAEMON_LABEL)


def render_user_unit(job: Job) -> str:
    """The systemd unit of a user."""
    return _render_unit("exod.service.template", job)


def render_system_unit(job: Job) -> str:
    """The systemd unit of the system: at boot, as `job.user`."""
    return _render_unit("exod-system.service.template", job)


def config_of_unit(unit: str) -> Path | None:
    """The configuration that a unit of `render_*_unit` was rendered with."""
    match = re.search(r'^ExecStart=.* "--config" "((?:[^"\\]|\\.)*)"$', unit, re.MULTILINE)
    if match is None:
        return None
    return Path(re.sub(r"\\(.)", r"\1", match[1].replace("%%", "%").replace("$$", "$")))


def _render_plist(template: str, job: Job, label: str) -> str:
    _refuse_control_characters(job)
    values = {
        "label": label,
        "program_arguments": "\n".join(f"\t\t<string>{_xml(one)}</string>" for one in job.arguments),
        "user": _xml(job.user),
        "home": _xml(str(job.home)),
        "path": _xml(job.path),
        "logs": _xml(str(job.logs)),
    }
    common = _template("common.plist.template").substitute(values).rstrip("\n")
    return _template(template).substitute(values, common=common)


def _render_unit(template: str, job: Job) -> str:
    _refuse_control_characters(job)
    values = {
        # `$` is expanded in commands alone, `%` everywhere.
        "exec_start": " ".join(_quoted(one.replace("$", "$$")) for one in job.arguments),
        "user": job.user,
        "home": _escaped(str(job.home)),
        "home_variable": _quoted(f"HOME={job.home}"),
        "path_variable": _quoted(f"PATH={job.path}"),
    }
    common = _template("common.service.template").substitute(values).rstrip("\n")
    return _template(template).substitute(values, common=common)


def _template(name: str) -> Template:
    return Template(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"))


def _xml(text: str) -> str:
    return html.escape(text, quote=False)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """One word for systemd, whatever is in it."""
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _refuse_control_characters(job: Job) -> None:
    """They would end a line of a unit, and XML cannot hold them. Raises ValueError."""
    for text in (*job.arguments, job.user, str(job.home)):
        if not text.isprintable():
            raise ValueError(f"{text!r} holds characters that no service file can carry")
