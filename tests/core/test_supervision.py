"""A child's life: started again with patience, stopped with grace, given up where it is hopeless."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exod.core.faults import IllegalMoveError
from exod.core.supervision import (
    BecameReady,
    Child,
    ChildCommand,
    ChildInput,
    ChildLimits,
    ChildState,
    Exited,
    GaveUp,
    Kill,
    Spawn,
    StartRequested,
    StopRequested,
    Terminate,
)

LIMITS = ChildLimits()


def test_it_starts_runs_and_stops() -> None:
    child = Child("broker")
    assert child.handle(StartRequested(), 0.0) == [Spawn()]
    assert child.handle(BecameReady(), 0.1) == []
    assert child.state is ChildState.RUNNING
    assert child.handle(StopRequested(), 1.0) == [Terminate()]
    assert child.handle(Exited("exit code 0"), 1.1) == []
    assert child.state is ChildState.STOPPED


def test_a_crash_is_followed_by_a_pause_that_doubles_to_a_cap() -> None:
    child = Child("broker", ChildLimits(failures=20))
    child.handle(StartRequested(), 0.0)
    now, pauses = 0.0, []
    for _ in range(9):
        child.handle(Exited("signal 11"), now)
        assert child.deadline is not None
        pauses.append(child.deadline - now)
        assert child.handle_timer(child.deadline - 0.001) == []
        now = child.deadline
        assert child.handle_timer(now) == [Spawn()]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LIMITS.longest_pause_s


def test_a_stable_run_clears_the_count() -> None:
    child = Child("broker")
    child.handle(StartRequested(), 0.0)
    for now in (0.1, 1.0, 3.0):
        child.handle(Exited("signal 11"), now)
        assert child.deadline is not None
        child.handle_timer(child.deadline)
    child.handle(BecameReady(), 10.0)
    child.handle(Exited("signal 11"), 10.0 + LIMITS.stable_s)
    assert child.deadline == 10.0 + LIMITS.stable_s + LIMITS.first_pause_s


def test_it_gives_up_and_says_why_and_can_be_asked_again() -> None:
    child = Child("broker")
    child.handle(StartRequested(), 0.0)
    commands: list[ChildCommand] = []
    while child.state is not ChildState.FATAL:
        commands = child.handle(Exited("port 1883 is in use"), 0.0)
        if child.deadline is not None:
            child.handle_timer(child.deadline)
    (told,) = commands
    assert isinstance(told, GaveUp)
    assert "port 1883 is in use" in told.text
    assert child.handle(StartRequested(), 1.0) == [Spawn()]
    assert child.failures == 0


def test_grace_then_kill() -> None:
    child = Child("broker")
    child.handle(StartRequested(), 0.0)
    child.handle(StopRequested(), 1.0)
    assert child.handle_timer(1.0 + LIMITS.grace_s / 2) == []
    assert child.handle_timer(1.0 + LIMITS.grace_s) == [Kill()]
    assert child.handle_timer(1.0 + 2 * LIMITS.grace_s) == [Kill()], "a kill that was missed is said again"


def test_a_child_that_never_gets_ready_is_killed() -> None:
    child = Child("broker")
    child.handle(StartRequested(), 0.0)
    assert child.handle_timer(LIMITS.ready_within_s) == [Kill()]
    child.handle(Exited("killed"), LIMITS.ready_within_s + 0.1)
    assert child.state is ChildState.BACKOFF


def test_a_start_during_a_stop_happens_after_it() -> None:
    child = Child("broker")
    child.handle(StartRequested(), 0.0)
    child.handle(StopRequested(), 1.0)
    assert child.handle(StartRequested(), 1.1) == []
    assert child.handle(Exited("exit code 0"), 1.2) == [Spawn()]


def test_what_cannot_happen_is_an_illegal_move_with_its_story() -> None:
    child = Child("broker")
    with pytest.raises(IllegalMoveError, match="broker: Exited cannot happen while stopped"):
        child.handle(Exited("?"), 0.0)


class LivingChild(RuleBasedStateMachine):
    """Every order of requests, deaths and time: exactly one process, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child("broker", ChildLimits(failures=3))
        self.now = 0.0
        self.alive = False
        self.wanted = False

    def _do(self, commands: list[ChildCommand]) -> None:
        for command in commands:
            match command:
                case Spawn():
                    assert not self.alive, "a second process"
                    assert self.wanted, "started although nobody wants it"
                    self.alive = True
                case Terminate() | Kill():
                    assert self.alive, "nobody to kill"
                case GaveUp():
                    assert not self.alive

    @rule(event=st.sampled_from([StartRequested(), StopRequested()]))
    def ask(self, event: ChildInput) -> None:
        self.wanted = isinstance(event, StartRequested)
        self._do(self.child.handle(event, self.now))

    @rule()
    def ready(self) -> None:
        if self.alive:
            self._do(self.child.handle(BecameReady(), self.now))

    @rule()
    def die(self) -> None:
        if self.alive:
            self.alive = False
            self._do(self.child.handle(Exited("died"), self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.child.deadline is not None and self.child.deadline <= end:
            self.now = max(self.now, self.child.deadline)
            self._do(self.child.handle_timer(self.now))
        self.now = end

    @invariant()
    def the_state_tells_whether_it_lives(self) -> None:
        living = (ChildState.STARTING, ChildState.RUNNING, ChildState.STOPPING)
        assert self.alive is (self.child.state in living)


TestLivingChild = LivingChild.TestCase
TestLivingChild.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
