"""Two nodes without an engine: what tests of links alone start, wait for and look at.

Decides how such a pair is configured and when it counts as joined. Never says how fast it should be: that is the
benchmarks'.
"""

from __future__ import annotations

from typing import Any, Final

from tests.lab.cluster import Cluster
from tests.lab.node import KINDS, Node
from tests.lab.reading import Status, members, pair_uses, path_over
from tests.lab.told import Event, events_since, of_type
from tests.lab.topology import Lab

JOINED_WITHIN_S: Final = 30.0
CONFIG: Final[dict[str, dict[str, Any]]] = {
    # bridge9 is what a test renames bridge0 to.
    "mesh": {"kinds": KINDS | {"bridge9": "thunderbolt"}},
    "engine": {"enabled": False},
    "mqtt": {"broker": "off"},
}


def new_pair(lab: Lab, **mesh: Any) -> Cluster:
    return Cluster(lab, (1, 2), config=CONFIG | {"mesh": CONFIG["mesh"] | mesh})


def start_afresh(pair: Cluster) -> list[Status]:
    """New lives on undisturbed links: no path has relapsed, no switch was spent. Returns once the cable is used."""
    pair.kill9()
    pair.lab.restore()
    pair.start()
    return wait_joined(pair, "thunderbolt")


def wait_joined(pair: Cluster, kind: str, deadline_s: float = JOINED_WITHIN_S) -> list[Status]:
    """Waits until both ends say that both use a path of that kind, in one agreed mesh."""
    return pair.wait_until(lambda found: joined_on(found, kind), deadline_s, f"both ends use {kind}")


def joined_on(statuses: list[Status], kind: str) -> bool:
    names = {status["node"]["name"] for status in statuses}
    return all(
        status["mesh"]["state"] == "agreed"
        and members(status) == names
        and all(pair_uses(status, peer, kind) for peer in names - {status["node"]["name"]})
        for status in statuses
    )


def peer_of(pair: Cluster, node: Node) -> Node:
    return next(one for one in pair.nodes if one is not node)


def path_of(status: Status, interface: str) -> dict[str, Any]:
    """The best path of the only pair that leaves from `interface`."""
    (link,) = status["links"]
    path = path_over(status, link["peer_name"], interface)
    assert path is not None, f"{status['node']['name']} knows no path over {interface}"
    return path


def said(pair: Cluster, since: float, *types: str) -> list[tuple[str, Event]]:
    """(node, event) for every event of these types on either node since then."""
    return [
        (node.name, event)
        for node in pair.nodes
        for event in events_since(node, since)
        if any(of_type([event], one) for one in types)
    ]
