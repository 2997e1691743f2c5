"""`exoctl top`: opens the live screen of cli/top, which is imported only then: textual takes a while."""

from __future__ import annotations

import sys

from exod.cli.base.client import DaemonClient
from exod.cli.base.options import Commands, Shell, UsageError
from exod.errors import ExitCode


def register(commands: Commands) -> None:
    commands.add("top", top)


def top(shell: Shell) -> ExitCode:
    """The cluster live in the terminal: paths, engine and events, and a key for every verb."""
    if shell.as_json:
        raise UsageError("top is a screen for people; for programs: exoctl status --watch --json")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; elsewhere: exoctl status --watch")
    path = shell.socket_path()
    with shell.daemon():  # no daemon: an error in one line, and no screen
        pass
    from exod.cli.top.screen import Top

    Top(lambda: DaemonClient(path)).run()
    return ExitCode.OK
