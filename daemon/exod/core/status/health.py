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

from exod.alert_table import is_note, kind_of
from exod.core.base.facts import (
    DOWNLOADING,
    DRAINING,
    EDGE_FAILED,
    ENGINE_FAILED,
    ENGINE_LOADING,
    ENGINE_RECOVERING,
    LOCAL_NETWORK_DENIED,
    REQUESTS_WAIT,
    VERSION_SKEW,
    Fact,
)
from exod.core.status.node_facts import node_facts
from exod.core.status.serving import EngineFacts, serving
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
from exod.plain_text import and_join, labels
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

DOWN_CODES = frozenset({ENGINE_FAILED})
"""Nothing can be served."""


class Downloading(msgspec.Struct, frozen=True):
    """One node's download of the wished model. `total_bytes` is 0 until the hub has answered."""

    node: NodeId
    model: str
    done_bytes: int
    total_bytes: int

    def text(self) -> str:
        """In whole percent, so that watchers of changes do not get one every second."""
        if not self.total_bytes:
            return f"looks for {self.model}"
        share = 100 * self.done_bytes // self.total_bytes
        return f"downloads {self.model}: {share}% of {gib(self.total_bytes)}"


class HealthInput(msgspec.Struct, frozen=True):
    view: NodeView
    degraded_ms: float
    engine: EngineFacts = EngineFacts()
    gpu_waits: tuple[tuple[NodeId, str], ...] = ()
    """Ranks whose fast steps waited too long of late, with the text."""
    downloads: tuple[Downloading, ...] = ()
    """Ranks of the plan whose model is looked for or downloaded."""
    edge_of: NodeId | None = None
    """Whose edge `engine.edge_text` is about."""
    mqtt_text: str = ""
    """What is wrong with a broker that a person configured; empty where nothing is, or none was."""
    wired_text: str = ""
    """Why no rank is started after the last one's end; empty where nothing is in the way."""
    found: tuple[Fact, ...] = ()
    """What other parts of the daemon found, under codes of the table."""


class HealthSnapshot(msgspec.Struct, frozen=True):
    health: Health
    reasons: tuple[Reason, ...]
    """`since` is wall clock, for people."""
    lasting_s: tuple[float, ...] = ()
    """How long each reason has lasted, on the monotonic clock."""
    notes: tuple[Reason, ...] = ()
    """What is good to know and makes nothing unhealthy."""


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
        """The same, but keeps nothing: for a reader."""
        facts = {(fact.code, fact.subject): fact for fact in _facts(given, frozenset(self._since))}
        return _judged(facts, self._lasting(facts, now, wall), now)

    def _lasting(self, facts: Iterable[Key], now: float, wall: float) -> dict[Key, tuple[float, float]]:
        known = {key: self._since.get(key, (now, wall)) for key in facts}
        return {key: (first, min(wall, seen)) for key, (first, seen) in known.items()}


def _judged(facts: Mapping[Key, Fact], since: Mapping[Key, tuple[float, float]], now: float) -> HealthSnapshot:
    """`since`: of each fact, when it was first seen, on the monotonic clock and on the wall clock."""
    lasting = {key: now - first for key, (first, _) in since.items()}
    held = [key for key, fact in facts.items() if lasting[key] >= kind_of(fact.code).grace_s]
    said = {key: Reason(*key, facts[key].text, since[key][1]) for key in held}
    reasons = [key for key in held if not is_note(key[0])]
    health = Health.DEGRADED if reasons else Health.HEALTHY
    if any(code in DOWN_CODES for code, _ in reasons):
        health = Health.DOWN
    notes = tuple(said[key] for key in held if is_note(key[0]))
    return HealthSnapshot(
        health, tuple(said[key] for key in reasons), tuple(lasting[key] for key in reasons), notes
    )


def _facts(given: HealthInput, known: frozenset[Key]) -> Iterator[Fact]:
    """`known` are the codes and subjects of those that held when last asked."""
    view = given.view
    skewed = {NodeId(fact.subject) for fact in given.found if fact.code == VERSION_SKEW}
    yield from node_facts(view, skewed)
    yield from _wish_facts(view)
    # Of a node that is down, or that speaks another version, its paths say nothing new.
    live = {node.id for node in view.nodes if node.state is NodeState.UP}
    mute = (skewed - live) | {node.id for node in view.nodes if node.state is NodeState.DOWN or node.skew}
    for link in view.links:
        if link.peer not in mute:
            lossy = LOSSY_NO_MORE if ("link_lossy", link.peer) in known else LOSSY
            yield from _link_facts(link, view, given.degraded_ms, lossy)
    yield from _mesh_facts(view)
    yield from _engine_facts(given)
    for node, text in given.gpu_waits:
        yield Fact("gpu_wait", node, f"{_name(view, node)}: {text}")
    if given.mqtt_text:
        yield Fact("mqtt_down", view.me.id, f"MQTT: {given.mqtt_text}")
    if given.wired_text:
        yield Fact("memory_wired", view.me.id, given.wired_text)
    if given.engine.local_network_text:
        yield Fact(LOCAL_NETWORK_DENIED, view.me.id, given.engine.local_network_text)
    yield from given.found


def _engine_facts(given: HealthInput) -> Iterator[Fact]:
    """What a request would meet (`serving.py`), and what else is known of the ranks."""
    view, engine = given.view, given.engine
    verdict = serving(engine)
    if engine.state is EngineState.FAILED:
        yield Fact(ENGINE_FAILED, view.me.id, engine.text or "the engine failed")
    elif engine.state is EngineState.RECOVERING:
        yield Fact(ENGINE_RECOVERING, view.me.id, engine.text or "the engine is recovering")
    elif verdict.code == ENGINE_LOADING:
        yield Fact(ENGINE_LOADING, view.me.id, verdict.text)
    elif verdict.code == REQUESTS_WAIT:
        yield Fact(REQUESTS_WAIT, view.me.id, verdict.text)
    for one in given.downloads:
        yield Fact(DOWNLOADING, one.node, f"{_name(view, one.node)} {one.text()}")
    if engine.edge_text:
        yield Fact(EDGE_FAILED, given.edge_of or view.me.id, engine.edge_text)
    if engine.draining:
        by = view.me.wish.by if view.me.wish is not None and view.me.wish.draining else view.me.name
        text = f"{by} was told to drain the cluster: no request is admitted until exoctl engine load MODEL"
        yield Fact(DRAINING, view.me.id, text)


def _wish_facts(view: NodeView) -> Iterator[Fact]:
    """Configurations that name different models where no command has decided."""
    wish, plan = view.me.wish, view.mesh.plan
    if plan is None or (wish is not None and wish.model is not None):
        return
    named = {node.name: node.model for node in view.nodes if node.model and node.state is NodeState.UP}
    if len(set(named.values())) > 1:
        said = and_join([f"{name} names {model}" for name, model in sorted(named.items())])
        cure = "set one engine.model on all nodes, or run exoctl engine load MODEL"
        yield Fact("wishes_differ", plan.coordinator, f"{said}; {plan.model} is hosted: {cure}")


def _link_facts(link: LinkView, view: NodeView, degraded_ms: float, lossy: float) -> Iterator[Fact]:
    me, peer = _name(view, view.me.id), _name(view, link.peer)
    pair = f"{me}–{peer}"
    selected = next((path for path in link.paths if path.selected), None)
    if selected is None:
        yield Fact(
            "no_path", link.peer, f"{pair} has no usable path: {_others(link.paths, None) or 'none is known'}"
        )
    elif not link.agreed:
        yield Fact("ends_disagree", link.peer, f"the ends of {pair} have not agreed on {selected.interface} yet")
    elif selected.rtt_ms is not None and selected.rtt_ms > degraded_ms:
        text = f"{pair} runs over {KIND_WORDS[selected.kind]} {selected.interface} at {selected.rtt_ms:.1f} ms"
        others = _others(link.paths, selected)
        yield Fact("link_slow", link.peer, f"{text}: {others}" if others else text)
    elif selected.state is PathState.DEGRADED:
        yield Fact("link_degraded", link.peer, f"{pair} runs over {selected.interface}, which {selected.why}")
    if selected is not None and selected.lasting_loss > lossy:
        # Whatever else is wrong: a path that a preflight refuses for its loss must say so.
        lost = f"{selected.lasting_loss:.0%} of what {peer} sends over {selected.interface}"
        yield Fact("link_lossy", link.peer, f"{me} loses {lost}")
    for path in link.paths:
        better = selected is None or KIND_PREFERENCE[path.kind] < KIND_PREFERENCE[selected.kind]
        working = path.state in (PathState.UP, PathState.DEGRADED)
        if not path.eligible and working and better and not path.routed:
            yield Fact("path_ineligible", path.id, f"{path.interface} to {peer} is not used: {path.why}")
        if path.unfit and working and better:
            text = f"{path.interface} to {peer} answers probes and is not fit for the ring: {path.unfit}"
            yield Fact("ring_unfit", path.id, text)


def _others(paths: Iterable[PathView], selected: PathView | None) -> str:
    """`bridge0 and en0 are dead, en1 is degraded`. An interface with paths of several states is named with the
    other end's address.
    """
    found: list[tuple[str, PathView]] = []
    for path in paths:
        if path is not selected and not path.routed:
            word = "silent" if path.state is PathState.INIT else str(path.state)
            found.append((word if path.eligible else "ineligible", path))
    words = {path.interface: {word for word, one in found if one.interface == path.interface} for _, path in found}
    groups: dict[str, set[str]] = {}
    for word, path in found:
        several = len(words[path.interface]) > 1
        groups.setdefault(word, set()).add(f"{path.interface} to {path.remote}" if several else path.interface)
    return ", ".join(
        f"{and_join(sorted(names))} {'are' if len(names) > 1 else 'is'} {word}"
        for word, names in sorted(groups.items())
    )


def _mesh_facts(view: NodeView) -> Iterator[Fact]:
    mesh = view.mesh
    if mesh.state in (MeshState.AGREED, MeshState.ALONE):
        return
    if mesh.suspended is not None:
        text = f"the plan is suspended: {mesh.suspended}"
    elif mesh.excluded_by:
        keep = "keeps" if len(mesh.excluded_by) == 1 else "keep"
        text = f"{and_join([_name(view, one) for one in mesh.excluded_by])} {keep} to a plan without {view.me.name}"
    elif mesh.waiting_for:
        text = f"waits for {and_join([_name(view, one) for one in mesh.waiting_for])} to join"
    elif mesh.coordinator != view.me.id:
        text = f"waits for a plan from {_name(view, mesh.coordinator)}"
    else:
        text = "no plan is agreed yet"
    yield Fact("mesh_not_agreed", mesh.coordinator, text)


def _name(view: NodeView, node: NodeId) -> str:
    return labels((entry.id, entry.name) for entry in view.nodes).get(node, node)
