"""Which cables this node has to the neighbours of its rank, beside those of the plan's edges: large messages inside
graphs take them, too. Each node sees its own end; the ranks agree on the rest when they form a group
(`exoengine/ring/further_cables.py`).

Decides what counts: a path that both ends call up, of the edge's kind and a wire, on an interface of its own at
this end, as close as the edge's path, and not through a router.
"""

from __future__ import annotations

from exod.core.engine.engine_events import NodeCable
from exod.core.status.view import LinkView, NodeView, PathView
from exod.model import Edge, Kind, PathState

_WIRES = (Kind.THUNDERBOLT, Kind.ETHERNET)
"""A radio shares its medium, and a VPN runs over one of these."""


def further_cables(view: NodeView) -> tuple[NodeCable, ...]:
    """In the order of their addresses; none without a plan."""
    plan = view.mesh.plan
    if plan is None or view.mesh.suspended:
        return ()
    edges = {
        edge.target if edge.source == view.me.id else edge.source: edge
        for edge in plan.edges[: len(plan.ring)]
        if view.me.id in (edge.source, edge.target)
    }
    return tuple(cable for link in view.links if link.peer in edges for cable in _of(link, edges[link.peer]))


def _of(link: LinkView, edge: Edge) -> list[NodeCable]:
    used = {edge.source_address, edge.target_address}
    taken = {edge.source_interface if link.peer == edge.target else edge.target_interface}
    found = []
    for path in sorted(link.paths, key=lambda path: path.id):
        ends = {path.local, path.remote}
        if _counts(path, edge) and path.interface not in taken and not ends & used:
            taken.add(path.interface)
            used |= ends
            found.append(NodeCable(link.peer, path.interface, path.local, path.remote))
    return found


def _counts(path: PathView, edge: Edge) -> bool:
    return (
        path.kind is edge.kind
        and path.kind in _WIRES
        and path.state is PathState.UP
        and path.in_band
        and path.eligible
        and not path.routed
    )
