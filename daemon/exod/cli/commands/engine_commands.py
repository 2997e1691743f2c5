"""`exoctl mesh`, `engine`, `preflight` and `debug`: the plan, the hosted model, and the checks before inference."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from exod.cli.base.options import Commands, Shell, UsageError
from exod.cli.base.values import name, number
from exod.daemon_api.self_fault import MAX_DEBUG_S, MAX_DELAY_MS, SELF_FAULTS
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.daemon_api.shapes import EngineReport, MeshReport

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h|d)?")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def register(commands: Commands) -> None:
    mesh = commands.group("mesh", "the agreed plan and its history; ask for a new one", mesh_show)
    mesh.add("show", mesh_show)
    mesh.add("renegotiate", mesh_renegotiate)
    mesh.add("jaccl", mesh_jaccl)

    engine = commands.group("engine", "the hosted engine", engine_status)
    engine.add("status", engine_status)
    load = engine.add("load", engine_load)
    load.add_argument(
        "model", type=name, metavar="MODEL", help="a folder, a Hugging Face repo id, or embedded:count"
    )
    load.add_argument("--no-wait", action="store_true", help="return once the daemon has been told")
    engine.add("unload", engine_unload)
    engine.add("drain", engine_drain)
    native = engine.add("native", engine_native)
    native.add_argument("verb", choices=("status", "build"), nargs="?", default="status")

    commands.add("preflight", preflight)


def register_debug(commands: Commands) -> None:
    debug = commands.group("debug", "faults for tests, where the config says [debug] enabled = true")
    fault = debug.add("fault", debug_fault)
    pin = debug.add("pin", debug_pin)
    for parser in (fault, pin):
        parser.add_argument(
            "path", type=name, metavar="PATH", help="a path id, an interface, a remote address or a kind"
        )
        parser.add_argument(
            "--for", dest="for_s", metavar="S", default="10", help="how long: seconds, 500ms, 2m, 1h; default: 10"
        )
    fault.add_argument(
        "fault",
        choices=("drop", "delay", *SELF_FAULTS),
        help="what happens to its datagrams; with PATH node, to this node",
    )
    fault.add_argument(
        "delay_ms", type=number(0.001, MAX_DELAY_MS), nargs="?", metavar="MS", help="with delay: milliseconds"
    )


# --- mesh ---------------------------------------------------------------------------------------------------


def mesh_show(shell: Shell) -> ExitCode:
    """The agreed plan, its edges, and every plan before it."""
    from exod.cli.screens.engine import mesh_screen
    from exod.cli.screens.reports import show_report
    from exod.daemon_api.shapes import MeshReport

    report = show_report(shell, "mesh", MeshReport, lambda one: mesh_screen(one, shell.paint(), shell.width))
    return _mesh_code(report)


def _mesh_code(report: MeshReport) -> ExitCode:
    from exod.model import MeshState

    return ExitCode.OK if report.mesh.state in (MeshState.AGREED, MeshState.ALONE) else ExitCode.DEGRADED


def mesh_renegotiate(shell: Shell) -> ExitCode:
    """Asks the coordinator for a new plan."""
    return run_command(shell, "renegotiate", reason="asked for with exoctl mesh renegotiate")


def mesh_jaccl(shell: Shell) -> ExitCode:
    """The hostfile of MLX for RDMA over these cables. 5 where no cable joins each two nodes."""
    import msgspec

    with shell.daemon() as daemon:
        hostfile = daemon.raw("jaccl")
    if shell.as_json:
        shell.show_json(hostfile)
    else:
        shell.show([msgspec.json.format(hostfile, indent=2).decode()])  # as mlx.launch reads it: nothing of ours
    return ExitCode.OK


def run_command(shell: Shell, verb: str, **args: Any) -> ExitCode:
    """Lets the daemon do something, and tells what it came to."""
    from exod.cli.base.client import COMMAND_DEADLINE_S
    from exod.cli.screens.reports import show_report
    from exod.daemon_api.shapes import Done

    show_report(shell, verb, Done, lambda done: [shell.paint().plain(done.text)], COMMAND_DEADLINE_S, **args)
    return ExitCode.OK


# --- engine -------------------------------------------------------------------------------------------------


def engine_status(shell: Shell) -> ExitCode:
    """The hosted model: its state, every rank's process, how steps are synchronised."""
    from exod.cli.screens.engine import engine_screen
    from exod.cli.screens.reports import show_report
    from exod.daemon_api.shapes import EngineReport

    report = show_report(shell, "engine", EngineReport, lambda one: engine_screen(one, shell.paint(), shell.width))
    return _engine_code(report)


def engine_native(shell: Shell, verb: str) -> ExitCode:
    """The native group: which, why not, and what mends it; `build` makes it. Needs no daemon."""
    from exod.config.settings import load
    from exoengine.native.build import build, cache_in, lines, status

    cache = cache_in(load(shell.config_file).node.data_dir)
    found = build(cache) if verb == "build" else status(cache)
    if shell.as_json:
        shell.show_value({"ready": found.is_ready, "file": found.file, "reason": found.reason, "cure": found.cure})
    else:
        shell.show(lines(found))
    return ExitCode.OK if found.is_ready else ExitCode.DEGRADED


def _engine_code(report: EngineReport) -> ExitCode:
    from exod.model import EngineState

    troubled = (EngineState.LOADING, EngineState.RECOVERING, EngineState.FAILED)
    return ExitCode.DEGRADED if report.engine.state in troubled else ExitCode.OK


def engine_load(shell: Shell, model: str, no_wait: bool) -> ExitCode:
    """Loads a model on all nodes, in place of the present one, and waits until it answers or has failed."""
    from exod.cli.commands.model_load import load_and_watch

    if model in (".", "..") or model.startswith(("./", "../")):
        model = os.path.abspath(model)  # as the shell means it, not where the daemon was started
    if no_wait:
        return run_command(shell, "engine_load", model=model)
    with shell.daemon() as daemon:
        return load_and_watch(shell, daemon, model)


def engine_unload(shell: Shell) -> ExitCode:
    """Ends the engine and frees its memory."""
    return run_command(shell, "engine_unload")


def engine_drain(shell: Shell) -> ExitCode:
    """Admits no more requests, and returns when the running ones have ended."""
    return run_command(shell, "engine_drain")


def preflight(shell: Shell) -> ExitCode:
    """The checks before inference, each with its figure. 4 where one fails."""
    from exod.cli.base.client import COMMAND_DEADLINE_S
    from exod.cli.screens.engine import preflight_screen
    from exod.cli.screens.reports import show_report
    from exod.daemon_api.shapes import PreflightReport

    def screen(report: PreflightReport) -> list[str]:
        return preflight_screen(report, shell.paint(), shell.width)

    report = show_report(shell, "preflight", PreflightReport, screen, COMMAND_DEADLINE_S)
    return ExitCode.OK if report.ok else ExitCode.DEGRADED


# --- debug --------------------------------------------------------------------------------------------------


def debug_fault(shell: Shell, path: str, fault: str, delay_ms: float | None, for_s: str) -> ExitCode:
    """Makes this node drop or delay the datagrams of one path for a while, or, as `node`, be ill itself."""
    if path == "node" and fault in SELF_FAULTS and delay_ms is None:
        return run_command(shell, "debug_self_fault", kind=fault, for_s=_debug_seconds(for_s))
    if fault == "drop" and delay_ms is None:
        return run_command(shell, "debug_fault", path=path, drop=True, for_s=_debug_seconds(for_s))
    if fault == "delay" and delay_ms is not None:
        return run_command(shell, "debug_fault", path=path, delay_ms=delay_ms, for_s=_debug_seconds(for_s))
    raise UsageError(
        f"a fault is 'drop', or 'delay' and its milliseconds; of 'node' it is {', '.join(SELF_FAULTS)}"
    )


def debug_pin(shell: Shell, path: str, for_s: str) -> ExitCode:
    """Keeps one path selected for a while, whatever is measured."""
    return run_command(shell, "debug_pin", path=path, for_s=_debug_seconds(for_s))


def _debug_seconds(text: str) -> float:
    length_s = seconds(text)
    if not 0 < length_s <= MAX_DEBUG_S:
        raise UsageError(f"--for: {text}: expected more than 0, and {MAX_DEBUG_S / 3600:g}h at most")
    return length_s


def seconds(text: str) -> float:
    """A length of time: plain seconds, or with one of the units ms, s, m (min), h."""
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is no length of time: write 10, 500ms, 2m or 1h")
    return float(match[1]) * SECONDS[match[2] or "s"]
