"""The life of this rank's process, as the daemon knows it: whether there is one, and how long it may be silent.

    NONE -> STARTING -> CONNECTED -> KILLED or LEAVING -> NONE

Every state but NONE and LEAVING has a deadline (`worker_process.py` escalates a leave by itself). A process that
ended without being asked is followed by a pause that doubles, and is forgotten once a group lived for a while.

Decides when a process is overdue and when the next may start; never what it is told.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from exoengine.protocol import Heartbeat, Hello, Load, Loaded

START_DEADLINE_S: Final = 60.0
"""Importing MLX and transformers takes a second or two; a cold disk on a busy machine many more."""

KILL_AGAIN_S: Final = 10.0
"""A kill can miss a process that was just being started; it is said again."""

WAKE_SILENCE_S: Final = 2.5
"""A worker's control thread says something every second. One that is silent for two beats may have been stopped
from outside: it is told to continue, within the 5 s that its neighbours give a step. One that is only slow does not
notice.
"""

HEARTBEAT_SILENCE_S: Final = 8.0
"""A process that did not come back from that hangs, and is replaced; a busy machine is given several beats."""

LOADING_SILENCE_S: Final = 20.0
"""While a new process loads: its imports hold the interpreter lock for a second or two, and wait for a cold disk. A
stopped process must be replaced well within `engine.recovery_deadline_s`."""

KEEP_S: Final = 5.0
"""A daemon that started again knows nobody at first, and its first plan may give it all layers. What a worker holds
that it found is not dropped for that: the others are heard within a second or two, loading can take minutes.
The most as well that the others wait for one that is gone: our launchd job is held
back for no longer (its ThrottleInterval)."""

RESTART_PAUSE_FIRST_S: Final = 0.2
RESTART_PAUSE_LIMIT_S: Final = 15.0
LIVED_S: Final = 10.0
"""A process whose group lived this long was sound: its end is a new fault, and is answered at once."""


class WorkerState(StrEnum):
    NONE = "none"
    STARTING = "starting"
    CONNECTED = "connected"
    KILLED = "killed"
    LEAVING = "leaving"


class WorkerLife:
    """Holds what is known of the present process."""

    def __init__(self) -> None:
        self.state = WorkerState.NONE
        self.hello: Hello | None = None
        self.heartbeat: Heartbeat | None = None
        self.restarts = 0
        self.loading = False
        self._has_imported = False
        """Has this process loaded before? Then nothing may silence it for long."""
        self.killed_for = ""
        self.group_used = False
        """Has this process stood in a group, or tried to?"""
        self._heard_at = 0.0
        self._wake_at: float | None = None
        self._deadline: tuple[float, str] | None = None
        self._restart_at = 0.0
        self._keep_until = 0.0
        self._pause_s = 0.0
        self._formed_at: float | None = None

    @property
    def is_connected(self) -> bool:
        return self.state is WorkerState.CONNECTED

    def may_start(self, now: float) -> bool:
        return self.state is WorkerState.NONE and now >= self._restart_at

    def started(self, now: float) -> None:
        self.state = WorkerState.STARTING
        self.expect(START_DEADLINE_S, "the worker did not start", now)

    def greeted(self, hello: Hello, now: float) -> None:
        self.state, self.hello = WorkerState.CONNECTED, hello
        self._keep_until = now + KEEP_S if hello.load is not None else 0.0
        self.group_used = hello.formed
        self._has_imported = hello.load is not None
        self.heard(now)
        self.answered()

    def keep(self, loaded: Loaded, growth: float, now: float) -> None:
        """Another rank is gone, and this one is to hold `growth` times its layers. The other may be back soon, with
        all that it held, and a load costs this one its caches: so what is here is kept for as long as the load
        would take, reckoned from the last one. At the worst the fault costs about twice what it would.
        """
        first, last = loaded.layers
        load_s = loaded.load_s + loaded.layer_s * (last - first) * (growth - 1)
        self._keep_until = max(self._keep_until, now + min(load_s, KEEP_S))

    def keeps_until(self, held: Load | None, wanted: Load, now: float) -> float | None:
        """Until when it is too early to drop the layers `held` for more of them; None where it is not."""
        if held is None or held.folder != wanted.folder or now >= self._keep_until:
            return None
        held_count, wanted_count = (one.last_layer - one.first_layer for one in (held, wanted))
        return self._keep_until if wanted_count > held_count else None

    def heard(self, now: float) -> None:
        self._heard_at = now
        self._wake_at = now + WAKE_SILENCE_S

    def expect(self, within_s: float, text: str, now: float) -> None:
        """`text` says what did not happen, where it does not."""
        self._deadline = (now + within_s, text)

    def answered(self) -> None:
        self._deadline = None

    def loaded(self) -> None:
        self.loading, self._has_imported = False, True
        self.answered()

    def formed(self, now: float) -> None:
        """The first group counts: faults of others that make it form again say nothing about this process."""
        if self._formed_at is None:
            self._formed_at = now

    def killed(self, text: str, now: float) -> None:
        self.state, self.killed_for = WorkerState.KILLED, text
        self.expect(KILL_AGAIN_S, text, now)

    def leaving(self) -> None:
        self.state = WorkerState.LEAVING
        self.answered()

    def gone(self, now: float) -> bool:
        """The process ended. True where that was asked for; else a pause comes before the next."""
        asked = self.state is WorkerState.LEAVING
        if not asked:
            self.restarts += 1
            lived = self._formed_at is not None and now - self._formed_at >= LIVED_S
            self._pause_s = (
                RESTART_PAUSE_FIRST_S
                if lived
                else min(RESTART_PAUSE_LIMIT_S, max(RESTART_PAUSE_FIRST_S, self._pause_s * 2))
            )
            self._restart_at = now + self._pause_s
        self.state, self.hello, self.heartbeat = WorkerState.NONE, None, None
        self.loading, self._has_imported = False, False
        self.group_used, self.killed_for, self._formed_at = False, "", None
        self.answered()
        return asked

    def wants_waking(self, now: float) -> bool:
        """Is it time to have a silent process continued? Said once in a silence."""
        if not self.is_connected or self._wake_at is None or now < self._wake_at:
            return False
        self._wake_at = None
        return True

    def overdue(self, now: float) -> str:
        """What did not happen in time, in words; empty while all is well."""
        if self._deadline is not None and now >= self._deadline[0]:
            return self._deadline[1]
        if self.is_connected and now >= self._silent_at():
            return f"the worker said nothing for {now - self._heard_at:.0f} s"
        return ""

    def forgive(self, late_s: float) -> None:
        """The daemon itself stalled: what the worker said meanwhile is not read yet."""
        self._heard_at += late_s
        if self._wake_at is not None:
            self._wake_at += late_s
        if self._deadline is not None:
            self._deadline = (self._deadline[0] + late_s, self._deadline[1])

    def next_deadline(self, wanted: bool) -> float | None:
        """`wanted`: is only the pause in the way of the next process?"""
        candidates = []
        if self._deadline is not None:
            candidates.append(self._deadline[0])
        if self.is_connected:
            candidates.append(self._silent_at() if self._wake_at is None else self._wake_at)
        if wanted and self.state is WorkerState.NONE:
            candidates.append(self._restart_at)
        return min(candidates, default=None)

    def _silent_at(self) -> float:
        importing = self.loading and not self._has_imported
        return self._heard_at + (LOADING_SILENCE_S if importing else HEARTBEAT_SILENCE_S)
