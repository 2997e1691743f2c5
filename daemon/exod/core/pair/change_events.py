"""What a link writes into the event log and the history when a path's state, the selection or the peer changes, and
a mesh when it commits.

Decides nothing.
"""

from __future__ import annotations

from exod.core.base.journal import Journal
from exod.core.pair.peer_liveness import PeerLiveness
from exod.core.probe.path import Path
from exod.model import MeshPlan, NodeCard, PathId, PathState


def path_changed(journal: Journal, peer: NodeCard, path: Path, before: PathState, now: float) -> float | None:
    """Returns how long the change took to notice, in milliseconds, where that is known here."""
    own_word = path.own is path.state
    reason = path.cause if own_word else f"{peer.name} reports it {path.peer_own}"
    detect_ms = path.detect_ms if own_word and path.state is not PathState.UP else None
    rtt_ms = path.rtt.floor_ms
    name = path.candidate.path
    journal.decide(
        now,
        name,
        f"path is {path.state}",
        before=before,
        own=path.own,
        peer=path.peer_own,
        rtt_ms=rtt_ms,
        loss=path.loss,
        reason=reason,
        detect_ms=detect_ms,
    )
    if path.state is not PathState.INIT:
        journal.emit(
            f"path.{path.state}",
            name,
            peer=peer.id,
            peer_name=peer.name,
            interface=path.candidate.local.interface,
            kind=path.candidate.kind,
            rtt_ms=rtt_ms,
            loss=round(path.loss, 3),
            reason=reason,
            detect_ms=detect_ms,
        )
    return detect_ms


def selection_changed(
    journal: Journal,
    peer: NodeCard,
    before: PathId | None,
    after: PathId | None,
    path: Path | None,
    *,
    seq: int,
    cause: str,
    reason: str,
    now: float,
) -> None:
    """`path` is the one selected, where this end has it."""
    journal.decide(now, peer.id, f"selected {after}", before=before, seq=seq, cause=cause, reason=reason)
    journal.emit(
        "link.selected",
        peer.id,
        peer_name=peer.name,
        **{"from": before, "to": after},
        seq=seq,
        cause=cause,
        reason=reason,
        interface=None if path is None else path.candidate.local.interface,
        kind=None if path is None else path.candidate.kind,
        rtt_ms=None if path is None else path.rtt.floor_ms,
    )


def ring_failed(journal: Journal, peer: NodeCard, path: Path, fault: str, unfit: bool, now: float) -> None:
    """The ring's own connection failed on a path whose probes pass."""
    name, cause = path.candidate.path, path.ring.cause
    journal.decide(now, name, "unfit for the ring" if unfit else "failed the ring", fault=fault, cause=cause)
    journal.emit(
        "path.unfit" if unfit else "path.ring_failed",
        name,
        peer=peer.id,
        peer_name=peer.name,
        interface=path.candidate.local.interface,
        kind=path.candidate.kind,
        fault=fault,
        reason=cause,
    )


def path_may_be_tried(journal: Journal, peer: NodeCard, path: Path, now: float) -> None:
    journal.decide(now, path.candidate.path, "may carry the ring again", peer=peer.id)
    journal.emit(
        "path.fit",
        path.candidate.path,
        peer=peer.id,
        peer_name=peer.name,
        interface=path.candidate.local.interface,
        reason="the time is over for which it was kept from the ring",
    )


def plan_committed(
    journal: Journal, plan: MeshPlan, reason: str, detect_ms: float | None, agree_ms: float, now: float
) -> None:
    took = {"reason": reason, "detect_ms": detect_ms, "agree_ms": agree_ms}
    number = plan.epoch.number
    journal.decide(now, plan.hash, "committed a plan", epoch=number, ring=plan.ring, **took)
    journal.emit(
        "mesh.agreed",
        plan.hash,
        epoch=number,
        **took,
        coordinator=plan.coordinator,
        members=[member.id for member in plan.members],
        ring=list(plan.ring),
    )


def peer_changed(journal: Journal, peer: NodeCard, liveness: PeerLiveness) -> None:
    """For the event log; the state itself was logged by its setter."""
    journal.emit(f"node.{liveness.state}", peer.id, name=peer.name, reason=liveness.reason)
