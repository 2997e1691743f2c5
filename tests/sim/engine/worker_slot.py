"""Stands in for `WorkerProcess` of one daemon: starts, adopts, wakes, kills and dismisses the machine's worker.

One WorkerGone follows each start that was carried out, as the core is promised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exod.core.engine import engine_events as events
from exoengine.protocol import FromWorker, Leave, ToWorker
from tests.sim.engine.worker import Worker

if TYPE_CHECKING:
    from tests.sim.engine.engine_host import EngineHost

CONNECT_S = 0.05
SPAWN_S = (0.3, 2.0)
"""Importing MLX."""
ADOPT_DEADLINE_S = 8.0
LEAVE_DEADLINE_S = 10.0
SIGTERM_S = 1.0
SIGKILL_S = 3.0
"""As in worker_process.py."""


class WorkerSlot:
    """Of one life of a daemon."""

    def __init__(self, engine_host: EngineHost, life: int) -> None:
        self._engine_host, self._life = engine_host, life
        self._world = engine_host.world
        self._connected: Worker | None = None
        self._heard = False
        self._running = False

    @property
    def _is_over(self) -> bool:
        """Did the daemon end?"""
        return self._engine_host.host.life != self._life or self._engine_host.core is None

    @property
    def is_running(self) -> bool:
        """Was one started whose end was not told yet?"""
        return self._running

    def start(self) -> None:
        if self._running:
            self._world.broken(self._engine_host.host, "E1: a worker is started where one runs")
        self._running = True
        worker = self._engine_host.worker
        if worker is not None and worker.alive:
            self._world.tell(self._engine_host.host, f"adopts worker {worker.pid}")
            self._world.after(CONNECT_S, self._connect, worker)
            self._world.after(ADOPT_DEADLINE_S, self._is_mute, worker)
        else:
            self._world.after(self._world.engine_rng.uniform(*SPAWN_S), self._spawn)

    def _spawn(self) -> None:
        if self._is_over:
            return
        host = self._engine_host.host
        if host.asleep:
            self._world.after(SPAWN_S[1], self._spawn)
        elif self._world.cannot_start(host):
            self._gone("it could not be started: No space left on device")
        else:
            worker = self._engine_host.worker = Worker(self._world, host.id, self._world.next_pid())
            self._world.tell(host, f"worker {worker.pid} starts")
            self._connect(worker)

    def _connect(self, worker: Worker) -> None:
        if self._is_over:
            return
        if not worker.alive:
            self._gone("it ended before it was adopted")
            return
        self._connected = worker
        worker.connect(self._hear, self._gone)

    def _is_mute(self, worker: Worker) -> None:
        if not self._is_over and self._connected is worker and not self._heard:
            worker.die("it did not answer the daemon that adopted it")

    def _hear(self, message: FromWorker) -> None:
        if not self._is_over:
            self._heard = True
            self._engine_host.feed(events.WorkerSaid(message))

    def _gone(self, text: str) -> None:
        if self._is_over:
            return
        self._connected, self._heard, self._running = None, False, False
        self._engine_host.feed(events.WorkerGone(text))

    def wake(self) -> None:
        if self._connected is not None:
            self._connected.resume("signal")

    def tell(self, message: ToWorker) -> None:
        if self._connected is not None:
            self._connected.hear(message)

    def kill(self, text: str, at_once: bool = False) -> None:
        if self._connected is not None:
            self._connected.die(f"killed: {text}")

    def leave(self) -> None:
        worker = self._connected
        if worker is not None:
            worker.hear(Leave(LEAVE_DEADLINE_S))
            self._world.after(LEAVE_DEADLINE_S + SIGTERM_S, self._end, worker, False)
        elif self._running:
            self._world.after(LEAVE_DEADLINE_S + SIGTERM_S, self._end_starting)

    def _end_starting(self) -> None:
        """It could not be told to leave."""
        if self._is_over:
            return
        if self._connected is not None:
            self._end(self._connected, False)
        else:
            self._running = False

    def _end(self, worker: Worker, by_force: bool) -> None:
        """SIGTERM does not reach a process that stands still, SIGKILL does."""
        if self._is_over or not worker.alive:
            return
        if by_force or not worker.is_stopped:
            worker.die("it did not leave when asked")
        else:
            self._world.after(SIGKILL_S, self._end, worker, True)

    def sweep(self) -> None:
        worker = self._engine_host.worker
        if worker is not None and worker.alive and self._connected is None:
            worker.die("an earlier daemon left it")
