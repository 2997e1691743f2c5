"""Is this node healthy, and if not, why: everything that is known, reduced to one of three states and reasons for
people.

The theory. Each reason is a fact with a stable code and a subject; the worst one decides the state. A fact counts
once it has lasted for its grace, so a switch that takes a millisecond alarms nobody, and its `since` stays while it
lasts. A cable that is pulled is no reason while another path carries the traffic within the limit; a node that said
goodbye is no reason either: someone sent it away.

Decides what is said about health; never acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from exod.alert_table import kind_of
from exod.core.status.view import LinkView, NodeView, PathView
from exod.model import (
    KIND_PREFERENCE,
    EngineState,
    Health,
    Kind,
    MeshState,
    NodeId,
    NodeState,
    PathState,
    Reason,
)
from exoengine.model_files.memory_fit import gib

KIND_WORDS = {
    Kind.THUNDERBOLT: "Thunderbolt",
    Kind.ETHERNET: "Ethernet",
    Kind.WIFI: "Wi-Fi",
    Kind.VPN: "VPN",
    Kind.LOOPBACK: "loopback",
    Kind.OTHER: "an unknown medium,",
}

LOSSY = 0.05
"""TCP keeps its pace up to about a percent. Beyond this, many a step waits for what is sent again; beyond 20% a
path is called degraded, and left where there is a better one."""
LOSSY_NO_MORE = 0.025
"""Where it was said, it stays said until so little is lost: loss at random would come and go."""

ENGINE_FAILED = "engine_failed"
DOWN_CODES = frozenset({ENGINE_FAILED})
"""Nothing can be served."""


EDGE_FAILED = "preflight_failed"
LOCAL_NETWORK_DENIED = "local_network_denied"
DOWNLOADING = "downloading"


class Downloading(msgspec.Struct, frozen=True):
    """One node's download of the wished model. `total_bytes` is 0 until the hub has answered."""

    node: NodeId
    model: str
    done_bytes: int
    total_bytes: int

    def text(self) -> str:
        """In whole percent: whoever is told of each change must not be told every second."""
        if not self.total_bytes:
            return f"looks for {self.model}"
        share = 100 * self.done_bytes // self.total_bytes
        return f"downloads {self.model}: {share}% of {gib(self.total_bytes)}"


class HealthInput(msgspec.Struct, frozen=True):
    view: NodeView
    degraded_ms: float
    engine_enabled: bool = False
    engine_state: EngineState = EngineState.OFF
    engine_text: str = ""
    gpu_waits: tuple[tuple[NodeId, str], ...] = ()
    """Ranks whose fast steps waited too long of late, with the text."""
    downloads: tuple[Downloading, ...] = ()
    """Ranks of the plan whose model is looked for or downloaded."""
    edge_text: str = ""
    """What the check of this node's edges found; empty where nothing is wrong."""
    mqtt_text: str = ""
    """What is wrong with a broker that a person configured; empty where nothing is, or none was."""
    wired_text: str = ""
    """Why no rank is started after the last one's end; empty where nothing is in the way."""
    local_network_text: str = ""
    """Where macOS keeps this node from the local network; empty where it does not."""


class HealthSnapshot(msgspec.Struct, frozen=True):
    health: Health
    reasons: tuple[Reason, ...]
    """`since` is wall clock, for people."""
    lasting_s: tuple[float, ...] = ()
    """How long each reason has lasted, on the monotonic clock."""


class _Fact(msgspec.Struct, frozen=True):
    code: str
    subject: str
    text: str


Key = tuple[str, str]
"""Code and subject."""


class HealthJudge:
    """Keeps when each fact was first seen, on both clocks, and nothing else."""

    def __init__(self) -> None:
        self._since: dict[Key, tuple[float, float]] = {}

    def observe(self, given: HealthInput, now: float, wall: float) -> HealthSnapshot:
        """Judges, and keeps since when each fact holds. `now` is monotonic seconds, and every duration is measured
        with it. `wall` is Unix seconds and becomes `Reason.since`, never later than `wall` itself: a clock that was
        set back shows no reason of the future.
        """
        facts = {(fact.code, fact.subject): fact for fact in _facts(given, frozenset(self._since))}
        self._since = self._lasting(facts, now, wall)
        return _judged(facts, self._since, now)

    def judge(self, given: HealthInput, now: float, wall: float) -> HealthSnapshot:
        """The same, and keeps nothing: for whoever only reads."""
        facts = {(fact.code, fact.subject): fact for fact in _facts(given, frozenset(self._since))}
        return _judged(facts, self._lasting(facts, now, wall), now)

    def _lasting(self, facts: Iterable[Key], now: float, wall: float) -> dict[Key, tuple[float, float]]:
        known = {key: self._since.get(key, (now, wall)) for key in facts}
        return {key: (first, min(wall, seen)) for key, (first, seen) in known.items()}


def _judged(facts: Mapping[Key, _Fact], since: Mapping[Key, tuple[float, float]], now: float) -> HealthSnapshot:
    """`since`: of each fact, when it was first seen, on the monotonic clock and on the wall clock."""
    lasting = {key: now - first for key, (first, _) in since.items()}
    held = {key: fact for key, fact in facts.items() if lasting[key] >= kind_of(fact.code).grace_s}
    reasons = tuple(Reason(fact.code, fact.subject, fact.text, since[key][1]) for key, fact in held.items())
    health = Health.DEGRADED if reasons else Health.HEALTHY
    if any(reason.code in DOWN_CODES for reason in reasons):
        health = Health.DOWN
    return HealthSnapshot(health, reasons, tuple(lasting[key] for key in held))


def _facts(given: HealthInput, known: frozenset[Key]) -> Iterator[_Fact]:
    """`known` are the codes and subjects of those that held when last asked."""
    view = given.view
    yield from _node_facts(view)
    yield from _left_out_facts(view)
    yield from _wish_facts(view)
    states = {node.id: node.state for node in view.nodes}
    for link in view.links:
        if states.get(link.peer) is not NodeState.DOWN:
            lossy = LOSSY_NO_MORE if ("link_lossy", link.peer) in known else LOSSY
            yield from _link_facts(link, view.me.name, given.degraded_ms, lossy)
    yield from _mesh_facts(view)
    if given.engine_enabled and given.engine_state is EngineState.FAILED:
        yield _Fact(ENGINE_FAILED, view.me.id, given.engine_text or "the engine failed")
    if given.engine_enabled and given.engine_state is EngineState.RECOVERING:
        yield _Fact("engine_recovering", view.me.id, given.engine_text or "the engine is recovering")
    for one in given.downloads:
        yield _Fact(DOWNLOADING, one.node, f"{_name(view, one.node)} {one.text()}")
    for node, text in given.gpu_waits:
        yield _Fact("gpu_wait", node, f"{_name(view, node)}: {text}")
    if given.edge_text:
        yield _Fact(EDGE_FAILED, view.me.id, given.edge_text)
    if given.mqtt_text:
        yield _Fact("mqtt_down", view.me.id, given.mqtt_text)
    if given.wired_text:
        yield _Fact("memory_wired", view.me.id, given.wired_text)
    if given.local_network_text:
        yield _Fact(LOCAL_NETWORK_DENIED, view.me.id, given.local_network_text)


def _node_facts(view: NodeView) -> Iterator[_Fact]:
    plan = view.mesh.plan if view.mesh.suspended is None else None
    ring = () if plan is None else plan.ring
    for node in view.nodes:
        if node.state is NodeState.DOWN and not node.left and node.id in ring:
            text = f"{view.me.name} does not hear {node.name}, which computes in the plan all the same"
            yield _Fact("node_unheard", node.id, f"{text}: look for a cable or a firewall between the two")
        elif node.state is NodeState.DOWN and not node.left:
            yield _Fact("node_down", node.id, f"{node.name} is down: {node.reason}")
        elif node.state is NodeState.SUSPECT:
            yield _Fact("node_suspect", node.id, f"{node.name} does not answer: {node.reason}")


def _left_out_facts(view: NodeView) -> Iterator[_Fact]:
    """Nodes that live and would compute, and have no rank in the plan in force."""
    plan = view.mesh.plan
    if plan is None or view.mesh.state is not MeshState.AGREED:
        return
    told = {one.node: one for one in plan.left_out}
    for one in told.values():
        if one.stands_by:
            continue
        yield _Fact("node_left_out", one.node, f"{one.name} is left out of the ring: {one.reason}")
    for node in view.nodes:
        if node.state is NodeState.UP and node.engine and node.id not in (*plan.ring, *told) and not node.is_self:
            yield _Fact("node_left_out", node.id, f"{node.name} is up, but has not joined the ring yet")


def _wish_facts(view: NodeView) -> Iterator[_Fact]:
    """A drain, and configurations that name different models where no command has decided."""
    wish, plan = view.me.wish, view.mesh.plan
    if wish is not None and wish.draining:
        text = f"{wish.by} was told to drain the cluster: no request is admitted until exoctl engine load MODEL"
        yield _Fact("draining", view.me.id, text)
    if plan is None or (wish is not None and wish.model is not None):
        return
    named = {node.name: node.model for node in view.nodes if node.model and node.state is NodeState.UP}
    if len(set(named.values())) > 1:
        said = _and([f"{name} names {model}" for name, model in sorted(named.items())])
        cure = "set one engine.model on all nodes, or run exoctl engine load MODEL"
        yield _Fact("wishes_differ", plan.coordinator, f"{said}; {plan.model} is hosted: {cure}")


def _link_facts(link: LinkView, my_name: str, degraded_ms: float, lossy: float) -> Iterator[_Fact]:
    pair = f"{my_name}–{link.peer_name}"
    selected = next((path for path in link.paths if path.selected), None)
    if selected is None:
        yield _Fact(
            "no_path", link.peer, f"{pair} has no usable path: {_others(link.paths, None) or 'none is known'}"
        )
    elif not link.agreed:
        yield _Fact("ends_disagree", link.peer, f"the ends of {pair} have not agreed on {selected.interface} yet")
    elif selected.rtt_ms is not None and selected.rtt_ms > degraded_ms:
        text = f"{pair} runs over {KIND_WORDS[selected.kind]} {selected.interface} at {selected.rtt_ms:.1f} ms"
        others = _others(link.paths, selected)
        yield _Fact("link_slow", link.peer, f"{text}: {others}" if others else text)
    elif selected.state is PathState.DEGRADED:
        yield _Fact("link_degraded", link.peer, f"{pair} runs over {selected.interface}, which {selected.why}")
    if selected is not None and selected.lasting_loss > lossy:
        # Whatever else is wrong: a path that a preflight refuses for its loss must say so.
        lost = f"{selected.lasting_loss:.0%} of what {link.peer_name} sends over {selected.interface}"
        yield _Fact("link_lossy", link.peer, f"{my_name} loses {lost}")
    for path in link.paths:
        better = selected is None or KIND_PREFERENCE[path.kind] < KIND_PREFERENCE[selected.kind]
        working = path.state in (PathState.UP, PathState.DEGRADED)
        if not path.eligible and working and better and not path.routed:
            yield _Fact("path_ineligible", path.id, f"{path.interface} to {link.peer_name} is not used: {path.why}")


def _others(paths: Iterable[PathView], selected: PathView | None) -> str:
    """`bridge0 and en0 are dead, en1 is degraded`."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        if path is selected or path.routed:
            continue
        word = "ineligible" if not path.eligible else {PathState.INIT: "silent"}.get(path.state, str(path.state))
        groups.setdefault(word, []).append(path.interface)
    return ", ".join(
        f"{_and(sorted(set(names)))} {'are' if len(set(names)) > 1 else 'is'} {word}"
        for word, names in sorted(groups.items())
    )


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mesh_facts(view: NodeView) -> Iterator[_Fact]:
    mesh = view.mesh
    if mesh.state in (MeshState.AGREED, MeshState.ALONE):
        return
    if mesh.suspended is not None:
        text = f"the plan is suspended: {mesh.suspended}"
    elif mesh.excluded_by:
        keep = "keeps" if len(mesh.excluded_by) == 1 else "keep"
        text = f"{_and([_name(view, one) for one in mesh.excluded_by])} {keep} to a plan without {view.me.name}"
    elif mesh.waiting_for:
        text = f"waits for {_and([_name(view, one) for one in mesh.waiting_for])} to join"
    elif mesh.coordinator != view.me.id:
        text = f"waits for a plan from {_name(view, mesh.coordinator)}"
    else:
        text = "no plan is agreed yet"
    yield _Fact("mesh_not_agreed", mesh.coordinator, text)


def _name(view: NodeView, node: NodeId) -> str:
    return next((entry.name for entry in view.nodes if entry.id == node), node)
