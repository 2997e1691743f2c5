"""`--watch`: one screen, drawn again and again without flicker.

Decides how often and how a frame is drawn: on the alternate screen, each line over the old one, in one write inside
a synchronized update, so that no half frame is ever seen. Where standard output is no terminal, frames follow each
other. A daemon that goes away is waited for.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from exod.cli.base.options import Shell, terminal_size
from exod.cli.base.paint import fit
from exod.errors import ExitCode, ExodError

INTERVAL_S: Final = 0.5
"""Often enough to see a cable being pulled, rarely enough to cost nothing."""

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?2026l\x1b[?25h\x1b[?1049l"
"""Ctrl-C may come in the middle of an update: the terminal must not wait for its end."""
_BEGIN_UPDATE: Final = "\x1b[?2026h\x1b[H"
_END_UPDATE: Final = "\x1b[J\x1b[?2026l"
_END_LINE: Final = "\x1b[K\n"

Frame = Callable[[], tuple[list[str], ExitCode]]
"""Asks for the present state: its lines, and the exit code that it would mean."""


def watch(shell: Shell, frame: Frame) -> ExitCode:
    """Draws until Ctrl-C or SIGTERM; returns what the last frame meant."""
    on_terminal = sys.stdout.isatty()
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    code = ExitCode.OK
    lines: list[str] = []
    if on_terminal:
        _write(_ENTER)
    try:
        while True:
            lines, code = _ask(shell, frame)
            _write(_drawn(lines) if on_terminal else "\n".join(lines) + "\n\n")
            time.sleep(INTERVAL_S)
    except KeyboardInterrupt:
        return code
    finally:
        signal.signal(signal.SIGTERM, previous)
        if on_terminal:
            _write(_LEAVE + "\n".join(lines) + "\n")


def watch_json(shell: Shell, ask: Callable[[], bytes]) -> ExitCode:
    """One JSON document a line, until Ctrl-C."""
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        while True:
            try:
                shell.show_json_line(ask())
            except ExodError as error:
                shell.fail(error)
            time.sleep(INTERVAL_S)
    except KeyboardInterrupt:
        return ExitCode.OK
    finally:
        signal.signal(signal.SIGTERM, previous)


def _ask(shell: Shell, frame: Frame) -> tuple[list[str], ExitCode]:
    try:
        return frame()
    except ExodError as error:
        return [shell.paint().styled(" ".join(str(error).split()), "bad")], error.exit_code


def _drawn(lines: list[str]) -> str:
    """The frame as one string, cut to the terminal as it is now."""
    columns, rows = terminal_size()
    shown = lines
    if len(lines) >= rows:
        shown = [*lines[: max(rows - 2, 1)], f"… {len(lines) - max(rows - 2, 1)} more lines"]
    return _BEGIN_UPDATE + "".join(fit(line, columns) + _END_LINE for line in shown) + _END_UPDATE


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
