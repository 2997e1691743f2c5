"""A frozen snapshot of what a node knows: what `status`, `links` and `mesh` show.

Decides nothing. Times are monotonic seconds of this host, RTTs milliseconds, losses 0 to 1.
"""

from __future__ import annotations

import msgspec

from exod.core.cluster.agreement_timing import LastChange
from exod.core.cluster.mesh import Mesh
from exod.core.pair.link import Link
from exod.core.pair.path_rating import rate_path
from exod.core.pair.path_reason import why
from exod.core.probe.datagram import RouteVerdict
from exod.core.probe.path import Path
from exod.core.probe.path_order import Band, Grade, order
from exod.model import (
    Kind,
    LocalAddress,
    MeshPlan,
    MeshState,
    NodeCard,
    NodeId,
    NodeState,
    PathId,
    PathSnapshot,
    PathState,
)

_STATE_PLACE = {PathState.UP: 0, PathState.DEGRADED: 1, PathState.INIT: 2, PathState.DEAD: 3}
"""Where the paths stand that cannot be used: what may still come before what is over."""


class PathView(PathSnapshot, frozen=True):
    """All that is known of one path."""

    peer_state: PathState
    lasting_loss: float
    """0 to 1, of what comes to this end, over ten seconds of a path in use."""
    eligible: bool
    """False: one end's route check is wrong, which is more than unchecked; the ring cannot use it."""
    routed: bool
    """A candidate through a router, because a static peer names it."""
    score_ms: float | None
    in_band: bool
    samples: int
    last_rtt_ms: float | None
    """The newest sample: what `ping` shows."""
    last_heard_s: float | None
    fault: str = ""
    """A debug fault that lies on it at this end, as text; empty where none does."""
    unfit: str = ""
    """What the ring met on it while its probes pass; empty where it is fit for the ring."""


class LinkView(msgspec.Struct, frozen=True):
    peer: NodeId
    peer_name: str
    agreed: bool
    agreed_since: float
    selected: PathId | None
    peer_selected: PathId | None
    """What the peer's register shows."""
    seq: int
    """Of the selection; 0 before the first."""
    kind: Kind | None
    """Of the selected path."""
    paths: tuple[PathView, ...]
    """Best first."""
    peer_seq: int | None = None
    """Of the peer's register."""


class NodeEntry(msgspec.Struct, frozen=True):
    id: NodeId
    name: str
    state: NodeState
    state_since: float
    reason: str
    is_self: bool
    incarnation: int
    version: str
    left: bool = False
    """It said goodbye: someone sent it away."""
    engine: bool = True
    """Does it host a rank?"""
    model: str = ""
    """What its configuration names; empty: nothing."""
    addresses: tuple[LocalAddress, ...] = ()
    skew: str = ""
    """Its datagrams are of another version, with what to do; empty where they are not."""


class MeshView(msgspec.Struct, frozen=True):
    state: MeshState
    epoch: int
    coordinator: NodeId
    plan: MeshPlan | None
    suspended: str | None
    """Why the plan in force cannot be used just now."""
    waiting_for: tuple[NodeId, ...]
    last_change: LastChange | None
    excluded_by: tuple[NodeId, ...] = ()
    """Live nodes that would coordinate this one but keep to a plan without it."""


class NodeView(msgspec.Struct, frozen=True):
    """Times are monotonic seconds of this host."""

    me: NodeCard
    nodes: tuple[NodeEntry, ...]
    links: tuple[LinkView, ...]
    mesh: MeshView
    hearings: tuple[tuple[NodeId, tuple[tuple[NodeId, str], ...]], ...] = ()
    """Of other nodes that live, whom each hears (id and name), as it told."""


def link_view(link: Link, platform: str, now: float) -> LinkView:
    register = link.agreement.register
    theirs = link.agreement.peer_register
    selected = link.selected_path
    return LinkView(
        peer=link.peer.id,
        peer_name=link.peer.name,
        agreed=link.agreed,
        agreed_since=link.agreed_since,
        selected=link.selected,
        peer_selected=None if theirs is None else theirs.path,
        peer_seq=None if theirs is None else theirs.seq,
        seq=0 if register is None else register.seq,
        kind=None if selected is None else selected.candidate.kind,
        paths=tuple(
            _path_view(one, link, platform, now)
            for one in sorted(link.paths, key=lambda path: _place(path, link, now))
        ),
    )


def _place(path: Path, link: Link, now: float) -> tuple[bool, int, tuple[bool, Grade, float, PathId]]:
    """The selection's own order, and behind it what cannot be used."""
    found = rate_path(path, link.probes, now)
    return (not found.usable, _STATE_PLACE[path.state], order(found))


def _path_view(path: Path, link: Link, platform: str, now: float) -> PathView:
    candidate = path.candidate
    return PathView(
        id=candidate.path,
        interface=candidate.local.interface,
        kind=candidate.kind,
        local=candidate.local.address,
        remote=candidate.remote.address,
        state=path.state,
        peer_state=path.peer_own,
        rtt_ms=path.rtt.floor_ms,
        rtt_p90_ms=path.rtt.p90_ms,
        loss=path.loss,
        lasting_loss=path.window.lasting_loss,
        selected=path is link.selected_path,
        eligible=RouteVerdict.WRONG not in (path.route, path.peer_route),
        routed=candidate.routed,
        why=why(path, link, platform, now),
        score_ms=path.rtt.cost_ms,
        in_band=path.band is Band.FAST,
        samples=path.rtt.samples,
        last_rtt_ms=path.rtt.last_ms,
        last_heard_s=now - path.last_rx if path.heard else None,
        fault=_fault(path, now),
        unfit=_unfit(path, link),
    )


def _unfit(path: Path, link: Link) -> str:
    if not path.ring.unfit:
        return ""
    return path.ring.cause if path.ring.own_unfit else f"{link.peer.name} saw it fail"


def _fault(path: Path, now: float) -> str:
    if now >= path.fault_until:
        return ""
    what = "drops everything" if path.fault_drop else f"adds {path.fault_delay_s * 1e3:g} ms"
    return f"a debug fault {what} for another {path.fault_until - now:.0f} s"


def node_entry(link: Link, skew: str = "") -> NodeEntry:
    liveness = link.liveness
    return NodeEntry(
        id=link.peer.id,
        name=link.peer.name,
        state=liveness.state,
        state_since=liveness.since,
        reason=liveness.reason,
        is_self=False,
        incarnation=link.peer_incarnation,
        version=link.peer.version,
        left=liveness.left,
        engine=link.peer.engine,
        model=link.peer.model,
        addresses=link.peer.addresses,
        skew=skew,
    )


def self_entry(card: NodeCard, started_at: float) -> NodeEntry:
    return NodeEntry(
        card.id,
        card.name,
        NodeState.UP,
        started_at,
        "this node",
        True,
        card.incarnation,
        card.version,
        engine=card.engine,
        model=card.model,
        addresses=card.addresses,
    )


def mesh_view(mesh: Mesh) -> MeshView:
    plan = mesh.committed
    return MeshView(
        state=mesh.state,
        epoch=0 if plan is None else plan.epoch.number,
        coordinator=mesh.coordinator,
        plan=plan,
        suspended=mesh.suspended,
        waiting_for=mesh.waiting_for,
        last_change=mesh.last_change,
        excluded_by=mesh.excluded_by,
    )
