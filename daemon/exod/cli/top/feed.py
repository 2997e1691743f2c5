"""Where `exoctl top` gets what it shows: a thread that asks the daemon once a second, and threads that act.

Threads, because the client blocks; they end with the program, whatever they wait for. Decides how often it asks and
that a daemon that went away is asked again; the screen decides what is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from exod.cli.base.client import COMMAND_DEADLINE_S, DaemonClient, understood
from exod.daemon_api.shapes import Done, EngineReport, PreflightReport, StatusReport
from exod.errors import ExodError

INTERVAL_S: Final = 1.0
"""A cut is on the screen a second after it was noticed, and the daemon is asked rarely."""

FIRST_EVENTS_S: Final = 600.0
"""How far back the event log goes at first: what led to what is on the screen."""

_EVENTS: Final = msgspec.json.Decoder(dict[str, Any])


class Look(msgspec.Struct, frozen=True):
    """One look at the daemon: its state and what happened since the last one."""

    status: StatusReport
    engine: EngineReport
    events: tuple[dict[str, Any], ...]


class Feed:
    """`connect` opens a connection; `seen` and `failed` are called in this feed's thread."""

    def __init__(
        self, connect: Callable[[], DaemonClient], seen: Callable[[Look], None], failed: Callable[[str], None]
    ) -> None:
        self._connect = connect
        self._seen = seen
        self._failed = failed
        self._ended = threading.Event()
        self._since = time.time() - FIRST_EVENTS_S

    def start(self) -> None:
        threading.Thread(target=self._run, name="exoctl top", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def act(self, verb: str, told: Callable[[str], None], **args: Any) -> None:
        """Carries out a verb, which may take minutes; `told` gets its one line, or the error's."""

        def run() -> None:
            try:
                with self._connect() as daemon:
                    data = daemon.raw(verb, deadline_s=COMMAND_DEADLINE_S, **args)
                text = _outcome(verb, data)
            except ExodError as error:
                text = " ".join(str(error).split())
            if not self._ended.is_set():
                told(text)

        threading.Thread(target=run, name=f"exoctl top: {verb}", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                look = self._look()
            except ExodError as error:
                text = " ".join(str(error).split())
                if not self._ended.is_set():
                    self._failed(text)
            else:
                if not self._ended.is_set():
                    self._seen(look)
            self._ended.wait(INTERVAL_S)

    def _look(self) -> Look:
        with self._connect() as daemon:
            status = daemon.ask("status", StatusReport)
            engine = daemon.ask("engine", EngineReport)
            events = tuple(one for one in daemon.stream("events", _EVENTS, since=self._since) if one is not None)
        if events:
            self._since = float(events[-1]["ts"])
        return Look(status, engine, events)


def _outcome(verb: str, data: bytes) -> str:
    if verb != "preflight":
        return understood(data, Done).text
    report = understood(data, PreflightReport)
    wrong = [check for check in report.checks if not check.ok]
    if not wrong:
        return f"preflight: all {len(report.checks)} checks passed"
    return f"preflight: {wrong[0].text} {wrong[0].cure}".strip()
