"""Health in words: what is a reason, what is none, and since when."""

from __future__ import annotations

import msgspec
import pytest

from exod.core.status.alerts import Alerts, alert_facts
from exod.core.status.health import Downloading, HealthInput, HealthJudge, HealthSnapshot
from exod.core.status.serving import EngineFacts
from exod.core.status.view import LinkView, MeshView, NodeEntry, NodeView, PathView
from exod.model import (
    ClusterWish,
    EngineState,
    Epoch,
    Health,
    Kind,
    LeftOut,
    Member,
    MeshPlan,
    MeshState,
    NodeId,
    NodeState,
    PathId,
    PathState,
)
from tests.core.pair.cards import card

ME, PEER, THIRD = card(1), card(2), card(3)


def path(interface: str, kind: Kind, **changes: object) -> PathView:
    made = PathView(
        id=PathId(f"{interface}-path"),
        interface=interface,
        kind=kind,
        local="10.0.0.1",
        remote="10.0.0.2",
        state=PathState.UP,
        peer_state=PathState.UP,
        rtt_ms=0.4,
        rtt_p90_ms=0.6,
        score_ms=0.5,
        in_band=True,
        samples=10,
        last_rtt_ms=0.4,
        last_heard_s=0.0,
        loss=0.0,
        lasting_loss=0.0,
        selected=False,
        eligible=True,
        routed=False,
        why="",
    )
    return msgspec.structs.replace(made, **changes)


CABLE = path("bridge0", Kind.THUNDERBOLT, selected=True)
LAN = path("en0", Kind.ETHERNET)
VPN = path("utun4", Kind.VPN, state=PathState.DEGRADED, rtt_ms=44.1)
DEAD = {"state": PathState.DEAD, "selected": False}


def given(
    *paths: PathView, agreed: bool = True, peer: NodeState = NodeState.UP, left: bool = False, **changes: object
) -> HealthInput:
    nodes = (
        NodeEntry(ME.id, ME.name, NodeState.UP, 0.0, "this node", True, 1, "0"),
        NodeEntry(PEER.id, PEER.name, peer, 0.0, "silent for 3.0 s", False, 1, "0", left),
    )
    selected = next((one for one in paths if one.selected), None)
    link = LinkView(
        peer=PEER.id,
        peer_name=PEER.name,
        agreed=agreed,
        agreed_since=0.0,
        selected=None if selected is None else selected.id,
        peer_selected=None,
        peer_seq=1,
        seq=1,
        kind=None,
        paths=paths,
    )
    mesh = changes.pop("mesh", MeshView(MeshState.AGREED, 1, ME.id, None, None, (), None))
    view = NodeView(ME, nodes, (link,), mesh)  # type: ignore[arg-type]
    return HealthInput(view, 5.0, **changes)  # type: ignore[arg-type]


def lasting(what: HealthInput, judge: HealthJudge | None = None) -> HealthSnapshot:
    judge = judge or HealthJudge()
    judge.observe(what, 100.0, 100.0)
    return judge.observe(what, 110.0, 110.0)


def texts(what: HealthInput) -> list[str]:
    return [reason.text for reason in lasting(what).reasons]


def test_a_pair_on_its_cable_is_healthy() -> None:
    assert lasting(given(CABLE, LAN, VPN)) == HealthSnapshot(Health.HEALTHY, ())


def test_a_pulled_cable_is_no_reason_while_ethernet_carries() -> None:
    dead = msgspec.structs.replace(CABLE, **DEAD)
    assert lasting(given(dead, msgspec.structs.replace(LAN, selected=True), VPN)).health is Health.HEALTHY


def test_a_vpn_is_named_with_what_is_dead() -> None:
    cable, lan = (msgspec.structs.replace(one, **DEAD) for one in (CABLE, LAN))
    what = given(cable, lan, msgspec.structs.replace(VPN, selected=True))
    assert lasting(what).health is Health.DEGRADED
    assert texts(what) == ["studio1–studio2 runs over VPN utun4 at 44.1 ms: bridge0 and en0 are dead"]


def test_loss_that_stays_is_a_reason_until_it_is_gone() -> None:
    judge = HealthJudge()

    def at(loss: float, now: float) -> list[tuple[str, str]]:
        cable = msgspec.structs.replace(CABLE, lasting_loss=loss)
        return [(reason.code, reason.text) for reason in judge.observe(given(cable, LAN), now, now).reasons]

    assert at(0.06, 0.0) == []
    assert at(0.04, 4.9) == []
    said = at(0.08, 5.0)
    assert said == [("link_lossy", f"{ME.name} loses 8% of what {PEER.name} sends over bridge0")]
    assert at(0.03, 6.0), "it comes and goes by chance"
    assert at(0.02, 7.0) == []
    assert at(0.04, 20.0) == []


def test_loss_is_told_of_a_path_that_is_degraded_too() -> None:
    cable = msgspec.structs.replace(CABLE, state=PathState.DEGRADED, why="loses 21%", lasting_loss=0.13)
    judge = HealthJudge()
    judge.observe(given(cable, LAN), 0.0, 0.0)
    said = judge.observe(given(cable, LAN), 5.0, 5.0)
    assert [reason.code for reason in said.reasons] == ["link_degraded", "link_lossy"]


def test_a_wrong_route_is_a_reason_only_for_a_better_cable() -> None:
    wrong = msgspec.structs.replace(CABLE, selected=False, eligible=False, why="ineligible: ...")
    lan = msgspec.structs.replace(LAN, selected=True)
    assert [reason.code for reason in lasting(given(wrong, lan)).reasons] == ["path_ineligible"]
    assert not lasting(given(CABLE, msgspec.structs.replace(LAN, eligible=False))).reasons


def test_a_lost_node_and_one_that_left() -> None:
    assert texts(given(CABLE, peer=NodeState.DOWN)) == ["studio2 is down: silent for 3.0 s"]
    assert lasting(given(CABLE, peer=NodeState.DOWN, left=True)).health is Health.HEALTHY


def test_a_moment_of_disagreement_alarms_nobody() -> None:
    judge = HealthJudge()
    what = given(CABLE, agreed=False)
    assert judge.observe(what, 100.0, 100.0).health is Health.HEALTHY
    assert judge.observe(what, 100.3, 100.3).health is Health.HEALTHY
    assert judge.observe(given(CABLE), 100.5, 100.5).health is Health.HEALTHY
    judge.observe(what, 101.0, 101.0)
    (reason,) = judge.observe(what, 102.5, 102.5).reasons
    assert (reason.code, reason.since) == ("ends_disagree", 101.0)


def test_since_stays_while_a_reason_lasts_and_its_text_may_move() -> None:
    judge = HealthJudge()
    for now, rtt_ms in ((100.0, 44.1), (130.0, 46.0)):
        what = given(msgspec.structs.replace(VPN, selected=True, rtt_ms=rtt_ms))
        snapshot = judge.observe(what, now, now)
    (reason,) = snapshot.reasons
    assert reason.since == 100.0
    assert "46.0 ms" in reason.text


def test_a_clock_set_back_keeps_since_in_the_past() -> None:
    judge = HealthJudge()
    what = given(CABLE, peer=NodeState.DOWN)
    judge.observe(what, 100.0, 100.0)
    (reason,) = judge.observe(what, 101.0, 50.0).reasons
    assert reason.since <= 50.0


@pytest.mark.parametrize("step", [-86_400.0, 86_400.0])
def test_a_step_of_the_wall_clock_neither_raises_nor_clears_anything(step: float) -> None:
    judge, alerts, wall = HealthJudge(), Alerts(), 1_700_000_000.0
    disagree, lost = given(CABLE, agreed=False), given(CABLE, peer=NodeState.DOWN)

    def codes(what: HealthInput, now: float, wall: float) -> tuple[list[str], list[str]]:
        health = judge.observe(what, now, wall)
        changes = alerts.changes(alert_facts(ME.id, health, None))
        return [one.code for one in health.reasons], [one.type for one in changes]

    assert codes(disagree, 10.0, wall) == ([], [])
    assert codes(disagree, 10.5, wall + step) == ([], []), "its grace is not over"
    assert codes(disagree, 11.0, wall + step) == (["ends_disagree"], ["alert.raised"])
    assert codes(disagree, 11.5, wall - step) == (["ends_disagree"], [])
    assert codes(lost, 20.0, wall) == (["node_down"], ["alert.cleared"])
    assert codes(lost, 20.5, wall + step) == (["node_down"], []), "it has not lasted a second"
    assert codes(lost, 21.0, wall) == (["node_down"], ["alert.raised"])


def test_a_failed_engine_is_down_and_a_missing_one_is_not() -> None:
    failed = given(CABLE, engine=EngineFacts(EngineState.FAILED, "no such model"))
    assert lasting(failed).health is Health.DOWN
    assert texts(failed) == ["no such model"]
    assert lasting(given(CABLE, engine=EngineFacts(EngineState.OFF))).health is Health.HEALTHY


def test_a_configured_broker_counts_and_a_suspended_plan_is_explained() -> None:
    assert texts(given(CABLE, mqtt_text="mqtt://broker refuses")) == ["MQTT: mqtt://broker refuses"]
    suspended = MeshView(MeshState.RENEGOTIATING, 1, ME.id, None, "bridge0 to studio2 is dead", (), None)
    assert texts(given(CABLE, mesh=suspended)) == ["the plan is suspended: bridge0 to studio2 is dead"]
    waiting = MeshView(MeshState.FORMING, 0, ME.id, None, None, (PEER.id,), None)
    assert texts(given(CABLE, mesh=waiting)) == ["waits for studio2 to join"]
    left_out = MeshView(MeshState.FORMING, 1, ME.id, None, None, (PEER.id,), None, (PEER.id,))
    assert texts(given(CABLE, mesh=left_out)) == ["studio2 keeps to a plan without studio1"]


def test_a_download_degrades_the_node_with_its_figures_and_says_whose_it_is() -> None:
    judge, one = HealthJudge(), Downloading(PEER.id, "maker/model", 3 << 30, 60 << 30)
    judge.observe(given(CABLE, downloads=(one,)), 0.0, 0.0)
    found = judge.observe(given(CABLE, downloads=(one,)), 5.0, 5.0)
    assert found.health is Health.DEGRADED
    assert [(reason.code, reason.subject) for reason in found.reasons] == [("downloading", PEER.id)]
    assert found.reasons[0].text == f"{PEER.name} downloads maker/model: 5% of 60.00 GiB"


def test_a_hub_that_does_not_answer_is_no_healthy_wait_and_a_model_that_is_here_no_reason() -> None:
    judge, one = HealthJudge(), Downloading(ME.id, "maker/model", 0, 0)
    assert judge.observe(given(CABLE, downloads=(one,)), 0.0, 0.0).health is Health.HEALTHY
    found = judge.observe(given(CABLE, downloads=(one,)), 3.0, 3.0)
    assert [reason.text for reason in found.reasons] == [f"{ME.name} looks for maker/model"]


def test_reading_starts_no_clock() -> None:
    judge, what = HealthJudge(), given(CABLE, agreed=False)
    assert judge.judge(what, 100.0, 100.0).health is Health.HEALTHY
    assert judge.observe(what, 110.0, 110.0).health is Health.HEALTHY, "it has lasted since it was observed"
    assert judge.judge(what, 111.5, 111.5).health is Health.DEGRADED


def test_reading_ends_no_clock() -> None:
    judge, what = HealthJudge(), given(CABLE, agreed=False)
    judge.observe(what, 100.0, 100.0)
    assert judge.judge(given(CABLE), 101.0, 101.0).health is Health.HEALTHY
    (reason,) = judge.judge(what, 102.0, 102.0).reasons
    assert reason.since == 100.0


def plan_of(ring: tuple[NodeId, ...], *left_out: LeftOut) -> MeshPlan:
    members = tuple(Member(one.id, 1) for one in (ME, PEER))
    return MeshPlan(
        Epoch(1, 1), ME.id, members, ring, (), "embedded:count", "memory", (1,) * len(ring), "h", left_out=left_out
    )


def agreed_on(plan: MeshPlan) -> MeshView:
    return MeshView(MeshState.AGREED, 1, ME.id, plan, None, (), None)


def test_every_node_names_who_is_left_out_of_the_ring_and_why() -> None:
    third = LeftOut(THIRD.id, "studio3", "studio3 and studio1 have no agreed path to each other")
    what = given(CABLE, mesh=agreed_on(plan_of((ME.id, PEER.id), third)))
    (reason,) = lasting(what).reasons
    assert (reason.code, reason.subject) == ("node_left_out", THIRD.id)
    assert reason.text == f"studio3 is left out of the ring: {third.reason}"


def test_a_live_node_outside_the_ring_is_a_reason_although_the_plan_does_not_know_of_it() -> None:
    (reason,) = lasting(given(CABLE, mesh=agreed_on(plan_of((ME.id,))))).reasons
    assert (reason.code, reason.subject) == ("node_left_out", PEER.id)


def test_a_rank_that_is_not_heard_here_is_not_called_down_while_it_computes() -> None:
    what = given(CABLE, peer=NodeState.DOWN, mesh=agreed_on(plan_of((ME.id, PEER.id))))
    (reason,) = lasting(what).reasons
    assert reason.code == "node_unheard"
    assert "does not hear studio2" in reason.text


def test_a_drain_is_a_reason_on_every_node_that_has_heard_of_it() -> None:
    what = given(CABLE)
    me = msgspec.structs.replace(ME, wish=ClusterWish(1.0, "studio2", "/models/real", draining=True))
    view, engine = msgspec.structs.replace(what.view, me=me), EngineFacts(draining=True)
    drained = msgspec.structs.replace(what, view=view, engine=engine)
    (reason,) = lasting(drained).reasons
    assert reason.code == "draining"
    assert "studio2 was told to drain" in reason.text
    assert "exoctl engine load" in reason.text


def test_configurations_that_name_different_models_are_a_reason_until_a_command_decides() -> None:
    plan = agreed_on(plan_of((ME.id, PEER.id)))
    what = given(CABLE, mesh=plan)
    named = [msgspec.structs.replace(one, model=f"/models/{place}") for place, one in enumerate(what.view.nodes)]
    differ = msgspec.structs.replace(what, view=msgspec.structs.replace(what.view, nodes=tuple(named)))
    (reason,) = lasting(differ).reasons
    assert reason.code == "wishes_differ"
    assert "studio1 names /models/0 and studio2 names /models/1" in reason.text
    me = msgspec.structs.replace(ME, wish=ClusterWish(1.0, "studio2", "/models/real"))
    decided = msgspec.structs.replace(differ, view=msgspec.structs.replace(differ.view, me=me))
    assert lasting(decided).reasons == ()


def test_a_better_path_that_only_probes_pass_is_a_note_with_what_the_ring_met() -> None:
    unfit = {"selected": False, "unfit": "nobody answered a connection to 10.0.0.2 (a firewall?)"}
    cable, lan = (msgspec.structs.replace(one, **more) for one, more in ((CABLE, unfit), (LAN, {"selected": True})))
    found = HealthJudge().judge(given(cable, lan), 0.0, 0.0)
    assert found.health is Health.HEALTHY
    assert [(one.code, one.subject) for one in found.notes] == [("ring_unfit", cable.id)]
    assert "nobody answered a connection to 10.0.0.2" in found.notes[0].text
    slow = msgspec.structs.replace(VPN, unfit="it moves 0.01 MB/s")
    assert not HealthJudge().judge(given(CABLE, slow), 0.0, 0.0).notes, "nobody would use it"
