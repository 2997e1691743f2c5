"""`exoctl model pull` where exod runs: asks it, then shows how far every node is until all have the model.

Ctrl-C ends the watching alone. Decides when it is over: each node has it, has failed, or was told to pause.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from exod.cli.base.options import Shell
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.daemon_api.model_lines import ModelLine
    from exod.daemon_api.shapes import StatusReport

LOOK_EVERY_S: Final = 0.5

ALL_HEARD_S: Final = 3.0
"""Nodes report at once; one that says nothing by then holds no layers, or runs an older exod."""

LINE_EVERY_S: Final = 5.0
"""Where standard error is no terminal."""

OVER: Final = ("here", "failed", "paused")


def pull_in_cluster(shell: Shell, daemon: DaemonClient, model: str, everywhere: bool) -> ExitCode:
    from exod.daemon_api.shapes import Done, StatusReport

    daemon.ask("model_pull", Done, model=model, everywhere=everywhere)
    screen, began = _Screen(), time.monotonic()
    try:
        while True:
            status = daemon.ask("status", StatusReport)
            lines = [line for line in status.models if line.model == model]
            if _is_over(status, lines, time.monotonic() - began):
                screen.clear()
                return _told(shell, model, lines)
            screen.show(lines)
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        screen.clear()
        print(f"{model} is still being fetched; to stop it: exoctl model pause {model}", file=sys.stderr)
        return ExitCode.OK


def _is_over(status: StatusReport, lines: list[ModelLine], waited_s: float) -> bool:
    from exod.model import NodeState

    heard = {line.node for line in lines}
    expected = {node.id for node in status.nodes if node.state is NodeState.UP}
    if not lines or (not expected <= heard and waited_s < ALL_HEARD_S):
        return waited_s > 2 * ALL_HEARD_S
    return all(line.state in OVER for line in lines)


def _told(shell: Shell, model: str, lines: list[ModelLine]) -> ExitCode:
    import msgspec

    well = bool(lines) and all(line.state == "here" for line in lines)
    if shell.as_json:
        shell.show_value({"name": model, "nodes": [msgspec.to_builtins(line) for line in lines]})
    else:
        shown = [_line_text(line) for line in lines] or ["no node that is there holds layers: add --all"]
        shell.show([*shown, *([f"to run it: exoctl engine load {model}"] if well else [])])
    return ExitCode.OK if well else ExitCode.DEGRADED


def _line_text(line: ModelLine) -> str:
    from exod.cli.screens.fetches import fetch_text

    return f"{line.state}, {fetch_text(line)}"


class _Screen:
    """Lines that are drawn over themselves on a terminal, else now and then; on standard error."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._drawn = 0
        self._told_at = float("-inf")

    def show(self, lines: list[ModelLine]) -> None:
        now = time.monotonic()
        if not self._on_terminal and now - self._told_at < LINE_EVERY_S:
            return
        self._told_at = now
        self.clear()
        for line in lines:
            print(_line_text(line), file=sys.stderr)
        sys.stderr.flush()
        self._drawn = len(lines) if self._on_terminal else 0

    def clear(self) -> None:
        for _ in range(self._drawn):
            print("\x1b[1A\x1b[2K", end="", file=sys.stderr)
        self._drawn = 0
