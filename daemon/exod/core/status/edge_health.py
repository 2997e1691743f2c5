"""Whether the edges of this node's rank are agreed by both ends and healthy: where not, its steps are safe ones."""

from __future__ import annotations

from exod.core.status.view import NodeView
from exod.model import Edge, PathState


def edge_health(view: NodeView) -> tuple[bool, str]:
    """Healthy or not, and where not the reason, for people."""
    plan = view.mesh.plan
    if plan is None or view.mesh.suspended:
        return False, view.mesh.suspended or "no plan is agreed"
    faults = (_fault(view, edge) for edge in plan.edges if view.me.id in (edge.source, edge.target))
    reason = next((fault for fault in faults if fault), "")
    return not reason, reason


def _fault(view: NodeView, edge: Edge) -> str:
    peer = edge.target if edge.source == view.me.id else edge.source
    link = next((link for link in view.links if link.peer == peer), None)
    path = next((path for path in link.paths if path.id == edge.path), None) if link else None
    if link is None or path is None or not link.agreed:
        return f"the ends of {edge.path} are not agreed"
    return "" if path.state is PathState.UP else f"{path.interface} is {path.state}"
