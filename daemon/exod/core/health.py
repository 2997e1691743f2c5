"""What is wrong, in words: everything that is known -> one HealthSnapshot with reasons. Pure.

Healthy means: every node that belongs here is up, every pair uses a path within the limit that both ends agreed on,
one plan is agreed, and a request would be served. Down means: no request could be served. Anything between is
degraded. A reason keeps its `since` as long as it lasts. Called by `situation.py` at each change.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.view import LinkView, NodeView, PathView
from exod.model import EngineState, Health, Kind, MeshState, NodeState, PathState, Reason

SETTLE_S: Final = 3.0
"""Two nodes that start together agree within this: until then a pair that is not agreed is no reason yet."""


Finding = tuple[str, str, str]
"""(code, subject, text)."""


class HealthInput(msgspec.Struct, frozen=True):
    view: NodeView
    degraded_ms: float
    engine_enabled: bool
    engine_state: EngineState
    engine_text: str
    mqtt_text: str
    """Why a broker that the configuration names is not connected; empty where it is, or none is named."""


class HealthSnapshot(msgspec.Struct, frozen=True):
    health: Health
    reasons: tuple[Reason, ...]


class HealthJudge:
    """Remembers only since when each reason holds."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def judge(self, seen: HealthInput, now: float) -> HealthSnapshot:
        """`now` is wall clock, in Unix seconds: it is shown."""
        found = [*_nodes(seen), *_links(seen), *_mesh(seen), *_engine(seen)]
        if seen.mqtt_text:
            found.append(("mqtt_down", "mqtt", seen.mqtt_text))
        self._since = {(code, subject): self._since.get((code, subject), now) for code, subject, _ in found}
        reasons = tuple(Reason(code, subject, text, self._since[code, subject]) for code, subject, text in found)
        serving = seen.engine_state in (EngineState.READY, EngineState.GENERATING)
        if seen.engine_state is EngineState.FAILED:
            return HealthSnapshot(Health.DOWN, reasons)
        if not reasons and (serving or seen.engine_state is EngineState.OFF):
            return HealthSnapshot(Health.HEALTHY, reasons)
        return HealthSnapshot(Health.DEGRADED, reasons)


def _nodes(seen: HealthInput) -> list[Finding]:
    found: list[Finding] = []
    for node in seen.view.nodes:
        if node.state is NodeState.DOWN:
            found.append(("node_lost", node.id, f"{node.name} is down: {node.reason}"))
        elif node.state is NodeState.SUSPECT:
            found.append(("node_suspect", node.id, f"{node.name} is not heard: {node.reason}"))
    return found


def _links(seen: HealthInput) -> list[Finding]:
    states = {node.id: node.state for node in seen.view.nodes}
    found: list[Finding] = []
    for link in seen.view.links:
        if states.get(link.peer) is not NodeState.UP:
            continue
        pair = f"{seen.view.me.name}–{link.peer_name}"
        path = next((path for path in link.paths if path.selected), None)
        if path is None:
            found.append(("no_path", link.peer, f"{pair} has no path: {_others(link, None) or 'none was found'}"))
        elif not link.agreed:
            found.append(("not_agreed", link.peer, f"{pair}: the ends do not agree on {path.interface} yet"))
        else:
            found += _selected(seen, link, path, pair)
    return found


def _selected(seen: HealthInput, link: LinkView, path: PathView, pair: str) -> list[Finding]:
    """The path in use is agreed: is it any good, and is it the best that this pair has a cable for?"""
    rtt = f"{path.rtt_ms:.1f} ms" if path.rtt_ms is not None else "an unknown RTT"
    why = _others(link, path)
    if path.state is PathState.DEGRADED or (path.rtt_ms is not None and path.rtt_ms > seen.degraded_ms):
        over = f"{pair} runs over {_named(path)} at {rtt}"
        return [("link_slow", link.peer, f"{over}: {why}" if why else f"{over}, over the limit")]
    cable = next((one for one in link.paths if one.kind is Kind.THUNDERBOLT), None)
    if cable is not None and path.kind is not Kind.THUNDERBOLT and (cable.state is not PathState.UP or why):
        return [("cable_unused", link.peer, f"{pair} runs over {_named(path)} at {rtt}: {why}")]
    return []


def _named(path: PathView) -> str:
    return f"{'VPN ' if path.kind is Kind.VPN else ''}{path.interface}"


def _others(link: LinkView, selected: PathView | None) -> str:
    """What keeps each better path from being used, in words."""
    return "; ".join(f"{path.interface} {path.why}" for path in link.paths if path is not selected)


def _mesh(seen: HealthInput) -> list[Finding]:
    mesh = seen.view.mesh
    if mesh.state in (MeshState.AGREED, MeshState.ALONE):
        return []
    text = mesh.suspended or "the nodes are agreeing on a plan"
    return [("mesh_not_agreed", "mesh", f"the mesh is {mesh.state}: {text}")]


def _engine(seen: HealthInput) -> list[Finding]:
    match seen.engine_state:
        case EngineState.READY | EngineState.GENERATING:
            return []
        case EngineState.OFF:
            return []
        case EngineState.LOADING | EngineState.RECOVERING:
            text = f"the engine is {seen.engine_state}: {seen.engine_text}"
            return [(f"engine_{seen.engine_state}", "engine", text)]
        case EngineState.FAILED:
            return [("engine_failed", "engine", f"the engine failed: {seen.engine_text}")]
