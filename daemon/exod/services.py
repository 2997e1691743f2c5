"""The parts of the daemon that run all the time: what becomes of one that fails.

An essential part (probing, the control plane, the control socket) is worth nothing half alive: its failure ends the
daemon, which its supervisor starts again. Every other part is started again after a pause that doubles, with an
event, a log line and a reason of the health until it has run for a while. Decides that alone. Times in seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Final

import msgspec
import structlog

from exod.core.base.facts import SERVICE_FAILED, Fact

log = structlog.get_logger()

ESSENTIAL: Final = frozenset({"control plane", "control socket", "interfaces"})
"""Without interfaces nothing is probed. The probes' own timers and sockets live in no task."""

PAUSE_FIRST_S: Final = 0.5
PAUSE_LIMIT_S: Final = 60.0
"""Whatever fails at once each time writes a traceback a minute."""

SOUND_S: Final = 60.0
"""A part that ran for so long is sound again: its next failure is a new one."""

Run = Callable[[], Coroutine[object, object, None]]


class _Failed(msgspec.Struct):
    text: str
    times: int
    pause_s: float
    until: float
    """When it is started again."""


class Services:
    """`emit(type, data)` takes the contract's events."""

    def __init__(self, emit: Callable[[str, dict[str, object]], None]) -> None:
        self._emit = emit
        self._failed: dict[str, _Failed] = {}

    def start(self, tasks: asyncio.TaskGroup, services: Mapping[str, Run]) -> dict[str, asyncio.Task[None]]:
        return {name: tasks.create_task(self._keep(name, run), name=name) for name, run in services.items()}

    async def _keep(self, name: str, run: Run) -> None:
        """Returns when the part does."""
        while True:
            try:
                await run()
            except Exception as error:
                self._tell(name, error)
                if name in ESSENTIAL:
                    raise
                await asyncio.sleep(self._note(name, error))
            else:
                return

    def _tell(self, name: str, error: Exception) -> None:
        log.error("internal_error", task=name, exc_info=error)
        self._emit("internal.error", {"task": name, "error": f"{type(error).__name__}: {error}"})

    def _note(self, name: str, error: Exception) -> float:
        """How long to wait before it is started again."""
        now, known = time.monotonic(), self._failed.get(name)
        if known is not None and now - known.until > SOUND_S:
            known = None
        pause_s = PAUSE_FIRST_S if known is None else min(PAUSE_LIMIT_S, 2 * known.pause_s)
        times = 1 if known is None else known.times + 1
        self._failed[name] = _Failed(f"{type(error).__name__}: {error}", times, pause_s, now + pause_s)
        return pause_s

    def facts(self) -> tuple[Fact, ...]:
        """What failed and has not run for long since."""
        now = time.monotonic()
        return tuple(
            Fact(
                SERVICE_FAILED,
                name.replace(" ", "_"),
                f"the part “{name}” of exod failed {one.times} times lately ({one.text}) and "
                + ("was started again" if now >= one.until else f"is started again in {one.until - now:.0f} s")
                + "; the rest goes on: exoctl report collects what a bug report needs",
            )
            for name, one in self._failed.items()
            if now - one.until <= SOUND_S
        )
