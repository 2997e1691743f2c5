"""What the daemons of a lab said in their event logs, by time.

All hosts of a lab share one wall clock, so an event's `ts` on any node and the moment of a fault compare. Decides
nothing about what should have been said.
"""

from __future__ import annotations

from typing import Any

from tests.lab.node import Node

Event = dict[str, Any]


def events_since(node: Node, since: float) -> list[Event]:
    """This node's events that are later than `since` (Unix seconds), oldest first."""
    return [event for event in node.events() if event["ts"] > since]


def of_type(events: list[Event], kind: str, /, **fields: Any) -> list[Event]:
    """Those of one type whose fields are as named: `of_type(events, "path.dead", interface="bridge0")`."""
    return [
        event
        for event in events
        if event["type"] == kind and all(event.get(name) == value for name, value in fields.items())
    ]
