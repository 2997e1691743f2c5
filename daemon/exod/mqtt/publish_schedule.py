"""Decides which messages are due on one broker, and for whom this node speaks there. Pure: `now` is a parameter.

Whichever broker a user subscribes to, the whole cluster is to be there. Nodes may share a broker (a configured one,
or two daemons of one host), or have one each. So every node is ready to publish every topic, and one rule says who
does:

    A topic is published by its author, if the author speaks on this broker; else by the lowest node id that
    speaks here; this node speaks wherever it is connected.

A node *speaks here* if its own node state (`by` is itself) was heard on this broker within SPEAKS_FOR_S, its
availability here is not `offline` (the last will takes it away at once), and the mesh has not lost it - or it was
heard live since the mesh lost it. On a broker of one's own nobody else is heard, and the rule makes the node
publish everybody. On a shared one the others fall silent as soon as the author is heard; when its power is cut the
mesh says `down` long before any keepalive, and the lowest of the others publishes `offline` for it.

Two rules more keep a broker true:
- What is said of a node by others while it is connected is corrected by that node itself, at once (a peer across
  a partition calls it `offline`).
- A retained topic that is true no more is cleared: at once what this node left there itself (also in an earlier
  life), after UNKNOWN_GRACE_S what a node left that does not speak here. A node that is in nobody's view any more
  is not cleared but `offline`.

States are kept one a topic, the latest wins; only events queue, and the oldest are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec

from exod.daemon_api.mqtt_view import MqttView
from exod.model import NodeId, NodeState
from exod.mqtt.topic_tree import TopicTree
from exod.mqtt.topics import OFFLINE, ONLINE, Publication, has_moved, publications
from exoengine.decoding import DecodingError, from_json

REFRESH_S: Final = 30.0
"""Everything is published again this often (the contract)."""

DRIFT_S: Final = 5.0
"""A figure that only drifts is published at most this often: often enough for a graph, quiet at rest."""

SPEAKS_FOR_S: Final = 2.5 * REFRESH_S
"""A node that speaks here is heard every REFRESH_S: two may be lost, with half a period of slack."""

SETTLE_S: Final = 0.5
"""After connecting: the broker's retained messages come in first, then this node speaks for others."""

UNKNOWN_GRACE_S: Final = 20.0
"""A node that just started has not found its peers yet: it judges what others left only after this."""

LEFT_GRACE_S: Final = 5.0
"""A broker notices a killed daemon (its will) sooner than the mesh does: until the mesh had time to judge, no one
says `online` for a node whose will has just spoken.
"""

CORRECT_AGAIN_S: Final = 1.0
"""A topic of one's own is corrected at most this often, so that two that disagree do not make a storm."""

MAX_EVENTS: Final = 256
"""Events that wait for a broker: minutes of trouble, and never a memory problem."""

MAX_SEEN: Final = 4096
"""Foreign retained topics remembered: far more than 8 nodes have; a flooded broker does not flood this node."""


class _Sent(msgspec.Struct):
    steady: bytes
    drifting: Mapping[str, object]
    at: float


class _HeardPeer(msgspec.Struct):
    """What was heard on this broker from one other node itself."""

    heard_at: float
    heard_live_at: float


class MqttLedger:
    """The record of one connection: what should stand on the broker, what was sent, and what was heard there."""

    def __init__(self, tree: TopicTree, self_id: NodeId, *, commands: bool = False) -> None:
        self._tree = tree
        self._self_id = self_id
        self._commands = commands
        self._wanted: dict[str, Publication] = {}
        self._states: dict[NodeId, NodeState] = {}
        self._down_since: dict[NodeId, float] = {}
        self._events: deque[Publication] = deque(maxlen=MAX_EVENTS)
        self.events_dropped = 0
        self._connected_at = 0.0
        self._forget_broker()

    def _forget_broker(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self._seen: dict[str, NodeId | None] = {}
        self._availability: dict[NodeId, bytes] = {}
        self._voices: dict[NodeId, _HeardPeer] = {}
        self._left_at: dict[NodeId, float] = {}
        self._not_before: dict[str, float] = {}

    # --- what comes in --------------------------------------------------------------------------------------

    def view(self, view: MqttView, now: float) -> None:
        """The cluster as this node knows it now."""
        states = {node.id: node.state for node in view.nodes}
        for node, state in states.items():
            if state is NodeState.DOWN:
                self._down_since.setdefault(node, now)
            else:
                self._down_since.pop(node, None)
        self._down_since = {node: at for node, at in self._down_since.items() if node in states}
        self._states = states
        self._wanted = publications(view, self._tree, self._self_id, commands=self._commands)

    def event(self, event: Publication) -> None:
        if len(self._events) == MAX_EVENTS:
            self.events_dropped += 1
        self._events.append(event)

    def connected(self, now: float) -> None:
        """A new connection, perhaps to another broker: everything is due, nothing is known of the others."""
        self._forget_broker()
        self._connected_at = now

    def heard(self, topic: str, payload: bytes, retained: bool, now: float) -> None:
        """A message on one of `TopicTree.subscriptions`; own messages come back too and change nothing."""
        if topic == self._tree.birth():
            if payload == ONLINE and not retained:
                self._sent.clear()  # Home Assistant has started, and knows nothing of before
            return
        speaker = _speaker_in(payload)
        self._remember(topic, payload, speaker)
        if (node := self._tree.node_of(topic, "availability")) is not None and node != self._self_id:
            self._availability[node] = payload
            if payload != ONLINE:
                self._voices.pop(node, None)
                if not retained and node not in self._down_since:
                    self._left_at[node] = now
        node = self._tree.node_of(topic, "state")
        if node is not None and node == speaker and node != self._self_id:
            live_at = self._voices[node].heard_live_at if node in self._voices else float("-inf")
            self._voices[node] = _HeardPeer(now, live_at if retained else now)
        if not retained:
            self._correct(topic, payload, speaker, now)

    def _remember(self, topic: str, payload: bytes, speaker: NodeId | None) -> None:
        if not payload:
            self._seen.pop(topic, None)
        elif topic in self._seen or len(self._seen) < MAX_SEEN:
            self._seen[topic] = speaker

    def _correct(self, topic: str, payload: bytes, speaker: NodeId | None, now: float) -> None:
        """Makes a topic due again where another said something else of this node than it says itself."""
        wanted = self._wanted.get(topic)
        if wanted is None or wanted.author != self._self_id or topic not in self._sent:
            return
        about_self = topic in (
            self._tree.availability(self._self_id),
            self._tree.node(self._self_id),
            self._tree.engine(self._self_id),
        )
        contradicted = payload != wanted.payload and speaker != self._self_id if about_self else not payload
        if contradicted:
            del self._sent[topic]
            self._not_before[topic] = now + CORRECT_AGAIN_S

    # --- who speaks -----------------------------------------------------------------------------------------

    def speaks_here(self, node: NodeId, now: float) -> bool:
        """Does this node publish its own topics on this broker?"""
        if node == self._self_id:
            return True
        voice = self._voices.get(node)
        if voice is None or now - voice.heard_at > SPEAKS_FOR_S or self._availability.get(node) != ONLINE:
            return False
        return node not in self._down_since or voice.heard_live_at > self._down_since[node]

    def _is_mine(self, author: NodeId, now: float) -> bool:
        """Is it this node that publishes this author's topics here?"""
        if author == self._self_id:
            return True
        if now < self._connected_at + SETTLE_S or self.speaks_here(author, now):
            return False
        if author not in self._down_since and now < self._left_at.get(author, float("-inf")) + LEFT_GRACE_S:
            return False
        return not any(node < self._self_id and self.speaks_here(node, now) for node in self._voices)

    # --- what is due ----------------------------------------------------------------------------------------

    def due(self, now: float) -> list[Publication]:
        """Everything to publish now, availability first. Each is to be handed to `published` once it is out."""
        due = [wanted for wanted in self._wanted.values() if self._is_due(wanted, now)]
        due += self._outdated(now)
        due.sort(key=lambda publication: publication.payload not in (ONLINE, OFFLINE))
        return [*due, *self._events]

    def _is_due(self, wanted: Publication, now: float) -> bool:
        if not self._is_mine(wanted.author, now) or now < self._not_before.get(wanted.topic, now):
            return False
        sent = self._sent.get(wanted.topic)
        if sent is None or sent.steady != wanted.steady or now - sent.at >= REFRESH_S:
            return True
        return now - sent.at >= DRIFT_S and has_moved(sent.drifting, wanted.drifting)

    def _outdated(self, now: float) -> list[Publication]:
        """Messages that take back what stands on the broker and is true no more."""
        if not self._wanted or now < self._connected_at + SETTLE_S:
            return []
        corrections = []
        for topic, speaker in {**dict.fromkeys(self._sent, self._self_id), **self._seen}.items():
            if topic in self._wanted:
                continue
            node = self._tree.node_of(topic, "availability")
            if node is not None:
                if self._availability.get(node) == ONLINE and self._may_judge(node, now):
                    corrections.append(Publication(topic, OFFLINE, node))
            elif self._may_judge(speaker, now):
                corrections.append(Publication(topic, b"", self._self_id))
        return corrections

    def _may_judge(self, speaker: NodeId | None, now: float) -> bool:
        """May this node take back what `speaker` left on the broker?"""
        if speaker == self._self_id:
            return True
        if now < self._connected_at + UNKNOWN_GRACE_S:
            return False
        return speaker is None or not self.speaks_here(speaker, now)

    def published(self, publication: Publication, now: float) -> None:
        """The broker acknowledged it."""
        if not publication.retain:
            with suppress(ValueError):  # dropped meanwhile, because newer ones came in
                self._events.remove(publication)
        elif publication.topic in self._wanted:
            self._sent[publication.topic] = _Sent(publication.steady, publication.drifting, now)
        else:
            self._sent.pop(publication.topic, None)
            self._seen.pop(publication.topic, None)
            if (node := self._tree.node_of(publication.topic, "availability")) is not None:
                self._availability[node] = publication.payload

    def goodbyes(self, now: float) -> list[Publication]:
        """What a clean close leaves behind: `offline` for the nodes this one speaks for here, itself last."""
        others = [
            wanted
            for wanted in self._wanted.values()
            if wanted.payload == ONLINE and wanted.author != self._self_id and self._is_mine(wanted.author, now)
        ]
        goodbyes = [Publication(wanted.topic, OFFLINE, wanted.author) for wanted in others]
        return [*goodbyes, Publication(self._tree.availability(self._self_id), OFFLINE, self._self_id)]


def _speaker_in(payload: bytes) -> NodeId | None:
    """The node that says it published this (`by`); None for plain text and for what exod did not write."""
    try:
        value = from_json(payload, dict[str, object])
    except DecodingError:
        return None
    speaker = value.get("by")
    return NodeId(speaker) if isinstance(speaker, str) else None
