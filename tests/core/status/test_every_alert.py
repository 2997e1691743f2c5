"""Every alert of the table is raised once by what it means, and cleared once when that is over.

A fault is what a node sees while it lasts and afterwards: two views of the cluster, or figures that another part of
the daemon judges. Where that part needs sockets or a child, its finding is taken as it was recorded, and a test of
its own makes the finding come and go for real; `RECORDED` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from exod.alert_table import ALERTS, kind_of
from exod.core.base.facts import Fact
from exod.core.engine.memory_kills import WITHIN_S, MemoryKills
from exod.core.status.alerts import LASTING_S, Alerts, alert_facts
from exod.core.status.health import Downloading, HealthInput, HealthJudge
from exod.core.status.host_watch import GIB, RESTARTS_WITHIN_S, HostFigures, HostWatch
from exod.core.status.serving import EngineFacts
from exod.core.status.view import MeshView
from exod.model import ClusterWish, EngineState, Event, Kind, LeftOut, LocalAddress, MeshState, NodeState, PathState
from tests.core.status.test_health import (
    CABLE,
    DEAD,
    LAN,
    ME,
    PEER,
    THIRD,
    VPN,
    agreed_on,
    given,
    plan_of,
)
from tests.core.status.test_node_facts import with_nodes

ROOT: Final = Path(__file__).parents[3]
WELL: Final = given(CABLE, LAN)
NAMES: Final = {ME.id: ME.name, PEER.id: PEER.name}

See = Callable[[float], HealthInput]
"""What a node sees, so many seconds after the fault began."""


class Fault(NamedTuple):
    holds: See
    over: See


RECORDED: Final = {
    "identity_twin": "test_a_twin_that_was_renewed_is_forgotten_and_the_other_may_join",
    "other_key": "test_a_stranger_is_a_reason_for_as_long_as_it_tries",
    "peers_unheard": "test_peers_that_are_configured_and_never_answer_are_a_reason_until_one_does",
    "data_folder_lost": "test_where_it_cannot_be_written_the_reason_lasts_until_it_can",
    "service_failed": "test_a_part_that_fails_is_started_again_and_told_while_the_others_go_on",
    "throughput_low": "test_low_throughput_is_told_with_its_cause_also_after_a_restart",
}


def seen(what: HealthInput) -> Fault:
    """A view while it lasts, and then one in which all is well."""
    return Fault(lambda now: what, lambda now: WELL)


def engine(state: EngineState, **more: Any) -> Fault:
    return seen(given(CABLE, LAN, engine=EngineFacts(state, "told by a rank", **more)))


def found(judge: Callable[[bool, float], tuple[Fact, ...]]) -> Fault:
    """What another part finds: `judge(lasts, now)`."""
    return Fault(
        lambda now: msgspec.structs.replace(WELL, found=judge(True, now)),
        lambda now: msgspec.structs.replace(WELL, found=judge(False, now)),
    )


def host(**bad: Any) -> Fault:
    watch = HostWatch(ME.id)

    def judge(lasts: bool, now: float) -> tuple[Fact, ...]:
        figures = {"folder": "/data", "disk_free_bytes": 9 * GIB, "memory_available": 0.5, **(bad if lasts else {})}
        return tuple(watch.facts(HostFigures(**figures), NAMES, now))

    return found(judge)


def workers_replaced(*nodes: Any) -> Fault:
    """One more each second and node while it lasts, none for long afterwards."""
    watch, counts = HostWatch(ME.id), dict.fromkeys(nodes, 0)

    def judge(lasts: bool, now: float) -> tuple[Fact, ...]:
        for node in nodes:
            counts[node] += lasts
        later = 0.0 if lasts else RESTARTS_WITHIN_S
        return tuple(watch.facts(HostFigures("/data", 9 * GIB, 0.5, restarts=dict(counts)), NAMES, now + later))

    return found(judge)


def killed_for_memory() -> Fault:
    kills = MemoryKills()

    def judge(lasts: bool, now: float) -> tuple[Fact, ...]:
        if lasts:
            kills.killed("the kernel killed it: its control group has a limit of 0.50 GiB", now)
        return kills.facts(ME.id, now if lasts else now + WITHIN_S)

    return found(judge)


def recorded(code: str) -> Fault:
    fact = Fact(code, ME.id, "as it was found")
    return found(lambda lasts, now: (fact,) if lasts else ())


def drained() -> HealthInput:
    me = msgspec.structs.replace(ME, wish=ClusterWish(1.0, PEER.name, "/models/real", draining=True))
    view = msgspec.structs.replace(WELL.view, me=me)
    return msgspec.structs.replace(WELL, view=view, engine=EngineFacts(EngineState.READY, draining=True))


def names_differ() -> HealthInput:
    what = given(CABLE, LAN, mesh=agreed_on(plan_of((ME.id, PEER.id))))
    return with_nodes(what, {"model": "/models/one"}, {"model": "/models/other"})


def one_address() -> HealthInput:
    held = {"addresses": (LocalAddress("en0", Kind.ETHERNET, "10.77.0.1", 24),)}
    return with_nodes(WELL, held, held)


def cable(**changes: object) -> HealthInput:
    return given(msgspec.structs.replace(CABLE, **changes), LAN)


FAULTS: Final[dict[str, Callable[[], Fault]]] = {
    "no_path": lambda: seen(given(msgspec.structs.replace(CABLE, **DEAD))),
    "ends_disagree": lambda: seen(given(CABLE, LAN, agreed=False)),
    "mesh_not_agreed": lambda: seen(given(CABLE, mesh=MeshView(MeshState.FORMING, 0, ME.id, None, None, (), None))),
    "node_suspect": lambda: seen(given(CABLE, peer=NodeState.SUSPECT)),
    "node_down": lambda: seen(given(CABLE, peer=NodeState.DOWN)),
    "node_unheard": lambda: seen(given(CABLE, peer=NodeState.DOWN, mesh=agreed_on(plan_of((ME.id, PEER.id))))),
    "node_left_out": lambda: seen(
        given(CABLE, mesh=agreed_on(plan_of((ME.id, PEER.id), LeftOut(THIRD.id, "studio3", "it has no path"))))
    ),
    "name_twice": lambda: seen(with_nodes(WELL, {}, {"name": ME.name})),
    "address_twice": lambda: seen(one_address()),
    "version_skew": lambda: seen(with_nodes(given(), {}, {"state": NodeState.DOWN, "skew": "it speaks version 2"})),
    "wishes_differ": lambda: seen(names_differ()),
    "draining": lambda: seen(drained()),
    "link_slow": lambda: seen(given(msgspec.structs.replace(VPN, selected=True))),
    "link_degraded": lambda: seen(cable(state=PathState.DEGRADED, why="loses 21%")),
    "link_lossy": lambda: seen(cable(lasting_loss=0.08)),
    "path_ineligible": lambda: seen(
        given(
            msgspec.structs.replace(CABLE, selected=False, eligible=False, why="its route leaves elsewhere"),
            msgspec.structs.replace(LAN, selected=True),
        )
    ),
    "preflight_failed": lambda: engine(EngineState.READY, edge_text="bridge0 moves nothing"),
    "engine_failed": lambda: engine(EngineState.FAILED),
    "engine_recovering": lambda: engine(EngineState.RECOVERING),
    "engine_loading": lambda: engine(EngineState.LOADING),
    "requests_wait": lambda: engine(EngineState.READY, waiting=2),
    "downloading": lambda: seen(given(CABLE, LAN, downloads=(Downloading(ME.id, "owner/name", 1 << 30, 9 << 30),))),
    "gpu_wait": lambda: seen(given(CABLE, LAN, gpu_waits=((ME.id, "a fast step waited 3.1 s"),))),
    "out_of_memory": killed_for_memory,
    "memory_wired": lambda: seen(given(CABLE, LAN, wired_text="11 GiB stay wired since the last rank's end")),
    "mqtt_down": lambda: seen(given(CABLE, LAN, mqtt_text="mqtt://broker refuses the connection")),
    "disk_low": lambda: host(disk_free_bytes=GIB // 4),
    "memory_low": lambda: host(memory_available=0.01),
    "clock_skew": lambda: host(clocks={PEER.id: 61.0}),
    "restart_loop": lambda: workers_replaced(ME.id),
    "workers_crashed": lambda: workers_replaced(ME.id, PEER.id),
    "local_network_denied": lambda: engine(EngineState.READY, local_network_text="macOS refuses every send"),
    **{code: lambda code=code: recorded(code) for code in RECORDED},  # type: ignore[misc]
}


def test_every_alert_has_a_fault_and_every_recorded_finding_a_test_of_its_own() -> None:
    assert FAULTS.keys() == ALERTS.keys()
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__))
    assert [name for name in RECORDED.values() if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("code", sorted(ALERTS))
def test_an_alert_is_raised_once_by_its_fault_and_cleared_once_when_that_is_over(code: str) -> None:
    judge, alerts, fault, told = HealthJudge(), Alerts(), FAULTS[code](), list[tuple[float, Event]]()

    def look(see: See, now: float) -> None:
        health = judge.observe(see(now), now, now)
        told.extend(
            (now, one) for one in alerts.changes(alert_facts(ME.id, health, None)) if one.data["code"] == code
        )

    lasts_s = int(kind_of(code).grace_s + LASTING_S) + 5
    for now in range(lasts_s):
        look(fault.holds, float(now))
    assert [one.type for _, one in told] == ["alert.raised"]
    raised_at, raised = told[0]
    assert raised_at >= kind_of(code).grace_s
    assert raised.data["severity"] == kind_of(code).severity
    assert raised.data["cure"] == kind_of(code).cure
    assert raised.data["text"]
    for now in range(lasts_s, lasts_s + 5):
        look(fault.over, float(now))
    assert [one.type for _, one in told] == ["alert.raised", "alert.cleared"]
    assert told[1][1].subject == raised.subject
