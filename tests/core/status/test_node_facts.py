"""What is said of nodes: of one name, of one address, of two versions, of pairs that do not hear each other."""

from __future__ import annotations

import msgspec

from exod.core.status.health import HealthInput, HealthSnapshot
from exod.core.status.view import NodeEntry
from exod.model import Health, Kind, LocalAddress, NodeId, NodeState, PathState
from tests.core.status.test_health import CABLE, LAN, ME, PEER, THIRD, given, lasting

MINE = LocalAddress("en0", Kind.ETHERNET, "10.77.0.1", 24)
OTHERS = LocalAddress("en0", Kind.ETHERNET, "10.77.0.2", 24)


def with_nodes(what: HealthInput, *changes: dict[str, object]) -> HealthInput:
    nodes = [msgspec.structs.replace(node, **change) for node, change in zip(what.view.nodes, changes, strict=True)]
    return msgspec.structs.replace(what, view=msgspec.structs.replace(what.view, nodes=tuple(nodes)))


def codes(snapshot: HealthSnapshot) -> list[str]:
    return [one.code for one in snapshot.reasons]


def test_two_live_nodes_with_one_name_are_told_apart_by_a_short_id() -> None:
    what = with_nodes(given(CABLE), {"addresses": (MINE,)}, {"name": ME.name, "addresses": (OTHERS,)})
    (reason,) = lasting(what).reasons
    assert (reason.code, reason.subject) == ("name_twice", ME.id)
    assert f"{ME.id[:6]} (10.77.0.1) and {PEER.id[:6]} (10.77.0.2)" in reason.text
    assert "node.name" in reason.text
    silent = with_nodes(what, {}, {"state": NodeState.SUSPECT})
    assert any(f"{ME.name} ({PEER.id[:6]}) does not answer" in one.text for one in lasting(silent).reasons)
    gone = with_nodes(what, {}, {"state": NodeState.DOWN, "left": True})
    assert lasting(gone).health is Health.HEALTHY


def test_an_address_that_two_hosts_hold_is_named_with_both() -> None:
    what = with_nodes(given(CABLE), {"addresses": (MINE,)}, {"addresses": (MINE,)})
    (reason,) = lasting(what).reasons
    assert (reason.code, reason.subject) == ("address_twice", "10.77.0.1")
    assert "studio1 (en0) and studio2 (en0)" in reason.text


def test_the_same_numbers_on_two_cables_count_only_where_they_do_not_work() -> None:
    cable = LocalAddress("bridge0", Kind.THUNDERBOLT, CABLE.local, 24)
    works = with_nodes(given(CABLE), {"addresses": (cable,)}, {"addresses": (cable,)})
    assert lasting(works).reasons == ()
    lan = msgspec.structs.replace(LAN, selected=True, local="10.77.0.1")
    dead = msgspec.structs.replace(CABLE, state=PathState.DEAD, selected=False)
    fails = with_nodes(given(dead, lan), {"addresses": (cable,)}, {"addresses": (cable,)})
    assert codes(lasting(fails)) == ["address_twice"]


def test_datagrams_of_another_version_are_the_reason_and_not_the_peers_power() -> None:
    what = with_nodes(given(), {}, {"state": NodeState.DOWN, "skew": "studio2 speaks version 2"})
    found = lasting(what)
    assert [(one.code, one.text) for one in found.reasons] == [("version_skew", "studio2 speaks version 2")]


def hearing(what: HealthInput, *heard: tuple[NodeId, tuple[NodeId, ...]]) -> HealthInput:
    names = {ME.id: "studio1", PEER.id: "studio2", THIRD.id: "studio3"}
    told = tuple((node, tuple((one, names[one]) for one in ones)) for node, ones in heard)
    return msgspec.structs.replace(what, view=msgspec.structs.replace(what.view, hearings=told))


def test_a_pair_that_never_heard_each_other_is_a_note_on_both_and_between() -> None:
    never_met = hearing(given(CABLE), (PEER.id, (ME.id, THIRD.id)))
    found = lasting(never_met)
    assert (found.health, found.reasons) == (Health.HEALTHY, ())
    (note,) = found.notes
    assert note.code == "deaf_pair"
    assert "studio1 and studio3 do not hear each other" in note.text
    third = NodeEntry(THIRD.id, "studio3", NodeState.UP, 0.0, "", False, 1, "0")
    view = never_met.view
    between = msgspec.structs.replace(never_met, view=msgspec.structs.replace(view, nodes=(*view.nodes, third)))
    between = hearing(between, (PEER.id, (ME.id,)), (THIRD.id, (ME.id,)))
    assert [one.text.partition(";")[0] for one in lasting(between).notes] == [
        "studio2 and studio3 do not hear each other"
    ]


def test_whoever_is_heard_by_one_of_two_is_no_deaf_pair_and_one_that_is_down_neither() -> None:
    assert lasting(hearing(given(CABLE), (PEER.id, (ME.id,)))).notes == ()
    down = hearing(given(CABLE, peer=NodeState.DOWN), (THIRD.id, (ME.id, PEER.id)))
    assert [one.code for one in lasting(down).notes] == []


def test_an_interface_with_paths_of_two_states_is_named_with_its_other_ends() -> None:
    dead = msgspec.structs.replace(CABLE, state=PathState.DEAD, selected=False, remote="10.0.0.9")
    standby = msgspec.structs.replace(CABLE, selected=False)
    vpn = msgspec.structs.replace(LAN, selected=True, rtt_ms=44.1)
    (reason,) = lasting(given(dead, standby, vpn)).reasons
    assert reason.text.endswith("bridge0 to 10.0.0.9 is dead, bridge0 to 10.0.0.2 is up")
