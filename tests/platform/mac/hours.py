"""Whole hours of two Macs, in virtual time: pairing, a denial, sleep, a cable that is pulled, a crash, an upgrade.

The cores, the health, the status and its screen are the program's own; the network is the simulation's, with the
refusals of a Mac (`FakeNetwork`) before each send of the first one. A screen is what `exoctl status` prints there,
as far as the mesh goes: figures that an ordinary change of the program moves are written as `N`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from exod.cli.base.paint import Paint
from exod.cli.screens.status import status_screen
from exod.core.base import events
from exod.core.node import NodeCore
from exod.core.status.view import NodeView
from exod.daemon_api.shapes import MqttSummary
from exod.network.local_network import EVERY_S, LocalNetwork
from exod.platform.darwin import Darwin
from exod.status import snapshot
from exod.status.record import ClusterRecord
from exod.status.snapshot import StatusBuilder, StatusSettings
from tests.platform.mac.fake_network import FakeNetwork
from tests.sim.maps import lab
from tests.sim.network import CABLE, LAN
from tests.sim.scenarios import agreed
from tests.sim.world import Host
from tests.status.status_parts import NoEvents, StillEngine

WIDTH = 100
FIGURES = re.compile(r"\d+(?:\.\d+)?(?= ms| µs| s\b| min\b|%)|(?<=epoch )\d+")
BLANKS = re.compile(r"(?<=\S) {2,}(?=\S)")


class Clock:
    """`time`, as the status reads it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now

    def since_boot_s(self) -> float:
        return self.now


class Studio:
    """What one of the two Macs shows: its daemon's status, with the check of the local network."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self.host, self._clock = host, clock
        self.network = FakeNetwork(tuple(host.addresses))
        self.check = LocalNetwork(
            Darwin(), host.id, lambda _: None, self.network.multicast, lambda: self.network.now
        )
        self.check.follow(tuple(host.addresses))
        send = host._send_datagram

        def refused(command: events.SendDatagram) -> None:
            errno = self.network.send(command.interface, command.local_address, command.remote_address)
            if not errno:
                send(command)
            else:
                self.check.refused(command.local_address, errno)

        host._send_datagram = refused  # type: ignore[method-assign]
        self._status = StatusBuilder(
            lambda: host.card,
            StatusSettings("home", 5.0, False, 2.0, "dynamic", clock.since_boot_s(), Path()),
            ClusterRecord(),
            self,  # type: ignore[arg-type]
            StillEngine(),
            NoEvents(),
            mqtt=lambda: MqttSummary("off", "off"),
            failed_edges=tuple,
            api_url=str,
            local_network=lambda: self.check.text,
        )

    @property
    def links(self) -> object:
        return self._core.links

    @property
    def _core(self) -> NodeCore:
        assert self.host.core is not None
        return self.host.core

    def view(self, _: float) -> NodeView:
        return self._core.view(self.host.local(self.host.world.now))

    def tick(self, now: float) -> None:
        self.network.now = self._clock.now = now
        if int(now) % int(EVERY_S) == 0:
            self.check.check()
        if self.host.core is not None:
            self._status.observe(self.view(now))

    def screen(self) -> str:
        shown = status_screen(self._status.status(), Paint(color=False, unicode=True), WIDTH, self._clock.time())
        mesh = next(place for place, line in enumerate(shown) if line.startswith("engine"))
        return "\n".join(steady(line) for line in shown[:mesh]).rstrip()


def steady(line: str) -> str:
    """Without the figures that differ from run to run, and the columns that they are set in."""
    return BLANKS.sub("  ", FIGURES.sub("N", line)).rstrip()


class Hour:
    """Two Macs with a cable and Ethernet, started together."""

    def __init__(self, seed: int = 12) -> None:
        self.world = lab(seed, 2, media=(CABLE, LAN))
        self.clock = Clock()
        self.first, self.second = (Studio(host, self.clock) for host in self.world.hosts)

    def pass_(self, seconds: float) -> None:
        """Second by second, as the daemon looks at its health."""
        for _ in range(int(seconds)):
            self.world.run(self.world.now + 1.0)
            for studio in (self.first, self.second):
                studio.tick(self.world.now)

    def start(self) -> None:
        for host in self.world.hosts:
            self.world.after(0.1, host.start)
        assert self.world.run_while(lambda: agreed(self.world), 20.0)
        self.pass_(30)

    def deny(self) -> None:
        """Nothing of the first Mac leaves any more, connections included."""
        self.first.network.deny()
        self._hold_back(True)

    def allow(self) -> None:
        self.first.network.allow()
        self._hold_back(False)

    def _hold_back(self, cut: bool) -> None:
        mine = {one.address for one in self.first.host.addresses}
        for (source, _), wire in self.world.wires():
            if source in mine:
                wire.cut = cut

    def cable(self, cut: bool) -> None:
        one, other = (studio.host.addresses[0].address for studio in (self.first, self.second))
        for wire in self.world.network.both(one, other):
            wire.cut = cut


def screens() -> Iterator[tuple[str, str]]:
    """Each step of the hour with what the first Mac's status shows then. Replaces the status' clock meanwhile."""
    time, since_boot_s = snapshot.time, snapshot.since_boot_s
    hour = Hour()
    snapshot.time = hour.clock  # type: ignore[assignment]
    snapshot.since_boot_s = hour.clock.since_boot_s
    try:
        yield from _steps(hour)
    finally:
        snapshot.time, snapshot.since_boot_s = time, since_boot_s


def _steps(hour: Hour) -> Iterator[tuple[str, str]]:
    first, second = hour.first, hour.second
    hour.start()
    yield "paired", first.screen()
    hour.deny()
    hour.pass_(60)
    yield "status denied", first.screen()
    hour.allow()
    hour.pass_(60)
    yield "allowed", first.screen()
    second.host.freeze(asleep=True)
    hour.pass_(30)
    yield "the other sleeps", first.screen()
    second.host.thaw()
    hour.pass_(60)
    yield "awake again", first.screen()
    hour.cable(cut=True)
    hour.pass_(20)
    yield "cable out", first.screen()
    hour.cable(cut=False)
    hour.pass_(60)
    yield "cable in", first.screen()
    second.host.crash()
    hour.pass_(10)
    yield "the other crashed", first.screen()
    second.host.start()
    hour.pass_(60)
    yield "started again", first.screen()
