"""The life of this rank's process, as the daemon knows it: whether there is one, and how long it may be silent.

There is none, or one is being started. It says hello and is connected: only then is it told anything. It is killed
when it does not do in time what it should, or asked to leave when no rank is wanted here; whichever it is, its end
alone makes room for the next one. An end that nobody asked for is followed by a pause that doubles, and is
forgotten once a group lived for a while. Every state but NONE and LEAVING has a deadline (the shell escalates a
leave by itself).

Decides when a process is overdue and when the next may start; never what it is sent. Times in monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

from exod.core.base.errors import IllegalMoveError
from exod.core.engine.engine_events import StartWorker
from exod.core.engine.memory_kills import MemoryKills
from exod.core.engine.rank.wired_watch import LOOK_AGAIN_S, WiredWatch
from exoengine.protocol import Heartbeat, Hello, Load, Loaded


class Expected(msgspec.Struct, frozen=True):
    """Something that the process must do in time, and what people read where it did not."""

    within_s: float
    missed: str


STARTING: Final = Expected(60.0, "the worker did not start")
"""Importing MLX and transformers takes a second or two; a cold disk on a busy machine many more."""

LOADING: Final = Expected(120.0, "loading made no progress")
"""Loading reports its progress every second or so; a disk that says nothing for two minutes has failed."""

PREPARING: Final = Expected(10.0, "leaving the old group did not end")
"""A worker gives its ranks 3 s to come to a step's end, then aborts; a kernel that runs delays that."""

FORMING: Final = Expected(8.0, "forming the group did not end")
"""A worker says within 5 s that a neighbour did not come; one that does not even say so is replaced. Below the
coordinator's deadline, so that the next attempt finds a new process."""

LAG_S: Final = 0.5
"""A timer that comes later than this was held up by our own process."""

KILL_AGAIN_S: Final = 10.0
"""A kill can miss a process that was just being started; it is repeated."""

WAKE_SILENCE_S: Final = 2.5
"""A worker's control thread sends something every second. One that is silent for two heartbeats may have been
stopped from outside: it is continued, within the 5 s that its neighbours give a step. One that is only slow does
not notice.
"""

HEARTBEAT_SILENCE_S: Final = 8.0
"""A process that did not come back from that hangs, and is replaced; a busy machine is given several heartbeats."""

LOADING_SILENCE_S: Final = 20.0
"""While a new process loads: its imports hold the interpreter lock for a second or two, and wait for a cold disk. A
stopped process must be replaced well within `engine.recovery_deadline_s`."""

KEEP_S: Final = 5.0
"""A daemon that started again knows nobody at first, and its first plan may give it all layers. What its worker
holds is not dropped for that: the others are heard within a second or two, loading can take minutes. It is also the
longest that the others wait for one that is gone: our launchd job is held back for no longer (its
ThrottleInterval)."""

RESTART_PAUSE_FIRST_S: Final = 0.2
RESTART_PAUSE_LIMIT_S: Final = 15.0
LIVED_S: Final = 3.0
"""A process whose group lived this long was sound: its end is a new fault, and is answered at once. A fault of its
own shows as it loads, or in its first steps; three seconds of answers are worth the half that a start costs. With
ten, one that somebody killed every eight seconds was started after 0.2, 0.4 ... 6.4 s."""

RECENT_MOVES: Final = 16
"""Kept for the error of an illegal move: four whole lives of a process."""


class WorkerState(StrEnum):
    NONE = "none"
    STARTING = "starting"
    CONNECTED = "connected"
    KILLED = "killed"
    LEAVING = "leaving"


class WorkerEvent(StrEnum):
    STARTED = "started"
    SAID_HELLO = "said hello"
    KILLED = "killed"
    ASKED_TO_LEAVE = "asked to leave"
    ENDED = "ended"


TRANSITIONS: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (WorkerState.NONE, WorkerEvent.STARTED): WorkerState.STARTING,
    (WorkerState.STARTING, WorkerEvent.SAID_HELLO): WorkerState.CONNECTED,
    (WorkerState.STARTING, WorkerEvent.KILLED): WorkerState.KILLED,
    (WorkerState.STARTING, WorkerEvent.ENDED): WorkerState.NONE,
    (WorkerState.CONNECTED, WorkerEvent.KILLED): WorkerState.KILLED,
    (WorkerState.CONNECTED, WorkerEvent.ASKED_TO_LEAVE): WorkerState.LEAVING,
    (WorkerState.CONNECTED, WorkerEvent.ENDED): WorkerState.NONE,
    (WorkerState.KILLED, WorkerEvent.KILLED): WorkerState.KILLED,
    (WorkerState.KILLED, WorkerEvent.ENDED): WorkerState.NONE,
    (WorkerState.LEAVING, WorkerEvent.ENDED): WorkerState.NONE,
}


class WorkerLife:
    """Holds what is known of the present process."""

    def __init__(self) -> None:
        self._state = WorkerState.NONE
        self.wired = WiredWatch()
        self.memory = MemoryKills()
        self._recent: deque[str] = deque(maxlen=RECENT_MOVES)
        self.hello: Hello | None = None
        self.heartbeat: Heartbeat | None = None
        self.restarts = 0
        self.loading = False
        self._has_imported = False
        """Has this process loaded before? Then nothing may silence it for long."""
        self.killed_for = ""
        self._heard_at = 0.0
        self._wake_at: float | None = None
        self._deadline: tuple[float, str] | None = None
        self._restart_at = 0.0
        self._keep_until = 0.0
        self._pause_s = 0.0
        self._formed_at: float | None = None
        self._postponed = False

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def is_connected(self) -> bool:
        return self._state is WorkerState.CONNECTED

    @property
    def restart_at(self) -> float:
        """From then on another process may be started."""
        return self._restart_at

    def accepts(self, event: WorkerEvent) -> bool:
        """Is this a move that the present state allows? For what comes from outside."""
        return (self._state, event) in TRANSITIONS

    def _apply(self, event: WorkerEvent, now: float) -> None:
        """The one setter of the state."""
        after = TRANSITIONS.get((self._state, event))
        if after is None:
            raise IllegalMoveError(
                "no such move of a worker", state=self._state, event=event, story=tuple(self._recent)
            )
        self._recent.append(f"{now:.3f} {self._state} + {event} -> {after}")
        self._state = after

    # --- the moves ------------------------------------------------------------------------------------------

    def may_start(self, now: float) -> bool:
        if self._state is not WorkerState.NONE or now < self._restart_at:
            return False
        if self.wired.blocks:
            self._restart_at = now + LOOK_AGAIN_S
            return False
        return True

    def started(self, now: float) -> None:
        self._apply(WorkerEvent.STARTED, now)
        self.wired.started()
        self.expect(STARTING, now)

    def start(self, now: float) -> list[StartWorker]:
        """Nothing where it may not start now."""
        if not self.may_start(now):
            return []
        self.started(now)
        return [StartWorker()]

    def said_hello(self, hello: Hello, now: float) -> None:
        self._apply(WorkerEvent.SAID_HELLO, now)
        self.hello = hello
        self._keep_until = now + KEEP_S if hello.load is not None else 0.0
        self._has_imported = hello.load is not None
        self.heard(now)
        self.done()

    def killed(self, text: str, now: float) -> None:
        self._apply(WorkerEvent.KILLED, now)
        self.killed_for = text
        self.expect(Expected(KILL_AGAIN_S, text), now)

    def asked_to_leave(self, now: float) -> None:
        self._apply(WorkerEvent.ASKED_TO_LEAVE, now)
        self.done()

    def ended(self, now: float) -> bool:
        """The process ended. True where that was asked for; else a pause comes before the next."""
        asked = self._state is WorkerState.LEAVING
        self._apply(WorkerEvent.ENDED, now)
        if not asked:
            self.restarts += 1
            lived = self._formed_at is not None and now - self._formed_at >= LIVED_S
            longer_s = min(RESTART_PAUSE_LIMIT_S, max(RESTART_PAUSE_FIRST_S, self._pause_s * 2))
            self._pause_s = 0.0 if lived else longer_s
            self._restart_at = now + self._pause_s
        self.wired.ended(self.heartbeat.memory_bytes if self.heartbeat is not None else 0, now)
        self.hello = self.heartbeat = None
        self.loading, self._has_imported = False, False
        self.killed_for, self._formed_at = "", None
        self.done()
        return asked

    def killed_for_memory(self, text: str, now: float) -> str:
        """After its end. The text of giving up, where this was once too often; else the next start waits longer."""
        self._restart_at = now + self.memory.killed(text, now)
        return self.memory.text(now) if self.memory.is_spent(now) else ""

    # --- what it holds --------------------------------------------------------------------------------------

    def keep(self, loaded: Loaded, growth: float, now: float) -> None:
        """Another rank is gone, and this one is to hold `growth` times its layers. The other may be back soon, with
        all that it held, and a load costs this one its caches: so what is here is kept for as long as the load
        would take, by the pace of the last one. At the worst the fault costs about twice what it would.
        """
        first, last = loaded.layers
        load_s = loaded.load_s + loaded.layer_s * (last - first) * (growth - 1)  # of parts of layers as well
        self._keep_until = max(self._keep_until, now + min(load_s, KEEP_S))

    def keeps_until(self, held: Load | None, wanted: Load, now: float) -> float | None:
        """Until when it is too early to drop the layers `held` for more of them; None where it is not."""
        if held is None or held.folder != wanted.folder or now >= self._keep_until:
            return None
        held_count, wanted_count = ((one.last_layer - one.first_layer) / one.parts for one in (held, wanted))
        return self._keep_until if wanted_count > held_count else None

    def loaded(self) -> None:
        self.loading, self._has_imported = False, True
        self.done()

    def formed(self, now: float) -> None:
        """The first group counts: faults of others that make it form again say nothing about this process."""
        if self._formed_at is None:
            self._formed_at = now

    # --- how long it may be silent --------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        self._heard_at = now
        self._wake_at = now + WAKE_SILENCE_S

    def expect(self, expected: Expected, now: float) -> None:
        self._deadline = (now + expected.within_s, expected.missed)

    def done(self) -> None:
        """What was expected happened, or is not expected any more."""
        self._deadline = None

    def wants_waking(self, now: float) -> bool:
        """Is it time to have a silent process continued? True once in a silence."""
        if not self.is_connected or self._wake_at is None or now < self._wake_at:
            return False
        self._wake_at = None
        return True

    def overdue(self, now: float) -> str:
        """What did not happen in time, as a text for people; empty while all is well."""
        if self._deadline is not None and now >= self._deadline[0]:
            return self._deadline[1]
        if self.is_connected and now >= self._silent_at():
            return f"the worker said nothing for {now - self._heard_at:.0f} s"
        return ""

    def is_unheard(self, late_s: float) -> bool:
        """The timer came so late that the daemon itself stalled: what the worker said meanwhile is not read yet.
        Deadlines are put off then, once.
        """
        self._postponed = late_s > LAG_S and not self._postponed
        if self._postponed:
            self._postpone(late_s)
        return self._postponed

    def _postpone(self, late_s: float) -> None:
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
        if wanted and self._state is WorkerState.NONE:
            candidates.append(self._restart_at)
        return min(candidates, default=None)

    def _silent_at(self) -> float:
        importing = self.loading and not self._has_imported
        return self._heard_at + (LOADING_SILENCE_S if importing else HEARTBEAT_SILENCE_S)
