"""Keeps a Mac awake while its rank works, by a `caffeinate` that ends with the worker. awake.py decides when.

`-i` holds idle sleep, `-s` system sleep (on mains only); neither holds a lid that is closed. `-w` ends it with the
worker, so that a daemon that is killed leaves nothing behind for longer than the worker lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

import structlog

from exod.core.engine.awake import Awake
from exod.daemon_api.shared_tick import until_next

log = structlog.get_logger()

CAFFEINATE: Final = ("/usr/bin/caffeinate", "-i", "-s", "-w")

LOOK_INTERVAL_S: Final = 2.0
"""A Mac falls asleep after a minute without input at the earliest."""


async def keep_awake(
    system: str, work: Callable[[], tuple[int | None, bool]], command: tuple[str, ...] = CAFFEINATE
) -> None:
    """For ever on a Mac, nothing elsewhere. `work()` is the worker's pid and whether it loads or answers."""
    if system != "darwin":
        return
    awake = Awake()
    holder: asyncio.subprocess.Process | None = None
    held: int | None = None
    try:
        while True:
            wanted = awake.held_for(*work(), time.monotonic())
            if wanted != held or (holder is not None and holder.returncode is not None):
                await _end(holder)
                holder = await _start(command, wanted) if wanted is not None else None
                held = wanted
            await asyncio.sleep(until_next(LOOK_INTERVAL_S))
    finally:
        await _end(holder)


async def _start(command: tuple[str, ...], pid: int) -> asyncio.subprocess.Process | None:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*command, str(pid), stdin=asyncio.subprocess.DEVNULL)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:  # it is on its way, and nobody would end it
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise
    except OSError as error:
        log.warning("cannot_keep_awake", command=command[0], error=error.strerror)
        return None


async def _end(holder: asyncio.subprocess.Process | None) -> None:
    if holder is None or holder.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        holder.terminate()
    await holder.wait()
