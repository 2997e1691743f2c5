"""Runs the system's own tools, with a deadline and a short memory. Never on a hot path, never blocking.

Failure is an answer, not an exception: a tool that is missing, hangs or fails gives None, and the caller goes
on with what it knows otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable

COMMAND_DEADLINE_S = 5.0
"""`system_profiler` takes about a second, seconds on a busy host; a tool that takes longer hangs."""

REMEMBERED_S = 2.0
"""Several askers within one change of the network share one run."""

Run = Callable[[tuple[str, ...]], Awaitable[str | None]]


class CommandOutputs:
    """Runs each command line once at a time and remembers its output for `REMEMBERED_S`."""

    def __init__(self, run: Run | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run if run is not None else run_command
        self._clock = clock
        self._remembered: dict[tuple[str, ...], tuple[float, str | None]] = {}
        self._locks: dict[tuple[str, ...], asyncio.Lock] = {}

    async def output(self, *argv: str) -> str | None:
        """The command's standard output, or None."""
        async with self._locks.setdefault(argv, asyncio.Lock()):
            known = self._remembered.get(argv)
            if known is not None and self._clock() - known[0] < REMEMBERED_S:
                return known[1]
            text = await self._run(argv)
            self._remembered[argv] = (self._clock(), text)
            return text


async def run_command(argv: tuple[str, ...], deadline_s: float = COMMAND_DEADLINE_S) -> str | None:
    """Standard output of a command that succeeded within the deadline, else None. The child never survives."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(deadline_s):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        return None
    return output.decode("utf-8", "replace")
