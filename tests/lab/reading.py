"""Reads the status document of the contract, as `exoctl status --json` and `/api/status` give it.

Pure: dictionaries in, facts out. Decides what tests mean by "agreed on the cable" or "can serve". Never asks a node
for anything.
"""

from __future__ import annotations

import itertools
from typing import Any

Status = dict[str, Any]


def link_to(status: Status, peer_name: str) -> dict[str, Any] | None:
    """This node's link to the peer with that name."""
    return next((link for link in status["links"] if link["peer_name"] == peer_name), None)


def selected_path(status: Status, peer_name: str) -> dict[str, Any] | None:
    """The path in use to that peer."""
    link = link_to(status, peer_name)
    if link is None or link["selected"] is None:
        return None
    return next((path for path in link["paths"] if path["id"] == link["selected"]), None)


def path_over(status: Status, peer_name: str, interface: str) -> dict[str, Any] | None:
    """The best known path to that peer that leaves from `interface`."""
    link = link_to(status, peer_name)
    paths = [path for path in link["paths"] if path["interface"] == interface] if link else []
    order = {"up": 0, "degraded": 1, "init": 2, "dead": 3}
    return min(paths, key=lambda path: order[path["state"]], default=None)


def members(status: Status) -> set[str]:
    """Names of the nodes that are up."""
    return {node["name"] for node in status["nodes"] if node["state"] == "up"}


def pair_uses(status: Status, peer_name: str, kind: str) -> bool:
    """Whether this end says that both ends agreed on a path of that kind."""
    link, path = link_to(status, peer_name), selected_path(status, peer_name)
    return bool(link and link["agreed"] and path and path["kind"] == kind)


def agreed_on(statuses: list[Status], kind: str) -> bool:
    """Whether every node says: one plan for all of us, every pair and every edge on a path of that kind."""
    names = {status["node"]["name"] for status in statuses}
    plans = {(str(status["mesh"]["epoch"]), status["mesh"]["plan"]) for status in statuses}
    return (
        len(plans) == 1
        and all(plan for _, plan in plans)
        and all(status["mesh"]["state"] == "agreed" for status in statuses)
        and all(members(status) == names for status in statuses)
        and all(pair_uses(status, peer, kind) for status in statuses for peer in names - {status["node"]["name"]})
        and all(status["mesh"]["edges"] for status in statuses)
        and all(edge["kind"] == kind for status in statuses for edge in status["mesh"]["edges"])
    )


def layers_cover(status: Status) -> bool:
    """Whether each member holds a span of layers, and the spans follow one another without gap or overlap."""
    ranks = sorted(status["engine"]["ranks"], key=lambda rank: rank["rank"])
    spans = sorted(tuple(rank["layers"]) for rank in ranks)
    return (
        {rank["node"] for rank in ranks} == {node["id"] for node in status["nodes"] if node["state"] == "up"}
        and [rank["rank"] for rank in ranks] == list(range(len(ranks)))
        and bool(spans)
        and spans[0][0] == 0
        and all(first < end for first, end in spans)
        and all(end == first for (_, end), (first, _) in itertools.pairwise(spans))
    )


def can_serve(status: Status) -> bool:
    """Whether the model is loaded on all members and no recovery is under way."""
    engine = status["engine"]
    is_whole = engine["parallel"] == "tensor" or layers_cover(status)
    return engine["state"] in ("ready", "generating") and is_whole


def summary(status: Status) -> str:
    """One line for failure messages and for the log of a lab."""
    mesh, engine = status["mesh"], status["engine"]
    links = ", ".join(
        f"{link['peer_name']}: {(selected_path(status, link['peer_name']) or {}).get('interface')}"
        f"{'' if link['agreed'] else ' (not agreed)'}"
        for link in status["links"]
    )
    return (
        f"{status['node']['name']}: {status['health']}, mesh {mesh['state']} epoch {mesh['epoch']}, "
        f"links [{links}], engine {engine['state']}"
    )
