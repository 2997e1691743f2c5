"""The whole core of a node at its four verbs: what it never does, whatever comes from outside."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exod.core.base import events
from exod.core.base.config import CoreConfig
from exod.core.base.errors import IllegalMoveError
from exod.core.base.mesh_messages import (
    Ack,
    Commit,
    Committed,
    LinkReport,
    LinkSummary,
    MeshMessage,
    Nack,
    Propose,
    RenegotiateWish,
)
from exod.core.cluster.ring_order import build_plan, plan_hash
from exod.core.node import LOOK_FOR_LOST_S, LOST_S, MAX_PEERS, NodeCore
from exod.core.probe.datagram import MAC_BYTES, Datagram, authentication_code, encode
from exod.model import (
    MAX_COUNTER,
    Epoch,
    Kind,
    LocalAddress,
    Member,
    MeshPlan,
    MeshState,
    NodeId,
    NodeState,
    PathId,
    Selection,
)
from tests.core.pair.cards import KEY, card

ME, PEER = card(1, "bridge0=10.0.0.1/24", "en0=10.0.1.1/24"), card(2, "bridge0=10.0.0.2/24", "en0=10.0.1.2/24")


def node(now: float = 0.0) -> NodeCore:
    return NodeCore(ME, KEY, CoreConfig(), "linux", 1, 0, now)


def met(now: float = 0.0) -> NodeCore:
    core = node(now)
    core.handle(events.PeerCardReceived(PEER), now)
    core.handle(events.PeerConnected(PEER.id), now)
    return core


def datagram(**changes: object) -> Datagram:
    made = Datagram(
        sender=PEER.id,
        destination=ME.id,
        sender_incarnation=PEER.incarnation,
        destination_incarnation=ME.incarnation,
        seq=1,
        order=1,
        source_address="10.0.0.2",
        target_address="10.0.0.1",
        interval_ms=50,
    )
    return msgspec.structs.replace(made, **changes)


def arrival(data: bytes, at: float = 0.5) -> events.DatagramReceived:
    return events.DatagramReceived("10.0.0.1", "10.0.0.2", data, at)


def rejected(commands: list[events.Command]) -> list[str]:
    return [command.code for command in commands if isinstance(command, events.LogRejected)]


def sends(commands: list[events.Command]) -> list[events.SendDatagram]:
    return [command for command in commands if isinstance(command, events.SendDatagram)]


def test_a_card_begins_probing_and_route_checks_on_every_candidate() -> None:
    core = node()
    commands = core.handle(events.PeerCardReceived(PEER), 0.0)
    asked = {command.path for command in commands if isinstance(command, events.CheckRoute)}
    commands = [command for _ in asked for command in core.handle_timer(0.0)]  # one datagram a turn
    assert {command.path for command in sends(commands)} == asked == {"10.0.0.1-10.0.0.2", "10.0.1.1-10.0.1.2"}
    assert {command.interface for command in sends(commands)} == {"bridge0", "en0"}


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("bad_mac", encode(datagram(), bytes(32))),
        ("malformed", b"noise"),
        ("not_for_me", encode(datagram(destination=NodeId("00000000000000ff")), KEY)),
        ("wrong_addresses", encode(datagram(source_address="10.0.0.9"), KEY)),
        ("old_incarnation", encode(datagram(sender_incarnation=1), KEY)),
    ],
)
def test_what_is_not_accepted_is_named_and_changes_nothing(code: str, data: bytes) -> None:
    core = met()
    assert rejected(core.handle(arrival(data), 0.5)) == [code]
    assert core.view(0.5).nodes[1].state is NodeState.SUSPECT


def test_a_peers_datagrams_of_another_version_are_said_until_they_are_understood_or_end() -> None:
    core = met()
    body = bytes([2]) + encode(datagram(), KEY)[1:-MAC_BYTES]
    newer = body + authentication_code(body, KEY)
    assert rejected(core.handle(arrival(newer), 0.5)) == ["version"]
    assert core.view(0.5).nodes[1].skew.endswith("upgrade exod on studio1")
    assert core.view(30.0).nodes[1].skew == "", "none came for long"
    core.handle(arrival(newer), 31.0)
    core.handle(arrival(encode(datagram(), KEY)), 32.0)
    assert core.view(32.0).nodes[1].skew == ""
    forged = bytes([2]) + encode(datagram(), bytes(32))[1:]
    assert rejected(core.handle(arrival(forged), 33.0)) == ["malformed"]
    assert core.view(33.0).nodes[1].skew == "", "anybody can send that"


@pytest.mark.parametrize(
    "changes",
    [
        {"sender_incarnation": MAX_COUNTER + 1},
        {"sender_incarnation": 2**64 - 1},
        {"destination_incarnation": 2**64 - 1},
        {"epoch_number": 2**64 - 1},
        {"selection": Selection(2**63, 2**63, 1, PathId("10.0.0.1-10.0.0.2"))},
    ],
)
def test_a_counter_that_nobody_could_follow_is_refused(changes: dict[str, object]) -> None:
    core = met()
    commands = core.handle(arrival(encode(datagram(**changes), KEY)), 0.5)
    assert rejected(commands) == ["malformed"]
    assert [command for command in commands if isinstance(command, events.RaiseIncarnation)] == []
    assert rejected(core.handle(arrival(encode(datagram(), KEY)), 0.6)) == [], "the peer's next word is heard"


def test_a_card_with_an_incarnation_that_nobody_could_follow_is_refused() -> None:
    core = node()
    for incarnation in (MAX_COUNTER + 1, 2**64 - 1):
        core.handle(events.PeerCardReceived(msgspec.structs.replace(PEER, incarnation=incarnation)), 0.0)
    assert len(core.view(0.1).nodes) == 1
    core.handle(events.PeerCardReceived(PEER), 0.2)
    assert len(core.view(0.3).nodes) == 2


def test_a_plan_of_such_an_epoch_is_no_message() -> None:
    for epoch in (Epoch(MAX_COUNTER + 1, 1), Epoch(1, 2**64 - 1)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(epoch), type=Epoch)


def test_a_replay_is_named() -> None:
    core = met()
    data = encode(datagram(), KEY)
    assert rejected(core.handle(arrival(data), 0.5)) == []
    assert core.view(0.5).nodes[1].state is NodeState.UP
    assert rejected(core.handle(arrival(data), 0.6)) == ["replay"]


def test_a_stranger_with_the_key_is_ignored_until_its_card_comes() -> None:
    core = node()
    assert core.handle(arrival(encode(datagram(), KEY)), 0.5) == []


def test_a_higher_incarnation_of_ours_that_a_peer_knows_is_jumped_over_once() -> None:
    core = met()
    data = [encode(datagram(destination_incarnation=5_000, seq=seq, order=seq), KEY) for seq in (1, 2)]
    raised = [
        command
        for one in data
        for command in core.handle(arrival(one), 0.5)
        if isinstance(command, events.RaiseIncarnation)
    ]
    assert raised == [events.RaiseIncarnation(5_000)]
    core.handle(events.CardChanged(msgspec.structs.replace(ME, incarnation=5_001)), 0.6)
    assert core.card.incarnation == 5_001
    core.validate()


def test_a_node_never_goes_back_to_an_older_life_by_itself() -> None:
    with pytest.raises(IllegalMoveError):
        node().handle(events.CardChanged(msgspec.structs.replace(ME, incarnation=1)), 0.0)


def test_a_wrong_input_is_our_own_bug() -> None:
    with pytest.raises(IllegalMoveError, match="not an input"):
        node().handle("something", 0.0)  # type: ignore[arg-type]


def test_the_number_of_nodes_is_bounded_and_the_longest_down_is_forgotten() -> None:
    core = node()
    for place in range(2, MAX_PEERS + 2):
        core.handle(events.PeerCardReceived(card(place)), float(place) / 1_000)
    assert len(core.links) == MAX_PEERS
    core.handle(events.PeerCardReceived(card(200)), 1.0)
    assert card(200).id not in core.links, "no room while all of them may live"
    core.handle(events.PeerLeft(card(7).id, card(7).incarnation), 2.0)
    core.handle(events.PeerCardReceived(card(200)), 3.0)
    assert card(200).id in core.links
    assert card(7).id not in core.links
    assert core.next_deadline() is not None


def forgotten(commands: list[events.Command]) -> list[str]:
    """Why each node was forgotten."""
    found = [one.event for one in commands if isinstance(one, events.Emit)]
    return [str(event.data["reason"]) for event in found if event.type == "node.forgotten"]


def test_a_node_that_is_down_is_forgotten_when_a_person_asks_and_one_that_lives_is_not() -> None:
    core = node()
    core.handle(events.PeerCardReceived(card(7)), 0.0)
    assert forgotten(core.handle(events.ForgetPeer(card(7).id), 1.0)) == []
    assert card(7).id in core.links
    core.handle(events.PeerLeft(card(7).id, card(7).incarnation), 2.0)
    assert forgotten(core.handle(events.ForgetPeer(card(7).id), 3.0)) == ["a person asked for it"]
    assert core.links == {}
    assert core.handle(events.ForgetPeer(card(7).id), 4.0) == []
    core.handle(events.PeerCardReceived(card(7)), 5.0)
    assert card(7).id in core.links, "a node that comes back is taken again"


def test_a_node_that_came_back_under_another_identity_leaves_no_ghost() -> None:
    core = node()
    address = LocalAddress("en0", Kind.ETHERNET, "10.0.0.7", 24)
    old = msgspec.structs.replace(card(7), addresses=(address,))
    core.handle(events.PeerCardReceived(old), 0.0)
    renewed = msgspec.structs.replace(card(8), name=old.name, addresses=old.addresses)
    assert forgotten(core.handle(events.PeerCardReceived(renewed), 1.0)) == []
    assert set(core.links) == {old.id, renewed.id}, "two that live are two nodes, whatever they are called"
    core = node()
    core.handle(events.PeerCardReceived(old), 0.0)
    core.handle(events.PeerLeft(old.id, old.incarnation), 1.0)
    elsewhere = msgspec.structs.replace(card(9), name=old.name)
    assert forgotten(core.handle(events.PeerCardReceived(elsewhere), 2.0)) == []
    told = forgotten(core.handle(events.PeerCardReceived(renewed), 3.0))
    assert told == [f"{old.name} is there again with another identity"]
    assert set(core.links) == {elsewhere.id, renewed.id}


def test_a_node_that_was_down_for_a_week_is_forgotten() -> None:
    core = node()
    core.handle(events.PeerCardReceived(card(7)), 0.0)
    core.handle(events.PeerLeft(card(7).id, card(7).incarnation), 1.0)
    assert forgotten(core.handle_timer(LOST_S - 10)) == []
    assert forgotten(core.handle_timer(LOST_S + LOOK_FOR_LOST_S)) == ["it was down for 7 days"]
    assert core.links == {}


def test_nonsense_for_a_card_is_not_a_node() -> None:
    core = node()
    for nonsense in ({"id": NodeId("xyz")}, {"incarnation": 0}, {"mesh_port": 70_000}, {"id": ME.id}):
        core.handle(events.PeerCardReceived(msgspec.structs.replace(PEER, **nonsense)), 0.0)
    assert core.links == {}


def test_events_of_unknown_nodes_are_harmless() -> None:
    core, path = node(), PathId("10.0.0.1-10.0.0.2")
    for event in (
        events.DatagramSent(path, PEER.id, 1, 0.0),
        events.SendFailed(path, PEER.id, 101),
        events.PeerLeft(PEER.id, 1),
        events.PeerConnected(PEER.id),
        events.PeerDisconnected(PEER.id),
        events.RouteChecked(PEER.id, path, None),
        events.DebugFault(path, True, 0.0, 1.0),
        events.DebugPin(path, 1.0),
        events.MessageReceived(PEER.id, RenegotiateWish(PEER.id, "test")),
    ):
        core.handle(event, 0.0)
    core.validate()


def test_a_goodbye_goes_out_on_every_living_path() -> None:
    core = met()
    core.handle(arrival(encode(datagram(), KEY)), 0.5)
    (sent,) = sends(core.goodbye(0.6))
    assert sent.path == "10.0.0.1-10.0.0.2"


def test_the_view_is_a_value_that_can_be_written() -> None:
    core = met()
    view = core.view(1.0)
    assert msgspec.json.decode(msgspec.json.encode(view), type=type(view)) == view
    assert view.mesh.state is MeshState.FORMING
    assert [path.why for path in view.links[0].paths] == ["no answer yet", "no answer yet"]


# --- anything that an authentic peer may say ------------------------------------------------------------------

ids = st.sampled_from([ME.id, PEER.id, NodeId("00000000000000aa")])
paths = st.sampled_from(
    [PathId("10.0.0.1-10.0.0.2"), PathId("10.0.1.1-10.0.1.2"), PathId("1.2.3.4-5.6.7.8"), PathId("x"), PathId("")]
)
incarnations = st.sampled_from([0, 1, ME.incarnation, PEER.incarnation, 2**70])
numbers = st.integers(-5, 5) | st.just(2**65)
epochs = st.builds(Epoch, numbers, incarnations)
selections = st.none() | st.builds(Selection, incarnations, incarnations, numbers, st.none() | paths)
summaries = st.builds(
    LinkSummary,
    peer=ids,
    peer_incarnation=incarnations,
    agreed=st.booleans(),
    selection=selections,
    path=st.none() | paths,
    interface=st.text(max_size=3),
    address=st.text(max_size=3),
    kind=st.sampled_from(Kind),
    in_band=st.booleans(),
    cost_ms=st.floats(allow_nan=False),
)


@st.composite
def plans(draw: st.DrawFn) -> MeshPlan:
    cards = [ME, PEER]
    plan = build_plan(draw(epochs), draw(st.sampled_from(cards)), cards[: draw(st.integers(1, 1))], {})
    assert plan is not None
    plan = msgspec.structs.replace(
        plan,
        coordinator=draw(ids),
        members=tuple(draw(st.lists(st.builds(Member, ids, incarnations), max_size=3))),
        ring=tuple(draw(st.lists(ids, max_size=3))),
    )
    return msgspec.structs.replace(plan, hash=plan_hash(plan) if draw(st.booleans()) else draw(st.text(max_size=4)))


messages: st.SearchStrategy[MeshMessage] = st.one_of(
    st.builds(LinkReport, ids, incarnations, numbers, numbers, st.lists(summaries, max_size=3).map(tuple)),
    st.builds(Propose, plans(), st.text(max_size=5)),
    st.builds(Commit, plans(), st.text(max_size=5)),
    st.builds(Ack, ids, incarnations, epochs, st.text(max_size=4)),
    st.builds(Nack, ids, incarnations, epochs, st.text(max_size=4), numbers, st.text(max_size=5)),
    st.builds(Committed, ids, incarnations, epochs, st.text(max_size=4)),
    st.builds(RenegotiateWish, ids, st.text(max_size=5), st.text(max_size=4), st.booleans()),
)


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=12))
def test_nothing_that_an_authentic_peer_says_breaks_the_core(said: list[MeshMessage]) -> None:
    core = met()
    core.handle(arrival(encode(datagram(), KEY)), 0.5)
    now = 0.5
    for message in said:
        now += 0.3
        core.handle(events.MessageReceived(PEER.id, message), now)
        core.handle_timer(now + 0.1)
        core.view(now + 0.1)
    core.validate()
