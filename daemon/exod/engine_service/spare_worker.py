"""A spare worker: a process that has imported MLX and all that a rank needs, holds no weights, and waits.

Starting an interpreter and importing MLX takes seconds, loading a rank's layers again mostly less. So one process
is kept that has done the first part: where the rank's process ends, this one takes its place, and the next spare is
started in the background. It sleeps in a read of its standard input, a socket of this daemon: a word sends it to
work, the end of the stream ends it, so none outlives its daemon. One that went to work is a worker like any other.

Decides whether there is memory for one. Raises nothing: without a spare a worker is started from nothing, as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import psutil
import structlog

from exoengine.protocol import SPARE_GO, SPARE_READY

log = structlog.get_logger()

AFTER_S: Final = 5.0
"""From a rank's load to the start of a spare: the ranks form their group and answer first."""

LEAST_FREE_BYTES: Final = 2 << 30
"""A spare has about 100 MiB. Where less than this is available the model's KV cache may need all of it."""

LEAVES_WITHIN_S: Final = 2.0
"""It ends in milliseconds, unless the kernel keeps it in a read."""

Launch = Callable[[int], Awaitable[asyncio.subprocess.Process]]
"""Starts a worker that waits; the descriptor is to be its standard input."""


async def launched(starting: Awaitable[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """The process that is being started. Where the caller is cancelled meanwhile it is started, killed and gone."""
    launch = asyncio.ensure_future(starting)
    try:
        return await asyncio.shield(launch)
    except asyncio.CancelledError:
        child = await launch
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise


class SpareWorker:
    """At most one. `text` says what there is of it, for the status."""

    def __init__(self, launch: Launch, enabled: bool) -> None:
        self._launch, self._enabled = launch, enabled
        self.text = "none yet" if enabled else "off: engine.spare"
        self._child: asyncio.subprocess.Process | None = None
        self._end: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    def prepare(self, after_s: float = AFTER_S) -> None:
        """Starts one after a while, where there is none."""
        busy = self._starting is not None and not self._starting.done()
        if self._enabled and not busy and self.pid is None:
            self._starting = asyncio.create_task(self._start(after_s), name="spare worker")

    async def _start(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        available = psutil.virtual_memory().available
        if available < LEAST_FREE_BYTES:
            self.text = f"left out: {available >> 20} MiB of memory are available, {LEAST_FREE_BYTES >> 20} needed"
            return
        self.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._end = ours
        self.text = "starting"
        try:
            with theirs:
                self._child = await launched(self._launch(theirs.fileno()))
            loop = asyncio.get_running_loop()
            said = await loop.sock_recv(ours, len(SPARE_READY))
            self.text = "ready" if said == SPARE_READY else "it ended while it was being started"
        except OSError as error:
            self.text = f"it could not be started: {error.strerror}"
        log.info("spare_worker", pid=self.pid, text=self.text)

    def take(self) -> asyncio.subprocess.Process | None:
        """Sends the spare to work, one that is still importing too; None where there is none that lives."""
        child, end = self._child, self._end
        lives = self.pid is not None and end is not None
        self._forget()
        if not lives or end is None:
            return None
        try:
            end.send(SPARE_GO)
        except OSError:
            return None
        finally:
            end.close()
        self.text = "it is in use now; the next one is started"
        return child

    async def leave(self) -> None:
        """Ends what there is of it. Returns when it is gone: a daemon leaves no process behind."""
        child, starting = self._child, self._starting
        self.close()
        if starting is not None:
            await asyncio.wait({starting}, timeout=LEAVES_WITHIN_S)
        if child is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), LEAVES_WITHIN_S)

    def close(self) -> None:
        """Tells what there is of it to end."""
        child = self._child
        if self._end is not None:
            self._end.close()
        self._forget()
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()

    def _forget(self) -> None:
        if self._starting is not None and self._starting is not asyncio.current_task():
            self._starting.cancel()
            self._starting = None
        self._child = self._end = None
