"""`exoctl engine load`: asks the daemon, then shows how far the load is until the model answers or has failed.

Ctrl-C ends the watching alone: the load goes on. Decides when it is over, and the exit code.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from exod.cli.base.options import Shell
from exod.errors import ExitCode

if TYPE_CHECKING:
    from exod.cli.base.client import DaemonClient
    from exod.daemon_api.shapes import EngineSummary

LOOK_EVERY_S: Final = 0.3

FAILED_LOOKS: Final = 4
"""So often in a row it must have failed: while nodes agree on a plan an old failure may still show."""

STILL_S: Final = 90.0
"""Nothing moves for so long: it is told as it stands. A large layer on a slow disk takes less."""


def load_and_watch(shell: Shell, daemon: DaemonClient, model: str) -> ExitCode:
    from exod.cli.base.client import COMMAND_DEADLINE_S
    from exod.daemon_api.shapes import Done

    before = _engine(daemon)
    daemon.ask("engine_load", Done, deadline_s=COMMAND_DEADLINE_S, model=model)
    try:
        text, code = _outcome(daemon, model, before.model)
    except KeyboardInterrupt:
        text, code = f"{model} goes on loading: exoctl engine status shows the progress", ExitCode.OK
    if shell.as_json:
        shell.show_value({"text": text})
    else:
        shell.show([text])
    return code


def _engine(daemon: DaemonClient) -> EngineSummary:
    from exod.daemon_api.shapes import StatusReport

    return daemon.ask("status", StatusReport).engine


def _outcome(daemon: DaemonClient, model: str, before: str | None) -> tuple[str, ExitCode]:
    from exod.model import EngineState

    failed, told, moved_at = 0, "", time.monotonic()
    while True:
        engine = _engine(daemon)
        is_it = engine.model in (model, model.rstrip("/")) or engine.model != before
        if is_it and engine.state in (EngineState.READY, EngineState.GENERATING):
            return f"{model} is ready", ExitCode.OK
        failed = failed + 1 if is_it and engine.state is EngineState.FAILED else 0
        text = engine.text or engine.state.value
        if failed >= FAILED_LOOKS:
            return f"{model} cannot be loaded: {text}", ExitCode.DEGRADED
        line = f"{model}: {text}"
        if line != told:
            print(line, file=sys.stderr, flush=True)
            told, moved_at = line, time.monotonic()
        elif time.monotonic() - moved_at >= STILL_S:
            return f"{model} is not ready: {text}; exoctl engine status shows each rank", ExitCode.DEGRADED
        time.sleep(LOOK_EVERY_S)
