"""Every screen of every node in every state of the joint simulation: they follow from one verdict, and agree.

Statuses are built as the daemon builds them, over the simulated cores, in virtual time. What is judged: `/ready`,
`/v1/models`, the reasons, MQTT's alerts and what doctor finds say the same of whether a request would be answered,
and a node that would not answer is unhealthy once the code's time is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from exod.alert_table import ALERTS
from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.probe import ring_fitness
from exod.core.status.alerts import LASTING_S
from exod.core.status.serving import NO_MODEL
from exod.daemon_api.counters import DaemonCounters
from exod.daemon_api.shapes import MqttSummary
from exod.diagnostics.findings import of_reason
from exod.model import EngineState, Health
from exod.platform.this_host import current
from exod.status import mqtt_snapshot, snapshot
from exod.status.answers import Answers, ClusterSettings, Network, Requests
from exod.status.mqtt_snapshot import MqttSnapshot
from exod.status.record import ClusterRecord
from exod.status.snapshot import StatusBuilder, StatusSettings
from tests.sim.engine import fixed_faults
from tests.sim.engine.clients import Client
from tests.sim.engine.engine_host import EngineHost
from tests.sim.engine.joint_world import JointWorld
from tests.sim.engine.scenarios import STORM_S, build, make_peace
from tests.sim.network import LAN
from tests.status.status_parts import NoEvents

SEEDS = range(1, 6)
LOOK_S = 0.25
"""As often as the daemon looks while things happen."""
PEACE_S = 25.0
"""Groups are formed again, and what waited for its time has waited."""
DRAINED_AT_S = 10.0
WALL = 1_700_000_000.0


def not_asked(*_: object) -> None:
    raise AssertionError("a screen asked for something")


@dataclass
class Screens:
    """What one life of one node shows."""

    status: StatusBuilder
    answers: Answers
    mqtt: MqttSnapshot
    refused_since: dict[str, float] = field(default_factory=dict)


def screens_of(host: EngineHost) -> Screens:
    core, engine = host.host.core, host.core
    assert core is not None
    assert engine is not None
    settings = StatusSettings("sim", 5.0, host.host.card.engine, 2.0, "dynamic", WALL, Path("data"))
    status = StatusBuilder(
        lambda: host.host.card,
        settings,
        ClusterRecord(),
        core,
        engine,
        NoEvents(),
        mqtt=lambda: MqttSummary("off", None),
        failed_edges=tuple,
        api_url=str,
    )
    answers = Answers(
        ClusterSettings("sim", Path("key"), True),
        status,
        core,
        engine,
        NoEvents(),
        DaemonCounters,
        Network(current(), tuple, None, tuple),
        Requests(*[not_asked] * len(Requests.__dataclass_fields__)),  # type: ignore[arg-type]
        membership=None,  # type: ignore[arg-type]
    )
    return Screens(status, answers, MqttSnapshot(host.host.id, status))


def judge(screens: Screens, now: float) -> tuple[str, Health]:
    """Looks once. Returns the code of what a request would meet, for the test's own count, and the health."""
    status = screens.status
    if (state := status.engine().state) in (EngineState.READY, EngineState.GENERATING):
        status.record.served_model = status.engine().model or ""
    view = status.view()
    health = status.observe(view)
    verdict, ready = status.serving(), screens.answers.ready()
    reasons = {one.code for one in health.reasons}
    assert (ready.ready, ready.code, ready.text) == (verdict.serves, verdict.code, verdict.text)
    assert bool(screens.answers.models()) == (verdict.admits and status.engine().model is not None)
    report = status.status()
    assert (report.health, {one.code for one in report.reasons}) == (health.health, reasons)
    told = screens.mqtt.view(view, health)
    lasting = zip(health.reasons, health.lasting_s, strict=True)
    assert {one.code for one in told.alerts} == {one.code for one, lasting_s in lasting if lasting_s >= LASTING_S}
    assert {of_reason(one, one.subject).code for one in health.reasons} == reasons
    since = screens.refused_since
    code = "" if verdict.serves or verdict.code == NO_MODEL else verdict.code
    screens.refused_since = {code: since.get(code, now)} if code else {}
    for refused, began in screens.refused_since.items():
        if now - began >= ALERTS[refused].grace_s:
            assert refused in reasons, (state, verdict, reasons)
            assert health.health is not Health.HEALTHY
    if health.health is Health.DOWN:
        assert not verdict.admits
    return verdict.code or "serves", health.health


class Clock:
    """The clocks of the host that is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return WALL + self.now


def look_at_all(
    world: JointWorld, clock: Clock, known: dict[tuple[str, int], Screens], seen: set[str]
) -> list[EngineHost]:
    """Those that say that they serve, or that they are healthy."""
    serving: list[EngineHost] = []
    for host in world.engine_hosts:
        if host.core is not None and host.host.core is not None:
            key = (host.host.id, host.host.life)
            if key not in known:
                known[key] = screens_of(host)
            clock.now = host.host.local(world.now)
            code, health = judge(known[key], clock.now)
            seen.add(code)
            if code == "serves" or health is Health.HEALTHY:
                serving.append(host)
    return serving


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(snapshot, "time", clock)
    monkeypatch.setattr(mqtt_snapshot, "time", clock)
    return clock


def test_no_two_screens_disagree_in_any_state_of_the_simulation(clock: Clock) -> None:
    seen: set[str] = set()
    for seed in SEEDS:
        world, _ = build(seed)
        if seed == SEEDS[-1]:
            world.at(DRAINED_AT_S, world.engine_hosts[0].ask_drain)
        known: dict[tuple[str, int], Screens] = {}
        while world.now < STORM_S:
            world.run(world.now + LOOK_S)
            look_at_all(world, clock, known, seen)
        make_peace(world)
        while world.now < STORM_S + PEACE_S:
            world.run(world.now + LOOK_S)
            look_at_all(world, clock, known, seen)
    assert seen >= {"serves", "engine_loading", "engine_recovering", "draining"}, seen


@pytest.mark.parametrize("fault", ["unreadable", "missing"])
@pytest.mark.parametrize("place", [0, 1])
def test_no_request_is_refused_while_a_plan_without_a_failed_rank_is_on_its_way(
    clock: Clock, fault: str, place: int
) -> None:
    world = JointWorld(5, 2, media=(LAN,))
    getattr(world, fault).add(world.hosts[place].id)
    for host in world.hosts:
        world.at(0.0, host.start)
    known: dict[tuple[str, int], Screens] = {}
    seen: set[str] = set()
    while "serves" not in seen:
        assert world.now < 20.0, seen
        world.run(world.now + 0.02)
        look_at_all(world, clock, known, seen)
    assert "engine_failed" not in seen, "another plan was on its way"


@pytest.mark.parametrize("seconds", [1.0, 40.0])
@pytest.mark.parametrize("place", [0, 1])
def test_no_request_is_refused_while_another_node_still_looks_for_the_model(
    clock: Clock, seconds: float, place: int
) -> None:
    """Whether it can stand in for the one that has no model is not known before."""
    world = JointWorld(5, 2, media=(LAN,))
    world.missing.add(world.hosts[place].id)
    world.search_s[world.hosts[1 - place].id] = seconds
    for host in world.hosts:
        world.at(0.0, host.start)
    known: dict[tuple[str, int], Screens] = {}
    seen: set[str] = set()
    while "serves" not in seen:
        assert world.now < seconds + 20.0, seen
        world.run(world.now + 0.02)
        look_at_all(world, clock, known, seen)
    assert "engine_failed" not in seen, "another plan was on its way"


def test_a_node_that_nobody_can_stand_in_for_says_at_once_that_it_failed(clock: Clock) -> None:
    world = JointWorld(5, 2, engines=1)
    world.unreadable.update(host.id for host in world.hosts)
    for host in world.hosts:
        world.at(0.0, host.start)
    seen: set[str] = set()
    known: dict[tuple[str, int], Screens] = {}
    while not any(world.loads_failed.values()):
        world.run(world.now + 0.02)
    world.run(world.now + 0.05)
    look_at_all(world, clock, known, seen)
    assert seen == {"engine_failed"}


FIXED_SEEDS = range(5)
LOOKED_FOR_S = 45.0
ASKED_EVERY_S = 3.0


def ask_who_serves(clock: Clock, seed: int) -> None:
    """With faults that stay, whoever says that it serves or is healthy is asked, and answers by the deadline."""
    world, rng = fixed_faults.begin(seed)
    world.run(fixed_faults.FAULTS_AT_S)
    names, dead = fixed_faults.break_some(world, rng, len(world.hosts))
    known: dict[tuple[str, int], Screens] = {}
    asked: list[Client] = []
    asked_at: dict[int, float] = {}
    end = world.now + LOOKED_FOR_S
    while world.now < end:
        world.run(world.now + LOOK_S)
        for engine_host in look_at_all(world, clock, known, set()):
            place = engine_host.host.place
            if place not in dead and world.now - asked_at.get(place, 0.0) >= ASKED_EVERY_S:
                asked.append(world.ask(place, 1))
                asked_at[place] = world.now
    assert asked, f"nobody served with {names}"
    world.run_while(world.all_answered, fixed_faults.DEADLINE_S)
    for client in asked:
        promised = f"{client.name} was promised an answer with {names}: {client.outcome}"
        assert client.outcome == "length", f"{promised}{world.engine_states()}"
        assert client.ended_at is not None
        assert client.ended_at - client.asked_at <= fixed_faults.DEADLINE_S, names


@pytest.mark.parametrize("seed", FIXED_SEEDS)
def test_who_says_that_it_serves_answers(clock: Clock, seed: int) -> None:
    ask_who_serves(clock, seed)


def test_a_health_that_asks_for_failed_states_alone_is_found(clock: Clock) -> None:
    """Planted: a rank that has not failed is taken for one that serves, and the ring's faults for none."""

    def state(self: StatusBuilder, statuses: list[RankStatus | None]) -> EngineState:
        failed = any(status is not None and status.phase is RankPhase.FAILED for status in statuses)
        return EngineState.FAILED if failed else EngineState.READY

    def ask_all() -> None:
        for seed in FIXED_SEEDS:
            ask_who_serves(clock, seed)

    unfit = mock.patch.object(ring_fitness.RingFitness, "unfit", property(lambda self: False))
    planted = mock.patch.object(StatusBuilder, "_engine_state", state)
    with unfit, planted, pytest.raises(AssertionError, match="was promised an answer"):
        ask_all()
