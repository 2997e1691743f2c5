"""The names of the contract's MQTT topics. Pure: decides how a text becomes a topic level, and nothing else."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from exod.model import NodeId

MAX_LEVEL: Final = 100
"""Characters of one topic level. Brokers take 65,535 bytes a topic; people and their tools far less."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._:@=-]+")
"""`~` is not safe only because it marks a level that got a hash."""


def topic_level(text: str) -> str:
    """`text` as one level of a topic: no wildcard, separator, space or control character.

    A text that had to be changed or cut gets a short hash of itself, so that two texts never share a level.
    """
    clean = _UNSAFE.sub("-", text)
    if clean == text and 0 < len(clean) <= MAX_LEVEL:
        return clean
    return f"{clean[: MAX_LEVEL - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class TopicTree:
    """The names of this cluster's topics: `<prefix>/<cluster>/…`, and Home Assistant's under its own prefix."""

    def __init__(self, prefix: str, cluster: str, discovery_prefix: str = "homeassistant") -> None:
        self.base = f"{prefix.strip('/')}/{topic_level(cluster)}"
        self._discovery = discovery_prefix.strip("/")

    def availability(self, node: NodeId) -> str:
        return f"{self.base}/node/{node}/availability"

    def node(self, node: NodeId) -> str:
        return f"{self.base}/node/{node}/state"

    def link(self, a: NodeId, b: NodeId) -> str:
        return f"{self.base}/link/{a}--{b}/state"

    def mesh(self) -> str:
        return f"{self.base}/mesh/state"

    def engine(self, node: NodeId) -> str:
        return f"{self.base}/engine/{node}/state"

    def alert(self, code: str, subject: str) -> str:
        return f"{self.base}/alert/{topic_level(code)}--{topic_level(subject)}"

    def event(self, event_id: str) -> str:
        return f"{self.base}/event/{topic_level(event_id)}"

    def discovery(self, node: NodeId) -> str:
        """Below Home Assistant's own prefix: it looks nowhere else."""
        return f"{self._discovery}/device/exod_{node}/config"

    def birth(self) -> str:
        """Where Home Assistant says `online` when it has started, and then knows nothing yet."""
        return f"{self._discovery}/status"

    def command(self, node: NodeId) -> str:
        """What this node is asked to do, where the configuration allows it."""
        return f"{self.base}/node/{node}/command"

    def subscriptions(self) -> tuple[tuple[str, int], ...]:
        """(filter, QoS) of everything retained that a node of this cluster may have left on a broker."""
        base = self.base
        return (
            (f"{base}/node/+/availability", 1),
            (f"{base}/node/+/state", 1),
            (f"{base}/link/+/state", 0),
            (f"{base}/mesh/state", 0),
            (f"{base}/engine/+/state", 0),
            (f"{base}/alert/+", 1),
            (self.birth(), 0),
        )

    def node_of(self, topic: str, leaf: str) -> NodeId | None:
        """The node of a topic `<base>/node/<id>/<leaf>`; None for any other topic."""
        levels = topic.removeprefix(f"{self.base}/").split("/")
        return NodeId(levels[1]) if len(levels) == 3 and (levels[0], levels[2]) == ("node", leaf) else None
