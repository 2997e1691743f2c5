"""Shows an answer of the daemon: as its own JSON, as a screen, or again and again.

Decides only which of these is printed. What the screen looks like and which exit code the answer means are the
command's choice. Raises what the client raises: RequestError, NoDaemonError, SilentDaemonError, and ExodError for
an answer of another release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from exod.cli.base.client import ANSWER_DEADLINE_S, understood
from exod.cli.base.options import Shell
from exod.cli.screens.watch import watch, watch_json
from exod.errors import ExitCode

Shape = TypeVar("Shape")


def show_report(
    shell: Shell, verb: str, shape: type[Shape], screen: Callable[[Shape], list[str]],
    deadline_s: float = ANSWER_DEADLINE_S, **args: Any,
) -> Shape:  # fmt: skip
    """Asks `verb` once, prints the answer and returns it."""
    with shell.daemon() as daemon:
        data = daemon.raw(verb, deadline_s=deadline_s, **args)
    if shell.as_json:
        shell.show_json(data)
    report = understood(data, shape)
    if not shell.as_json:
        shell.show(screen(report))
    return report


def watch_report(
    shell: Shell, verb: str, shape: type[Shape], screen: Callable[[Shape], list[str]],
    code: Callable[[Shape], ExitCode], **args: Any,
) -> ExitCode:  # fmt: skip
    """As `show_report`, until Ctrl-C; returns the code of the last answer."""

    def ask() -> bytes:
        with shell.daemon() as daemon:
            return daemon.raw(verb, **args)

    def frame() -> tuple[list[str], ExitCode]:
        report = understood(ask(), shape)
        return screen(report), code(report)

    return watch_json(shell, ask) if shell.as_json else watch(shell, frame)
