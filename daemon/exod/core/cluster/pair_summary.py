"""What a link tells the mesh: one pair, reduced to what a plan depends on.

Decides nothing.
"""

from __future__ import annotations

import msgspec

from exod.core.base.mesh_messages import LinkSummary
from exod.core.pair.link import Link
from exod.core.probe.path import USABLE
from exod.core.probe.path_order import Band
from exod.model import Kind, NodeCard, NodeId, NodeState, PathId


class PairSummary(msgspec.Struct, frozen=True):
    peer: NodeId
    card: NodeCard
    incarnation: int
    state: NodeState
    left: bool
    heard: bool
    """In its present incarnation."""
    agreed: bool
    summary: LinkSummary
    usable: frozenset[PathId]
    """Paths that carry: a plan's edge on any other is broken."""
    plan_prefix: str
    """The beginning of the hash of the plan that the peer runs; empty for none."""
    detect_ms: float | None
    verdict_at: float | None
    unfit: frozenset[PathId] = frozenset()
    """Paths whose probes pass and on which the ring fails."""
    misses: bool = False
    """The peer says that it does not hear every node that others hear."""


def _carrying(link: Link) -> frozenset[PathId]:
    """A path on which the ring fails carries only where there is no other."""
    usable = [one for one in link.paths if one.state in USABLE and not one.gone]
    fit = [one for one in usable if not one.ring.unfit]
    return frozenset(one.candidate.path for one in fit or usable)


def summarize_pair(link: Link) -> PairSummary:
    path = link.selected_path
    cost = 0.0 if path is None else path.rtt.cost_ms or 0.0
    return PairSummary(
        peer=link.peer.id,
        card=link.peer,
        incarnation=link.peer_incarnation,
        state=link.liveness.state,
        left=link.liveness.left,
        heard=link.liveness.ever_heard,
        agreed=link.agreed,
        summary=LinkSummary(
            peer=link.peer.id,
            peer_incarnation=link.peer_incarnation,
            agreed=link.agreed,
            selection=link.agreement.register,
            path=link.selected,
            interface="" if path is None else path.candidate.local.interface,
            address="" if path is None else path.candidate.local.address,
            kind=Kind.OTHER if path is None else path.candidate.kind,
            in_band=path is not None and path.band is Band.FAST,
            cost_ms=round(cost * 2) / 2,
            peer_name=link.peer.name,
            up=link.liveness.state is NodeState.UP,
        ),
        usable=_carrying(link),
        plan_prefix=link.statements.plan_prefix,
        detect_ms=link.detect_ms,
        verdict_at=link.verdict_at,
        unfit=frozenset(one.candidate.path for one in link.paths if one.ring.unfit and one.state in USABLE),
        misses=link.statements.misses,
    )
