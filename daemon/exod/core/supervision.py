"""A child process's life: stopped, starting, running, backoff, stopping, fatal.

The theory. The one who runs the machine tells it what happened (asked, ready, exited, time passed); it answers
with what to do (spawn, terminate, kill, give up). A child that ends unasked is started again after a pause that
doubles up to a cap and is forgotten once the child ran well for a while, so a child that crashes once a day
always comes back at once, and one that cannot start is not hammered. Too many failures in a row are fatal: a
person has to look. A stop asks, waits for the grace, then kills.

Decides when to start and stop; never how, and never what the child does. Used for the broker, and for any child
whose life needs no more than this.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from exod.core.faults import IllegalMoveError

# --- values -------------------------------------------------------------------------------------------------


class ChildState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    FATAL = "fatal"


class StartRequested(msgspec.Struct, frozen=True):
    """Run the child from now on. Also the way out of FATAL."""


class StopRequested(msgspec.Struct, frozen=True):
    """Do not run it any more."""


class BecameReady(msgspec.Struct, frozen=True):
    """The child does its work: it answered, or connected."""


class Exited(msgspec.Struct, frozen=True):
    """The child is gone. `how` is for people: exit code, signal, or why it could not be spawned."""

    how: str


ChildInput = StartRequested | StopRequested | BecameReady | Exited


class Spawn(msgspec.Struct, frozen=True):
    """Start the process, then hand in BecameReady or Exited."""


class Terminate(msgspec.Struct, frozen=True):
    """Ask it to end (SIGTERM)."""


class Kill(msgspec.Struct, frozen=True):
    """End it (SIGKILL)."""


class GaveUp(msgspec.Struct, frozen=True):
    """The child is FATAL: tell a person. `text` says what happened, how often, and the last cause."""

    text: str


ChildCommand = Spawn | Terminate | Kill | GaveUp


class ChildLimits(msgspec.Struct, frozen=True):
    first_pause_s: float = 0.5
    """launchd and systemd wait 10 s and 0.1 s; half a second is unnoticed by a person and spares the machine."""
    longest_pause_s: float = 30.0
    stable_s: float = 30.0
    """A run of this length clears the count of failures: the next end is a new fault."""
    failures: int = 8
    """In a row: 0.5 + 1 + ... + 30 s, a minute and a half of trying."""
    ready_within_s: float = 20.0
    """A child that starts and never becomes ready is killed and counts as failed."""
    grace_s: float = 5.0


# --- the machine --------------------------------------------------------------------------------------------


class Child:
    """One child. `handle` and `handle_timer` return commands; `deadline` is when the timer has something to do."""

    def __init__(self, name: str, limits: ChildLimits | None = None) -> None:
        self.name = name
        self.state = ChildState.STOPPED
        self.failures = 0
        self.last_end = ""
        self.deadline: float | None = None
        self.story: list[str] = []
        """The newest changes of state, for an error's text."""
        self._limits = limits or ChildLimits()
        self._wanted = False
        self._running_since = 0.0

    def handle(self, event: ChildInput, now: float) -> list[ChildCommand]:
        """IllegalMoveError where the event cannot happen in this state: the caller lost track of its child."""
        action = _ACTIONS.get((self.state, type(event)))
        if action is None:
            raise IllegalMoveError(
                f"{self.name}: {type(event).__name__} cannot happen while {self.state}", story=self.story[-6:]
            )
        if isinstance(event, Exited):
            self.last_end = event.how
        return action(self, now)

    def handle_timer(self, now: float) -> list[ChildCommand]:
        if self.deadline is None or now < self.deadline:
            return []
        match self.state:
            case ChildState.BACKOFF:
                return self._spawn(now)
            case ChildState.STARTING:
                self.last_end = f"not ready within {self._limits.ready_within_s:g} s"
                self.deadline = now + self._limits.grace_s
                return [Kill()]
            case ChildState.STOPPING:
                self.deadline = now + self._limits.grace_s
                return [Kill()]
            case ChildState.RUNNING:
                self.failures = 0
                self.deadline = None
        return []

    # --- actions: what each row of the table does --------------------------------------------------------------

    def _nothing(self, now: float) -> list[ChildCommand]:
        return []

    def _begin(self, now: float) -> list[ChildCommand]:
        self._wanted = True
        self.failures = 0
        return self._spawn(now)

    def _spawn(self, now: float) -> list[ChildCommand]:
        self._set(ChildState.STARTING, now, now + self._limits.ready_within_s)
        return [Spawn()]

    def _ready(self, now: float) -> list[ChildCommand]:
        self._running_since = now
        self._set(ChildState.RUNNING, now, now + self._limits.stable_s)
        return []

    def _failed(self, now: float) -> list[ChildCommand]:
        if self.state is ChildState.RUNNING and now - self._running_since >= self._limits.stable_s:
            self.failures = 0
        self.failures += 1
        if self.failures > self._limits.failures:
            self._set(ChildState.FATAL, now, None)
            return [GaveUp(f"{self.name} failed {self.failures} times in a row, lastly: {self.last_end}")]
        self._set(ChildState.BACKOFF, now, now + self.pause_s())
        return []

    def _end(self, now: float) -> list[ChildCommand]:
        self._wanted = False
        self._set(ChildState.STOPPING, now, now + self._limits.grace_s)
        return [Terminate()]

    def _forget(self, now: float) -> list[ChildCommand]:
        self._wanted = False
        self._set(ChildState.STOPPED, now, None)
        return []

    def _again(self, now: float) -> list[ChildCommand]:
        """Asked for while it is being stopped: it starts when it has ended."""
        self._wanted = True
        return []

    def _ended(self, now: float) -> list[ChildCommand]:
        if self._wanted:
            return self._begin(now)
        return self._forget(now)

    def _unwanted(self, now: float) -> list[ChildCommand]:
        self._wanted = False
        return []

    def pause_s(self) -> float:
        """Before the next start: doubling from the first, to the cap."""
        limits = self._limits
        return float(min(limits.longest_pause_s, limits.first_pause_s * 2 ** max(0, self.failures - 1)))

    def _set(self, state: ChildState, now: float, deadline: float | None) -> None:
        """The one setter of the state."""
        self.story = [*self.story[-19:], f"{now:.3f} {self.state} -> {state}"]
        self.state = state
        self.deadline = deadline


_ACTIONS: dict[tuple[ChildState, type[msgspec.Struct]], Callable[[Child, float], list[ChildCommand]]] = {
    (ChildState.STOPPED, StartRequested): Child._begin,
    (ChildState.STOPPED, StopRequested): Child._nothing,
    (ChildState.STARTING, StartRequested): Child._nothing,
    (ChildState.STARTING, StopRequested): Child._end,
    (ChildState.STARTING, BecameReady): Child._ready,
    (ChildState.STARTING, Exited): Child._failed,
    (ChildState.RUNNING, StartRequested): Child._nothing,
    (ChildState.RUNNING, StopRequested): Child._end,
    (ChildState.RUNNING, BecameReady): Child._nothing,
    (ChildState.RUNNING, Exited): Child._failed,
    (ChildState.BACKOFF, StartRequested): Child._nothing,
    (ChildState.BACKOFF, StopRequested): Child._forget,
    (ChildState.STOPPING, StartRequested): Child._again,
    (ChildState.STOPPING, StopRequested): Child._unwanted,
    (ChildState.STOPPING, BecameReady): Child._nothing,
    (ChildState.STOPPING, Exited): Child._ended,
    (ChildState.FATAL, StartRequested): Child._begin,
    (ChildState.FATAL, StopRequested): Child._forget,
}
"""State × input -> action. What is missing cannot happen: a child that is not there neither ends nor gets ready."""
