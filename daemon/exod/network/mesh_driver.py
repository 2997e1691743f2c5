"""The shell around the pure core: feeds it inputs, carries out its commands, wakes it at its deadlines.

Decides nothing. Inputs are handled one after the other, never nested, in the order in which they came. A loop that
ran late says so to the core first, then hands over what waits in the sockets, and only then lets it judge its
timers: a node that stalled declares no path dead.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from exod.core.base.events import (
    CheckRoute,
    Command,
    CommitPlan,
    DatagramReceived,
    Emit,
    ForgetPeer,
    HostSlept,
    Input,
    LogRejected,
    LoopLagged,
    PeerLeft,
    PersistEpoch,
    RaiseIncarnation,
    RouteChecked,
    SendDatagram,
    SendMessage,
    SuspendPlan,
)
from exod.core.node import NodeCore
from exod.model import PathEnds
from exod.network.probe_sockets import ProbeSockets
from exod.platform.this_host import since_boot_s

log = structlog.get_logger()

LAG_LIMIT_S: Final = 0.025
"""A timer later than this is a stall: half of the fastest probe interval (20 a second)."""

SLEPT_S: Final = 1.0
"""The two clocks drift apart by microseconds between two turns, which are at most some seconds apart."""

DRAIN_AFTER_S: Final = 0.005
"""A timer later than this finds datagrams that the loop has not seen: on time there are none, and asking each
socket without a result at each deadline was a tenth of the daemon's idle cost."""

TIMER_TICK_S: Final = 0.001
"""The event loop counts whole milliseconds from a clock that it reads once a turn. A delay that is not rounded up
beyond the next tick fires before it is due, and turns the loop round and round until it is."""

TURN_LIMIT: Final = 128
"""Things done in one turn: a datagram for each of 8 peers' 16 paths. Beyond, sockets and clients come first."""

LAGS_KEPT: Final = 256
"""Stalls remembered for the metrics: a loop that has more in a minute is in trouble whatever the worst one was."""

REJECTION_LOG_INTERVAL_S: Final = 60.0
"""Each (address, code) is logged once a minute; so many of them are remembered, the oldest go first."""


class MeshDriver:
    """Owns the running NodeCore. `carry_out` gets every command that is not the driver's own."""

    def __init__(
        self,
        core: NodeCore,
        path_source: Callable[[PathEnds], str | None],
        sleep_clock: Callable[[], float] = since_boot_s,
    ) -> None:
        self.core = core
        self._sleep_clock = sleep_clock
        self._asleep_s = sleep_clock() - time.monotonic()
        """In the host's life, and a constant."""
        self._path_source = path_source
        self._prober: ProbeSockets | None = None
        self._carry_out: Callable[[Command], None] = lambda command: None
        self._inputs: deque[Input] = deque()
        self._working = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None
        self._due: float | None = None
        """What the core waits for; within a turn it moves on before the timer does."""
        self._told_until = 0.0
        """Up to then the core knows how late this loop was."""
        self._rejections: dict[str, tuple[float, int]] = {}
        """By code: when one was logged last, and how many were not since."""
        self._closed = False
        self.datagrams_sent = 0
        self.datagrams_received = 0
        self.datagrams_rejected = 0
        self._lags: deque[tuple[float, float]] = deque(maxlen=LAGS_KEPT)
        """(when, how late) of the newest stalls."""

    @property
    def worst_lag_s(self) -> float:
        """The worst stall of the loop in the last minute."""
        minute_ago = time.monotonic() - 60.0
        return max((lag for at, lag in self._lags if at > minute_ago), default=0.0)

    def start(self, prober: ProbeSockets, carry_out: Callable[[Command], None]) -> None:
        self._prober, self._carry_out = prober, carry_out
        self._schedule(time.monotonic())

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def feed(self, event: Input) -> None:
        """Hands `event` to the core, after those that wait already."""
        if isinstance(event, DatagramReceived):
            self.datagrams_received += 1
        self._inputs.append(event)
        self._work()

    def forget_peers(self) -> None:
        """To this node all its peers are gone."""
        for peer, link in list(self.core.links.items()):
            self.feed(PeerLeft(peer, link.peer_incarnation))
            self.feed(ForgetPeer(peer))

    def _work(self) -> None:
        """Handles the inputs that wait, and what they made due."""
        if self._working or self._closed:
            return
        if self._due is not None and time.monotonic() - self._due > DRAIN_AFTER_S:
            return  # this loop ran late: `_wake` comes now, says so, drains the sockets, and only then judges
        self._turn(woken=False)

    def _turn(self, *, woken: bool) -> None:
        """Inputs first, with what carrying out a command adds to them; then what is due, each at its own `now`: a
        datagram says how long its echo was held. What is overdue is left to `_wake`: it drains the sockets first.
        """
        self._working = True
        try:
            for _ in range(TURN_LIMIT):
                self._take_inputs()
                now, due = time.monotonic(), self.core.next_deadline()
                self._due = due
                if due is None or due > now or (now - due > DRAIN_AFTER_S and not woken):
                    break
                if self._judge_lag(now):
                    self._drain()  # the process was stopped in the midst of this very turn
                    continue
                self._execute(self.core.handle_timer(now))
            self._take_inputs()
        finally:
            self._working = False
        self._schedule(time.monotonic())

    def _take_inputs(self) -> None:
        while self._inputs:
            now = time.monotonic()
            self._judge_lag(now)
            self._execute(self.core.handle(self._inputs.popleft(), now))

    def _drain(self) -> None:
        if self._prober is not None:
            self._prober.drain()

    def _judge_lag(self, now: float) -> bool:
        """Tells the core of a stall, once for each: what is still overdue afterwards is no second one, and would
        excuse silence that nobody slept through. Returns whether there was one.
        """
        self._judge_sleep(now)
        if self._due is None:
            return False
        lag = now - max(self._due, self._told_until)
        if lag <= LAG_LIMIT_S:
            return False
        self._told_until = now
        self._lags.append((now, lag))
        self._execute(self.core.handle(LoopLagged(lag), now))
        return True

    def _judge_sleep(self, now: float) -> None:
        asleep_s = self._sleep_clock() - now
        slept_s, self._asleep_s = asleep_s - self._asleep_s, asleep_s
        if slept_s >= SLEPT_S:
            log.info("host_slept", seconds=slept_s)
            self._execute(self.core.handle(HostSlept(slept_s), now))

    def _wake(self) -> None:
        self._timer = None
        if self._closed or self._prober is None:
            return
        now = time.monotonic()
        self._judge_lag(now)
        if self._due is not None and now - self._due > DRAIN_AFTER_S:
            self._drain()
        self._turn(woken=True)

    def _schedule(self, now: float) -> None:
        self._due = due = self.core.next_deadline()
        if due == self._timer_due and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due = due
        if due is not None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_timer_delay_s(due - now), self._wake)

    def _execute(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case SendDatagram():
                    self.datagrams_sent += 1
                    if self._prober is not None:
                        self._prober.send(command)
                case CheckRoute(peer=peer, path=path, ends=ends):
                    self._inputs.append(RouteChecked(peer, path, self._path_source(ends)))
                case LogRejected():
                    self.datagrams_rejected += 1
                    self._log_rejected(command)
                case SendMessage() | Emit() | CommitPlan() | SuspendPlan() | PersistEpoch() | RaiseIncarnation():
                    self._carry_out(command)

    def _log_rejected(self, command: LogRejected) -> None:
        """One line a minute for each kind, for all senders together: a sender can choose its address."""
        now = time.monotonic()
        last, left_out = self._rejections.get(command.code, (-REJECTION_LOG_INTERVAL_S, 0))
        if now - last < REJECTION_LOG_INTERVAL_S:
            self._rejections[command.code] = (last, left_out + 1)
            return
        self._rejections[command.code] = (now, 0)
        log.warning(
            "datagram_rejected",
            address=command.remote_address,
            code=command.code,
            text=command.text,
            left_out=left_out,
        )


def _timer_delay_s(delay_s: float) -> float:
    """What the event loop must be told, so that it wakes us by one or two ticks late and never early."""
    return (math.ceil(delay_s / TIMER_TICK_S) + 1) * TIMER_TICK_S if delay_s > 0 else 0.0
