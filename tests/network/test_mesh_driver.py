"""The shell around the core, on a real loop with a real socket: when it wakes the core, and what comes first."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from exod.core.base.events import (
    Command,
    DatagramReceived,
    HostSlept,
    Input,
    LogRejected,
    LoopLagged,
    SendDatagram,
    SendFailed,
)
from exod.core.node import NodeCore
from exod.model import Kind, LocalAddress, NodeId, PathId
from exod.network.mesh_driver import MeshDriver
from exod.network.probe_sockets import ProbeSockets
from exod.platform.this_host import current

pytestmark = pytest.mark.anyio

HOME = LocalAddress("lo0" if current().system == "darwin" else "lo", Kind.LOOPBACK, "127.0.0.1", 8)
BEAT_S = 0.02
STALL_S = 0.1
PATIENCE_S = 5.0


class RecordingCore:
    """Wants to be woken every `beat_s`, and remembers what it was told, in order."""

    def __init__(self, beat_s: float) -> None:
        self.beat_s = beat_s
        self.due = time.monotonic() + beat_s
        self.told: list[Input | str] = []
        self.late_s: list[float] = []
        self.answers: list[Command] = []

    def handle(self, event: Input, now: float) -> list[Command]:
        self.told.append(event)
        if isinstance(event, LoopLagged) and event.lag_s > 0.0:
            self.due = now  # as the core does: after a stall it looks at everything at once
        return self._answer()

    def handle_timer(self, now: float) -> list[Command]:
        self.told.append("timer")
        self.late_s.append(now - self.due)
        self.due = now + self.beat_s
        return self._answer()

    def next_deadline(self) -> float:
        return self.due

    def _answer(self) -> list[Command]:
        answers, self.answers = self.answers, []
        return answers


class StallingCore(RecordingCore):
    """Stands still once, within a turn that its timer began, until its next beat is overdue."""

    stall: Callable[[], None] | None = None

    def handle_timer(self, now: float) -> list[Command]:
        commands = super().handle_timer(now)
        if self.stall is not None:
            self.told.append("stall")
            self.stall()
            self.stall = None
            time.sleep(STALL_S)
        return commands


@contextmanager
def driven(core: RecordingCore) -> Iterator[tuple[MeshDriver, int, list[Command]]]:
    """A driver that runs on the present loop; gives it with its UDP port and the commands that it carried out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    carried: list[Command] = []
    driver = MeshDriver(cast(NodeCore, core), lambda remote: "127.0.0.1")
    prober = ProbeSockets(current(), port, driver.feed)
    prober.follow((HOME,))
    driver.start(prober, carried.append)
    try:
        yield driver, port, carried
    finally:
        driver.close()
        prober.close()


async def until(check: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not check():  # noqa: ASYNC110  what is waited for is a list that grows
            await asyncio.sleep(0.01)


def send_to(port: int, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, ("127.0.0.1", port))


async def test_it_wakes_the_core_at_its_deadline_and_never_before() -> None:
    core = RecordingCore(BEAT_S)
    with driven(core):
        await until(lambda: len(core.late_s) >= 20)
    assert min(core.late_s) >= 0.0, "a timer that is early turns the loop until it is due"


async def test_what_an_input_makes_due_is_done_in_its_turn_and_what_is_overdue_after_the_sockets() -> None:
    core = RecordingCore(PATIENCE_S)
    with driven(core) as (driver, _port, _carried):
        core.due = time.monotonic()
        driver.feed(LoopLagged(0.0))
        assert core.told[-1] == "timer", "no other turn of the loop for it"
        assert core.told.count("timer") == 1
        core.due = time.monotonic() - 0.02
        driver.feed(LoopLagged(0.0))
        assert core.told[-1] != "timer"
        await until(lambda: core.told[-1] == "timer")


async def test_after_a_stall_the_core_hears_of_it_then_gets_what_waited_and_only_then_judges() -> None:
    core = RecordingCore(BEAT_S)
    with driven(core) as (driver, port, _):
        await until(lambda: len(core.late_s) >= 2)
        core.told.clear()
        stalled_at = time.monotonic()
        for number in range(3):
            send_to(port, b"sent during the stall, %d" % number)
        time.sleep(0.1)  # noqa: ASYNC251  the stall itself
        await until(lambda: "timer" in core.told)
        before_timer = core.told[: core.told.index("timer")]
        kinds = [type(event) for event in before_timer]
        assert kinds[0] is LoopLagged
        assert kinds.count(DatagramReceived) == 3
        lags_s = [event.lag_s for event in before_timer if isinstance(event, LoopLagged)]
        assert max(lags_s) > 0.05
        assert sum(lags_s) <= time.monotonic() - stalled_at, "a stall is told once, however much waited"
        assert driver.worst_lag_s == max(lags_s)


async def test_a_stall_in_the_midst_of_a_turn_is_told_like_any_other() -> None:
    """SIGSTOP finds a daemon where it is, and that may be in the turn that its own timer began."""
    core = StallingCore(BEAT_S)
    with driven(core) as (driver, port, _):
        core.stall = lambda: send_to(port, b"sent during the stall")
        await until(lambda: "stall" in core.told and "timer" in core.told[core.told.index("stall") :])
        since = core.told[core.told.index("stall") + 1 :]
        before_timer = since[: since.index("timer")]
        assert [type(event) for event in before_timer] == [LoopLagged, DatagramReceived]
        assert isinstance(before_timer[0], LoopLagged)
        assert before_timer[0].lag_s > STALL_S / 2
        assert driver.worst_lag_s == before_timer[0].lag_s


async def test_a_sleep_of_the_host_is_told_once_before_what_came_after_it() -> None:
    """No process can put this host to sleep: the clock that goes on meanwhile is the test's."""
    core, slept = RecordingCore(PATIENCE_S), [0.0]
    driver = MeshDriver(cast(NodeCore, core), lambda ends: None, lambda: time.monotonic() + slept[0])
    for slept[0] in (0.0, 0.4, 60.4, 60.4):
        driver.feed(LoopLagged(0.0))
    assert [type(event) for event in core.told] == [LoopLagged] * 2 + [HostSlept] + [LoopLagged] * 2
    told = core.told[2]
    assert isinstance(told, HostSlept)
    assert told.slept_s == pytest.approx(60.0, abs=0.1)
    driver.close()


async def test_a_datagram_has_the_kernels_stamp_however_late_it_is_read() -> None:
    core = RecordingCore(PATIENCE_S)
    with driven(core) as (_, port, _carried):
        before = time.monotonic()
        send_to(port, b"early")
        after = time.monotonic()
        time.sleep(0.05)  # noqa: ASYNC251  nobody reads meanwhile
        await until(lambda: core.told)
    (event,) = (event for event in core.told if isinstance(event, DatagramReceived))
    assert (event.data, event.local_address, event.remote_address) == (b"early", "127.0.0.1", "127.0.0.1")
    # The stamp is of the wall clock, moved to the monotonic one: a slewing clock costs it microseconds.
    assert before - 0.001 <= event.received_at <= after + 0.02


async def test_what_cannot_be_sent_is_told_and_what_no_address_carries_too() -> None:
    core = RecordingCore(PATIENCE_S)
    with driven(core) as (driver, port, _):
        path, peer = PathId("127.0.0.1-127.0.0.9"), NodeId("0" * 16)

        def sending(local: str, remote: str, remote_port: int) -> SendDatagram:
            return SendDatagram(peer, path, 1, HOME.interface, local, remote, remote_port, b"probe")

        core.answers = [
            sending("127.0.0.7", "127.0.0.1", port),  # an address that is not this host's any more
            sending("127.0.0.1", "255.255.255.255", port),  # the kernel refuses a broadcast
            sending("127.0.0.1", "127.0.0.1", port),
        ]
        driver.feed(LoopLagged(0.0))
        await until(lambda: any(isinstance(event, DatagramReceived) for event in core.told))
    failures = [event for event in core.told if isinstance(event, SendFailed)]
    assert [(event.path, event.peer) for event in failures] == [(path, peer)] * 2
    assert all(event.errno > 0 for event in failures)


async def test_a_strangers_datagrams_are_logged_once_a_minute_for_each_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    core = RecordingCore(PATIENCE_S)
    with driven(core) as (driver, _, carried):
        for code in ("bad_mac", "bad_mac", "replay", "bad_mac"):
            core.answers = [LogRejected("10.9.9.9", code, "not ours")]
            driver.feed(LoopLagged(0.0))
        assert driver.datagrams_rejected == 4
        assert carried == []
    assert capsys.readouterr().out.count("datagram_rejected") == 2
