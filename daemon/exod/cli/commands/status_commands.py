"""`exoctl status` and `exoctl wait`: what is, and a gate for scripts until it is."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from exod.cli.base.options import Commands, Parser, Shell
from exod.cli.base.values import seconds_or_more
from exod.errors import ExitCode, ExodError

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.daemon_api.shapes import LinkDetail, LinkLine, StatusReport

POLL_S: Final = 0.1
"""Between two looks of `wait`: short against anything that is waited for, and cheap."""

WAIT_S: Final = 60.0


class Gate(StrEnum):
    AGREED = "agreed"
    READY = "ready"
    HEALTHY = "healthy"


def register_status(commands: Commands) -> None:
    add_watch(commands.add("status", status))


def register_wait(commands: Commands) -> None:
    parser = commands.add("wait", wait)
    gates = [gate.value for gate in Gate]
    parser.add_argument("--for", dest="gate", choices=gates, default=Gate.READY.value, help="default: ready")
    parser.add_argument(
        "--timeout", type=seconds_or_more, metavar="S", default=WAIT_S, help=f"default: {WAIT_S:g} seconds"
    )


def add_watch(parser: Parser) -> None:
    parser.add_argument("--watch", action="store_true", help="draw again and again, until Ctrl-C")


def status(shell: Shell, watch: bool) -> ExitCode:
    """One screen that says what is, and why. Health and its reasons, nodes, links, mesh, engine, MQTT."""
    from exod.cli.screens.reports import show_report, watch_report
    from exod.cli.screens.status import status_screen
    from exod.daemon_api.shapes import StatusReport

    def screen(report: StatusReport) -> list[str]:
        return status_screen(report, shell.paint(), shell.width, time.time())

    if watch:
        return watch_report(shell, "status", StatusReport, screen, exit_code)
    return exit_code(show_report(shell, "status", StatusReport, screen))


def exit_code(report: StatusReport) -> ExitCode:
    """0 where healthy; 5 where a peer is without a path, or the ends disagree; else 4."""
    from exod.model import Health

    if report.health is Health.HEALTHY:
        return ExitCode.OK
    left = {node.id for node in report.nodes if node.left}
    broken = any(is_broken(link) for link in report.links if link.peer not in left)
    return ExitCode.NO_PATH if broken else ExitCode.DEGRADED


def is_broken(link: LinkLine | LinkDetail) -> bool:
    """Has the pair no path, or do its ends disagree?"""
    return link.selected is None or not link.agreed


def wait(shell: Shell, gate: str, timeout: float) -> ExitCode:
    """A gate for scripts. Returns when the cluster is agreed, ready to serve, or healthy; a daemon that is not
    there yet is waited for. Past the timeout: 6, or 3 where no daemon answered at the end.
    """
    deadline = time.monotonic() + timeout
    wanted = Gate(gate)
    while True:
        try:
            with shell.daemon() as daemon:
                missing = _missing(daemon, wanted)
                while missing and time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    missing = _missing(daemon, wanted)
            if not missing:
                _tell(shell, wanted)
                return ExitCode.OK
            raise _TooLateError(f"not {gate} after {timeout:g} s: {missing}")
        except _TooLateError:
            raise
        except ExodError as error:
            if error.exit_code not in (ExitCode.NO_DAEMON, ExitCode.TIMED_OUT) or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


class _TooLateError(ExodError):
    exit_code = ExitCode.TIMED_OUT


def _tell(shell: Shell, gate: Gate) -> None:
    if shell.as_json:
        shell.show_value({"for": gate.value, "reached": True})
    else:
        shell.show([gate.value])


def _missing(daemon: DaemonClient, gate: Gate) -> str:
    """What is still missing, as text; empty where nothing is."""
    from exod.daemon_api.shapes import Readiness, StatusReport
    from exod.model import Health, MeshState

    if gate is Gate.READY:
        readiness = daemon.ask("ready", Readiness)
        return "" if readiness.ready else readiness.text or "not ready"
    report = daemon.ask("status", StatusReport)
    if gate is Gate.HEALTHY:
        reasons = "; ".join(reason.text for reason in report.reasons)
        return "" if report.health is Health.HEALTHY else f"{report.health.value}: {reasons}"
    if report.mesh.state is MeshState.AGREED:
        return ""
    if report.mesh.state is not MeshState.ALONE:
        return f"the mesh is {report.mesh.state.value}"
    others = [f"{node.name} {'has left' if node.left else 'is down'}" for node in report.nodes if not node.is_self]
    return f"this node is alone: {', '.join(others) or 'no other was found'}"
