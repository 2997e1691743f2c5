"""`exoctl doctor` and `exoctl service`: this host, seen from outside the daemon.

`doctor` asks the daemon what only it can see, and finds the rest itself: it must be of use just when nothing runs.
`service` hands over to `cli/service/`.
"""

from __future__ import annotations

import contextlib
import os
import plistlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from exod.cli.base.options import Commands, Shell
from exod.errors import ConfigError, ExitCode, ExodError, TrustError

if TYPE_CHECKING:
    from exod.cli.service.verbs import PlatformName
    from exod.config.settings import Config
    from exod.daemon_api.shapes import DoctorReport, Finding


def register(commands: Commands) -> None:
    commands.add("doctor", doctor)
    service = commands.group("service", "exod as a service of launchd or systemd", service_status)
    service.set_defaults(system=False)
    install = service.add("install", service_install)
    install.add_argument(
        "--build-launcher", action="store_true", help="macOS: compile the launcher of exod.app on this Mac"
    )
    parsers = [
        install,
        service.add("upgrade", service_upgrade),
        service.add("uninstall", service_uninstall),
        service.add("status", service_status),
        service.add("print", service_print),
    ]
    for parser in parsers:
        parser.add_argument("--system", action="store_true", help="for the whole machine, without a login")
    parsers[-1].add_argument("--platform", choices=("darwin", "linux"), help="whose unit; default: this system's")


# --- doctor -------------------------------------------------------------------------------------------------


def doctor(shell: Shell) -> ExitCode:
    """Finds what is wrong on this host. Each with the command that mends it; 4 where anything is."""
    from exod.cli.screens.engine import doctor_screen

    report = examine(shell)
    if shell.as_json:
        shell.show_value(report)
    else:
        shell.show(doctor_screen(report, shell.paint(), shell.width))
    return ExitCode.DEGRADED if report.findings else ExitCode.OK


def examine(shell: Shell) -> DoctorReport:
    """The findings of this host and, where one runs, of the daemon."""
    from exod.config.settings import load
    from exod.daemon_api.shapes import DoctorReport, Finding
    from exod.diagnostics.packages import look

    try:
        config = load(shell.config_file)
    except ConfigError as error:
        mend = f"correct it, then: exoctl doctor{f' --config {shell.config_file}' if shell.config_file else ''}"
        return DoctorReport(
            (Finding("config.invalid", "error", "configuration", str(error), mend),), ("configuration",)
        )
    findings = [*_folder(config), *_key(config), *_api(config), *_environment(), *_model()]
    findings += _mac(config, sys.platform)
    closed, firewall = _firewall(sys.platform)
    findings += closed
    checked = ["configuration", "data folder", "cluster key", "environment", "embedded model", "daemon"]
    facts: tuple[str, ...] = ()
    inner: DoctorReport | None = None
    try:
        from exod.cli.base.client import COMMAND_DEADLINE_S, NoDaemonError

        with shell.daemon() as daemon:
            inner = daemon.ask("doctor", DoctorReport, deadline_s=COMMAND_DEADLINE_S)
        findings += inner.findings
        checked += inner.checked
        facts = inner.facts
    except NoDaemonError as error:
        cure = "to have it started with each login: exoctl service install"
        findings.append(Finding("daemon.absent", "error", "daemon", str(error), cure))
    except ExodError as error:
        cure = "exoctl service status says whether it runs; end it and start it again"
        findings.append(Finding("daemon.silent", "error", "daemon", str(error), cure))
    if inner is None:  # a daemon looks at its own environment; this command's is the best guess at it
        findings += look()
        checked.append("packages")
    return DoctorReport(tuple(findings), tuple(checked), (*firewall, *facts))


def _api(config: Config) -> list[Finding]:
    from exod.config.settings import is_loopback
    from exod.diagnostics.findings import of_api

    return of_api(config.api.host, is_loopback(config.api.host), config.api.tls_cert is not None)


def _environment() -> list[Finding]:
    """Of this shell, for what is started from it, and of the installed jobs."""
    from exod.diagnostics.findings import FAST_SYNCH, of_environment

    findings = of_environment(
        os.environ, "this shell's environment", f"unset {FAST_SYNCH}, also in your shell's profile"
    )
    for file in _plists():
        try:
            job = plistlib.loads(file.read_bytes())
        except (OSError, ValueError, plistlib.InvalidFileException):
            continue  # not installed, or this user may not read it: launchd itself says what is wrong with it
        variables = job.get("EnvironmentVariables") if isinstance(job, dict) else None
        if isinstance(variables, dict):
            given = {str(name): str(value) for name, value in variables.items()}
            findings += of_environment(given, str(file), "write the job anew: exoctl service install")
    return findings


def _plists() -> tuple[Path, Path]:
    from launchd import AGENT_LABEL, DAEMON_LABEL

    return (
        Path.home() / "Library" / "LaunchAgents" / f"{AGENT_LABEL}.plist",
        Path("/Library/LaunchDaemons") / f"{DAEMON_LABEL}.plist",
    )


def _model() -> list[Finding]:
    from exod.daemon_api.shapes import Finding
    from exoengine.embedded import MODELS, model_folder

    missing = [name for name in MODELS if not (model_folder(name) / "model.safetensors").is_file()]
    text = f"{', '.join(missing)} is not in the package: the installation is incomplete"
    cure = "install exod again from its checkout: make setup, or uv tool install --force ."
    return [Finding("model.absent", "error", "embedded model", text, cure)] if missing else []


def _mac(config: Config, system: str) -> list[Finding]:
    """What a Mac keeps from a service: protected folders, and sleep where a rank may run."""
    if system != "darwin":
        return []
    from exod.cli.service.host import ServiceError, run_command
    from exod.diagnostics.mac_findings import of_protected_folders, of_sleep

    places = {"the environment": Path(sys.prefix), "the data folder": config.node.data_dir}
    model = Path(config.engine.model).expanduser()
    if model.is_absolute():
        places["the model"] = model
    findings = of_protected_folders(places, Path.home())
    if config.engine.enabled:
        with contextlib.suppress(ServiceError):  # no pmset, no finding
            findings += of_sleep(run_command(("/usr/bin/pmset", "-g")).out)
    return findings


def _firewall(system: str) -> tuple[list[Finding], tuple[str, ...]]:
    if system != "darwin":
        return [], ()
    from exod.cli.service.host import ServiceError, run_command
    from exod.diagnostics.mac_findings import FIREWALL, of_firewall

    try:
        findings, fact = of_firewall(run_command(FIREWALL).out)
    except ServiceError:  # no such tool, no finding
        return [], ()
    return findings, (fact,) if fact else ()


def _folder(config: Config) -> list[Finding]:
    from exod.daemon_api.shapes import Finding

    folder = config.node.data_dir
    way = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not way.is_dir():
        text = f"{way}: is in the way of the data folder and is no folder"
        return [Finding("folder.in_the_way", "error", "data folder", text, "move it away, or set node.data_dir")]
    if os.access(way, os.R_OK | os.W_OK | os.X_OK):
        return []
    if os.statvfs(way).f_flag & os.ST_RDONLY:
        text = f"{way}: the disk of the data folder is read-only"
        return [Finding("folder.read_only", "error", "data folder", text, "set node.data_dir to another folder")]
    if way != folder:
        text = f"{way}: this user cannot make the data folder {folder} in it"
        return [Finding("folder.permission", "error", "data folder", text, "set node.data_dir to another folder")]
    text = f"{folder}: this user cannot write the data folder"
    return [Finding("folder.permission", "error", "data folder", text, f"sudo chown -R $(id -un) {folder}")]


def _key(config: Config) -> list[Finding]:
    from exod.daemon_api.shapes import Finding
    from exod.peers.trust import read_key

    file = config.cluster.key_file
    if not file.exists():
        return []
    try:
        read_key(file)
    except TrustError as error:
        return [Finding("key.invalid", "error", "cluster key", str(error), f"chmod 600 {file}")]
    return []


# --- service ------------------------------------------------------------------------------------------------


def service_status(shell: Shell, system: bool) -> ExitCode:
    """Is it installed, and does it run?"""
    from exod.cli.service import verbs as service

    text, code = service.status(system)
    _say(shell, text, code)
    return code


def service_install(shell: Shell, system: bool, build_launcher: bool) -> ExitCode:
    """Writes the unit, loads it and starts exod; safe to repeat."""
    from exod.cli.service import verbs as service

    if service.status(system)[1] is ExitCode.NO_DAEMON:
        _refuse_beside_another(shell)
    _say(shell, service.install(system, shell.config_file, build_launcher=build_launcher), ExitCode.OK)
    return ExitCode.OK


def _refuse_beside_another(shell: Shell) -> None:
    """A service of a data folder that is in use would be started every few seconds and end each time."""
    from exod.cli.base.client import NoDaemonError
    from exod.cli.service.host import MisuseError

    try:
        shell.daemon().close()
    except NoDaemonError:
        return
    raise MisuseError(
        f"exod runs here already (it answers on {shell.socket_path()}) and is not this service: end it first, with "
        "Ctrl-C where it runs in a terminal, or exoctl service uninstall with the other kind of --system"
    )


def service_upgrade(shell: Shell, system: bool) -> ExitCode:
    """Runs the installed service from this environment; a running answer goes on where it can."""
    from exod.cli.service import verbs as service

    _say(shell, service.upgrade(system), ExitCode.OK)
    return ExitCode.OK


def service_uninstall(shell: Shell, system: bool) -> ExitCode:
    """Stops exod and removes what install made; safe to repeat."""
    from exod.cli.service import verbs as service

    _say(shell, service.uninstall(system), ExitCode.OK)
    return ExitCode.OK


def service_print(shell: Shell, system: bool, platform: PlatformName | None) -> ExitCode:
    """Writes the unit to standard output, for either platform, anywhere."""
    from exod.cli.service import verbs as service

    unit = service.print_unit(platform, system, shell.config_file)
    if shell.as_json:
        shell.show_value({"unit": unit})
    else:
        print(unit, end="", flush=True)
    return ExitCode.OK


def _say(shell: Shell, text: str, code: ExitCode) -> None:
    if shell.as_json:
        shell.show_value({"text": text, "exit_code": int(code)})
    else:
        shell.show([text])
