"""What is due on a broker, when, and who says it there."""

from __future__ import annotations

import msgspec

from exod.daemon_api.mqtt_view import MqttView
from exod.model import Event, NodeId
from exod.mqtt.publish_schedule import (
    CORRECT_AGAIN_S,
    DRIFT_S,
    LEFT_GRACE_S,
    MAX_EVENTS,
    REFRESH_S,
    SETTLE_S,
    SPEAKS_FOR_S,
    UNKNOWN_GRACE_S,
    MqttLedger,
)
from exod.mqtt.topic_tree import TopicTree
from exod.mqtt.topics import event_publication, has_moved, publications
from tests.mqtt.mqtt_parts import BASE, A, B, C, alert, cluster_view

TREE = TopicTree("exo/1", "home")


class Broker:
    """A broker without a socket, and one node's ledger on it. `now` moves by hand."""

    def __init__(self, node: NodeId = A, view: MqttView | None = None) -> None:
        self.now = 1000.0
        self.node = node
        self.ledger = MqttLedger(TREE, node)
        self.retained: dict[str, bytes] = {}
        self.show(cluster_view() if view is None else view)
        self.ledger.connected(self.now)

    def show(self, view: MqttView) -> None:
        self.ledger.view(view, self.now)

    def publish(self) -> dict[str, bytes]:
        """Everything that is due goes out, is acknowledged, and comes back to the subscriber that we are."""
        sent = {}
        for publication in self.ledger.due(self.now):
            sent[publication.topic] = publication.payload
            self.ledger.published(publication, self.now)
            if publication.retain:
                self.retained[publication.topic] = publication.payload
                if not publication.topic.startswith("homeassistant"):
                    self.ledger.heard(publication.topic, publication.payload, False, self.now)
        return sent

    def after(self, seconds: float) -> dict[str, bytes]:
        self.now += seconds
        return self.publish()

    def hear(self, topic: str, payload: bytes, retained: bool = False) -> None:
        self.ledger.heard(topic, payload, retained, self.now)

    def hear_node(self, node: NodeId, retained: bool = False) -> None:
        """Another node publishes its own topics here."""
        for topic, publication in publications(cluster_view(nodes=(A, B, C)), TREE, node).items():
            if publication.author == node and "/node/" in topic:
                self.hear(topic, publication.payload, retained)


def settled(node: NodeId = A, view: MqttView | None = None) -> Broker:
    broker = Broker(node, view)
    broker.publish()
    broker.after(SETTLE_S)
    return broker


# --- when ---------------------------------------------------------------------------------------------------


def test_on_a_broker_of_its_own_a_node_publishes_the_whole_cluster() -> None:
    assert set(settled().retained) == set(publications(cluster_view(), TREE, A))


def test_its_own_topics_do_not_wait_for_the_brokers_retained_ones() -> None:
    sent = Broker().publish()
    assert f"{BASE}/node/{A}/availability" in sent
    assert f"{BASE}/node/{B}/availability" not in sent


def test_availability_goes_first() -> None:
    assert next(iter(Broker().publish())) == f"{BASE}/node/{A}/availability"


def test_nothing_is_published_twice_without_a_change() -> None:
    broker = settled()
    broker.show(cluster_view(uptime_s=400.0))
    assert broker.after(1.0) == {}


def test_everything_comes_again_every_30_seconds() -> None:
    broker = settled()
    assert set(broker.after(REFRESH_S)) == set(broker.retained)


def test_a_change_is_due_at_once() -> None:
    broker = settled()
    broker.show(cluster_view(down=(B,)))
    sent = broker.after(0.0)
    assert sent[f"{BASE}/node/{B}/availability"] == b"offline"
    assert f"{BASE}/node/{A}/state" not in sent


def test_a_drifting_figure_is_published_now_and_then() -> None:
    broker = settled()
    broker.show(cluster_view(rtt_ms=3.3))
    assert broker.after(0.1) == {}
    assert set(broker.after(DRIFT_S)) == {f"{BASE}/link/{A}--{B}/state"}


def test_the_noise_of_an_idle_link_waits_for_the_next_round() -> None:
    """Two messages a minute and topic, where nothing happens."""
    broker = settled()
    topic, sent = f"{BASE}/link/{A}--{B}/state", 0
    for step in range(60):
        broker.show(cluster_view(rtt_ms=(0.12, 0.31, 0.2)[step % 3]))
        sent += topic in broker.after(1.0)
    assert sent == 2
    assert msgspec.json.decode(broker.retained[topic])["rtt_ms"] in (0.12, 0.31, 0.2)


def test_a_figure_that_comes_or_goes_has_moved() -> None:
    assert has_moved({"rtt_ms": None}, {"rtt_ms": 0.2})
    assert has_moved({"rtt_ms": 0.2}, {"rtt_ms": None})
    assert has_moved({"rtt_ms": 40.0}, {"rtt_ms": 51.0})
    assert not has_moved({"rtt_ms": 40.0}, {"rtt_ms": 49.0})
    assert has_moved({"download_done_bytes": 1}, {"download_done_bytes": 2})
    assert not has_moved({}, {})


def test_a_lost_alert_is_cleared_by_an_empty_payload() -> None:
    broker = settled(view=cluster_view(alerts=(alert(),)))
    topic = f"{BASE}/alert/no-path--{B}"
    assert broker.retained[topic]
    broker.show(cluster_view())
    assert broker.after(0.0) == {topic: b""}
    assert broker.after(0.1) == {}


def test_another_connection_gets_everything_again() -> None:
    broker = settled()
    broker.retained.clear()
    broker.ledger.connected(broker.now)
    broker.publish()
    broker.after(SETTLE_S)
    assert set(broker.retained) == set(publications(cluster_view(), TREE, A))


def test_events_queue_up_to_a_bound_and_the_oldest_go_but_never_a_state() -> None:
    broker = Broker()
    for number in range(MAX_EVENTS + 10):
        broker.ledger.event(event_publication(Event(float(number), "node.up", B), f"e-{number}", TREE, A))
    sent = list(broker.after(SETTLE_S))
    events = [topic for topic in sent if "/event/" in topic]
    assert events == [f"{BASE}/event/e-{number}" for number in range(10, MAX_EVENTS + 10)]
    assert broker.ledger.events_dropped == 10
    assert set(publications(cluster_view(), TREE, A)) <= set(sent)
    assert broker.after(0.1) == {}


# --- who ----------------------------------------------------------------------------------------------------


def test_a_node_that_speaks_here_is_left_to_speak_for_itself() -> None:
    broker = Broker(A)
    broker.hear_node(B, retained=True)
    broker.publish()
    broker.after(SETTLE_S)
    broker.after(REFRESH_S)
    assert not [topic for topic in broker.retained if f"/{B}/" in topic or f"_{B}/" in topic]
    assert f"{BASE}/link/{A}--{B}/state" in broker.retained, "the lower end speaks for the link"


def test_the_higher_end_leaves_the_link_and_the_mesh_to_the_lower_one() -> None:
    broker = Broker(B)
    broker.hear_node(A, retained=True)
    broker.publish()
    broker.after(SETTLE_S)
    assert {topic.split("/")[-2] for topic in broker.retained} == {B, f"exod_{B}"}


def test_a_node_that_fell_silent_is_spoken_for_again() -> None:
    broker = Broker(A)
    broker.hear_node(B)
    broker.publish()
    assert f"{BASE}/node/{B}/state" in broker.after(SPEAKS_FOR_S + 1)


def test_a_node_that_the_mesh_lost_is_offline_at_once_although_it_spoke_just_now() -> None:
    broker = Broker(A)
    broker.publish()
    broker.after(SETTLE_S)
    broker.hear_node(B)
    broker.after(1.0)
    broker.show(cluster_view(down=(B,)))
    assert broker.after(0.0)[f"{BASE}/node/{B}/availability"] == b"offline"


def test_a_node_that_lives_on_beyond_a_partition_is_not_contradicted_for_ever() -> None:
    broker = Broker(A)
    broker.hear_node(B)
    broker.publish()
    broker.after(SETTLE_S)
    broker.show(cluster_view(down=(B,)))
    broker.after(0.0)
    broker.now += 0.1
    broker.hear_node(B)
    assert f"{BASE}/node/{B}/availability" not in broker.after(REFRESH_S)


def test_of_those_who_speak_here_the_lowest_speaks_for_a_lost_node() -> None:
    everybody = (A, B, C)
    for node, speaks in ((A, True), (B, False)):
        broker = Broker(node, cluster_view(nodes=everybody))
        broker.hear_node(B if node == A else A)
        broker.publish()
        broker.after(SETTLE_S)
        broker.show(cluster_view(nodes=everybody, down=(C,)))
        assert (broker.after(0.0).get(f"{BASE}/node/{C}/availability") == b"offline") is speaks


def test_after_a_last_will_nobody_says_online_before_the_mesh_could_judge() -> None:
    broker = Broker(A)
    broker.hear_node(B)
    broker.publish()
    broker.after(SETTLE_S)
    broker.hear(f"{BASE}/node/{B}/availability", b"offline")
    assert f"{BASE}/node/{B}/availability" not in broker.after(LEFT_GRACE_S / 2)
    broker.show(cluster_view(down=(B,)))
    assert broker.after(0.0)[f"{BASE}/node/{B}/availability"] == b"offline"


def test_a_node_whose_connection_to_this_broker_is_lost_is_online_again_through_its_peers() -> None:
    broker = Broker(A)
    broker.hear_node(B)
    broker.publish()
    broker.after(SETTLE_S)
    broker.hear(f"{BASE}/node/{B}/availability", b"offline")
    assert broker.after(LEFT_GRACE_S)[f"{BASE}/node/{B}/availability"] == b"online"


def test_what_others_say_of_this_node_is_corrected_and_no_storm_is_made() -> None:
    broker = settled()
    topic = f"{BASE}/node/{A}/availability"
    broker.hear(topic, b"offline")
    assert broker.after(0.0) == {}
    assert broker.after(CORRECT_AGAIN_S) == {topic: b"online"}
    assert broker.after(CORRECT_AGAIN_S) == {}


def test_an_alert_that_another_cleared_while_it_stands_comes_back() -> None:
    broker = settled(view=cluster_view(alerts=(alert(),)))
    topic = f"{BASE}/alert/no-path--{B}"
    broker.hear(topic, b"")
    assert list(broker.after(CORRECT_AGAIN_S)) == [topic]


# --- what an earlier life left ------------------------------------------------------------------------------


def test_what_this_node_left_in_an_earlier_life_is_cleared() -> None:
    old = publications(cluster_view(alerts=(alert("old"),)), TREE, A)
    topic = f"{BASE}/alert/old--{B}"
    broker = Broker()
    broker.hear(topic, old[topic].payload, retained=True)
    broker.publish()
    assert broker.after(SETTLE_S)[topic] == b""
    assert topic not in broker.after(0.1)


def test_what_another_left_is_cleared_when_it_does_not_speak_here_and_left_alone_when_it_does() -> None:
    left = publications(cluster_view(alerts=(alert("old", node=B),)), TREE, B)
    topic = f"{BASE}/alert/old--{B}"
    for speaks in (True, False):
        broker = Broker()
        broker.hear(topic, left[topic].payload, retained=True)
        if speaks:
            broker.hear_node(B)
        broker.publish()
        assert topic not in broker.after(UNKNOWN_GRACE_S - 1)
        assert (broker.after(1.0).get(topic) == b"") is not speaks


def test_a_node_that_is_no_more_in_the_cluster_becomes_offline_and_its_states_go() -> None:
    broker = Broker()
    broker.hear_node(C, retained=True)
    broker.publish()
    broker.after(SETTLE_S)
    sent = broker.after(SPEAKS_FOR_S + 1)
    assert sent[f"{BASE}/node/{C}/availability"] == b"offline"
    assert sent[f"{BASE}/node/{C}/state"] == b""


def test_a_clean_close_says_offline_for_itself_last_and_for_those_it_spoke_for() -> None:
    broker = settled()
    goodbye = [(publication.topic, publication.payload) for publication in broker.ledger.goodbyes(broker.now)]
    assert goodbye == [
        (f"{BASE}/node/{B}/availability", b"offline"),
        (f"{BASE}/node/{A}/availability", b"offline"),
    ]
    broker.hear_node(B)
    assert len(broker.ledger.goodbyes(broker.now)) == 1


def test_home_assistants_birth_makes_everything_due_again_and_is_never_cleared() -> None:
    broker = settled()
    assert broker.publish() == {}
    broker.hear("homeassistant/status", b"offline")
    broker.hear("homeassistant/status", b"online", retained=True)
    assert broker.publish() == {}, "an old message, and its end, say nothing new"
    broker.hear("homeassistant/status", b"online")
    assert set(broker.publish()) == set(publications(cluster_view(), TREE, A))
    assert "homeassistant/status" not in broker.after(UNKNOWN_GRACE_S + REFRESH_S)
