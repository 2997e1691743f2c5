"""Which signals end the daemon in order: SIGTERM of a service manager, Ctrl-C, SIGHUP of a terminal that is closed.

Decides that alone; what an orderly end is stands in app.py.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final, NoReturn

FROM_THE_FIRST_MOMENT: Final = (signal.SIGTERM, signal.SIGHUP)
"""SIGINT is Python's own KeyboardInterrupt until the loop runs."""


def end_before_the_start() -> None:
    """Until the daemon runs there is nothing to leave: exit code 0, so that launchd does not start it again."""
    for number in FROM_THE_FIRST_MOMENT:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def ask(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Calls `stop` for each of them. A SIGHUP that is ignored stays so: nohup wants the daemon to outlive its
    terminal.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
