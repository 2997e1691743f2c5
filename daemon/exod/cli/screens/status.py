"""The status screen: a StatusReport as one screen that says what is, and why, at a glance.

Decides what comes first (health and its reasons), what each line names, and which level its mark shows; measures
nothing. Pure: `now` is a parameter.
"""

from __future__ import annotations

from typing import Final

from exod.cli.base.paint import (
    Cell,
    Level,
    Paint,
    Style,
    cells_of,
    counted,
    duration,
    layers,
    ms,
    percent,
    rate,
    wrap,
)
from exod.cli.screens.fetches import fetch_text
from exod.daemon_api.shapes import EngineSummary, LinkLine, MeshSummary, NodeLine, StatusReport
from exod.model import EngineState, Health, MeshState, NodeId, NodeState, PathSnapshot, PathState
from exod.plain_text import labels

LABEL_COLUMNS: Final = 9
"""The left column: the longest of its words and two spaces."""

STATE_COLUMNS: Final = 11
"""The longest common state (`generating`) and a space, so that facts stand under each other."""

TEXT_INDENT: Final = LABEL_COLUMNS + 2
"""Where a second line of words begins: under the first word beside a mark."""

_HEALTH: Final[dict[Health, Level]] = {Health.HEALTHY: "good", Health.DEGRADED: "warn", Health.DOWN: "bad"}
_NODE: Final[dict[NodeState, Level]] = {NodeState.UP: "good", NodeState.SUSPECT: "warn", NodeState.DOWN: "bad"}
_MESH: Final[dict[MeshState, Level]] = {
    MeshState.AGREED: "good",
    MeshState.ALONE: "idle",
    MeshState.FORMING: "warn",
    MeshState.RENEGOTIATING: "warn",
}
_ENGINE: Final[dict[EngineState, Level]] = {
    EngineState.READY: "good",
    EngineState.GENERATING: "good",
    EngineState.OFF: "idle",
    EngineState.LOADING: "warn",
    EngineState.RECOVERING: "warn",
    EngineState.FAILED: "bad",
}
_PATH: Final[dict[PathState, Level]] = {
    PathState.UP: "good",
    PathState.INIT: "idle",
    PathState.DEGRADED: "warn",
    PathState.DEAD: "bad",
}
_MQTT: Final[dict[str, Level]] = {"connected": "good", "connecting": "warn", "off": "idle"}


def mesh_level(state: MeshState) -> Level:
    return _MESH[state]


def path_level(state: PathState) -> Level:
    return _PATH[state]


def node_level(state: NodeState) -> Level:
    return _NODE[state]


def engine_level(state: EngineState) -> Level:
    return _ENGINE[state]


def status_screen(status: StatusReport, paint: Paint, width: int, now: float) -> list[str]:
    """The whole screen, each line at most `width` columns where its figures allow."""
    names = status.mesh.names | labels((node.id, node.name) for node in status.nodes)
    lines = _headline(status, names, paint, width, now)
    lines.append("")
    lines += _labelled("nodes", _nodes(status.nodes, names, paint), paint, width)
    if status.links:
        nodes = {node.id: node for node in status.nodes}
        links = [
            _link(link, names.get(link.peer, link.peer_name), nodes.get(link.peer), paint) for link in status.links
        ]
        lines += _labelled("links", links, paint, width)
    mesh, engine, mqtt = status.mesh, status.engine, status.mqtt
    lines += _statement("mesh", _MESH[mesh.state], mesh.state.value, _mesh_facts(mesh, names), paint, width)
    lines += _mesh_change(mesh, paint, width, now)
    lines += _statement("engine", _ENGINE[engine.state], engine.state.value, _engine_facts(engine), paint, width)
    lines += _engine_words(engine, paint, width, said=" ".join(reason.text for reason in status.reasons))
    lines += _ranks(engine, names, paint)
    for one in status.models:
        if one.state != "here":
            level: Level = "bad" if one.state == "failed" else "warn"
            lines += _statement("model", level, one.state, f"{one.model} {fetch_text(one)}", paint, width)
    broker = ": ".join(part for part in (mqtt.broker, mqtt.text) if part)
    lines += _statement("mqtt", _MQTT[mqtt.state], mqtt.state, broker, paint, width)
    for crash in status.crashes:
        ago = f"{duration(now - crash.at)} ago"
        lines += _statement("crash", "warn", ago, crash.text, paint, width) + _words(crash.cure, paint, width)
    for note in status.notes:
        lines += _statement("note", "idle", "", note.text, paint, width)
    if status.api:
        lines.append(paint.line([Cell("api".ljust(LABEL_COLUMNS), "dim"), Cell(f"{status.api}/v1")]))
    return lines


def _labelled(label: str, rows: list[list[Cell]], paint: Paint, width: int) -> list[str]:
    """Rows of a mark and words, with `label` to the left of the first one."""
    labels = [label, *("" for _ in rows[1:])]
    marked = paint.marked(rows, width=width - LABEL_COLUMNS)
    lefts = [paint.styled(text.ljust(LABEL_COLUMNS), "dim") for text in labels]
    return [left + line for left, line in zip(lefts, marked, strict=True)]


def _statement(label: str, level: Level, state: str, facts: str, paint: Paint, width: int) -> list[str]:
    """A state with its mark, and the facts beside it, wrapped under each other."""
    indent = TEXT_INDENT + STATE_COLUMNS
    first, *more = wrap(facts, width - indent)
    head = [
        Cell(label.ljust(LABEL_COLUMNS), "dim"),
        paint.mark(level),
        Cell(" "),
        Cell(state, "" if level in ("good", "idle") else level),
        Cell(" " * max(STATE_COLUMNS - len(state), 1) + first if first else ""),
    ]
    return [paint.line(head), *(" " * indent + paint.plain(line) for line in more)]


def _words(text: str, paint: Paint, width: int, style: Style = "dim") -> list[str]:
    """A sentence below a row, wrapped."""
    return [" " * TEXT_INDENT + paint.styled(line, style) for line in wrap(text, width - TEXT_INDENT)]


def _headline(status: StatusReport, names: dict[NodeId, str], paint: Paint, width: int, now: float) -> list[str]:
    level = _HEALTH[status.health]
    node = status.node
    about = (
        f"  {node.name} in cluster {status.cluster.name}, {counted(status.cluster.size, 'node')}, "
        f"up {duration(node.uptime_s)}, exod {node.version}"
    )
    mark = paint.mark(level)
    lines = [paint.line([mark, Cell(" "), Cell(status.health.value, level), Cell(about)])]
    for reason in status.reasons:
        since = f" ({duration(now - reason.since)})" if reason.since else ""
        name = names.get(NodeId(reason.subject), reason.subject)
        subject = f"{name}: " if name and name not in reason.text else ""
        text = f"{subject}{reason.text}{since}"
        lines += [paint.styled(f"  {line}", level) for line in wrap(text, width - 2)]
    return lines


def _nodes(nodes: tuple[NodeLine, ...], names: dict[NodeId, str], paint: Paint) -> list[list[Cell]]:
    rows = []
    level: Level
    versions = {node.version for node in nodes}
    for node in nodes:
        notes = ["this node"] if node.is_self else []
        if len(versions) > 1:
            notes.append(f"exod {node.version}")
        if node.left:
            notes.append("said goodbye")
        level = "idle" if node.left else _NODE[node.state]
        state = Cell(node.state.value, "" if level == "good" else level)
        rows.append([paint.mark(level), Cell(names[node.id], "bold"), state, Cell(", ".join(notes), "dim")])
    return rows


def _link(link: LinkLine, called: str, peer: NodeLine | None, paint: Paint) -> list[Cell]:
    """One line: the link in use, its figures, and how many others stand by. A peer that is down has none."""
    name = Cell(called, "bold")
    if peer is not None and peer.state is NodeState.DOWN:
        level: Level = "idle" if peer.left else "bad"
        return [paint.mark(level), name, Cell("none: it has left" if peer.left else "none: it is down", level)]
    path = next((path for path in link.paths if path.id == link.selected), None)
    if path is None:
        why = next((f"{path.interface}: {path.why}" for path in link.paths), "no path was found")
        return [paint.mark("bad"), name, Cell(f"no path ({why})", "bad")]
    suspect = peer is not None and peer.state is NodeState.SUSPECT
    level = "warn" if suspect or not link.agreed else _PATH[path.state]
    return [
        paint.mark(level),
        name,
        Cell(path.interface),
        Cell(path.kind.value),
        Cell(ms(path.rtt_ms), "bold" if level == "good" else level, right=True),
        Cell(f"p90 {ms(path.rtt_p90_ms)}", "dim", right=True, spare=True),
        Cell(f"loss {percent(path.loss)}", "dim" if path.loss == 0 else "warn", right=True, spare=not path.loss),
        Cell("does not answer" if suspect else _agreement(link, path), "dim" if level == "good" else "warn"),
    ]


def _agreement(link: LinkLine, chosen: PathSnapshot) -> str:
    others = [path for path in link.paths if path.id != chosen.id]
    ready = sum(path.state in (PathState.UP, PathState.DEGRADED) for path in others)
    dead = sum(path.state is PathState.DEAD for path in others)
    words = ["agreed" if link.agreed else "not agreed by both ends"]
    words += [f"{ready} standby"] if ready else []
    words += [f"{dead} dead"] if dead else []
    return ", ".join(words)


def _mesh_facts(mesh: MeshSummary, names: dict[NodeId, str]) -> str:
    facts = [] if mesh.epoch is None else [f"epoch {mesh.epoch}"]
    if len(mesh.ring) > 1:
        ring = [names.get(node, node) for node in (*mesh.ring, mesh.ring[0])]
        facts.append("ring " + " → ".join(ring))
    if mesh.coordinator is not None and len(names) > 1:
        facts.append(f"coordinator {names.get(mesh.coordinator, mesh.coordinator)}")
    return ", ".join(facts)


def _mesh_change(mesh: MeshSummary, paint: Paint, width: int, now: float) -> list[str]:
    change = mesh.last_change
    if change is None:
        return []
    figures = []
    if change.detect_ms is not None:
        figures.append(f"noticed in {ms(change.detect_ms)}")
    if change.agree_ms is not None:
        figures.append(f"agreed in {ms(change.agree_ms)}")
    tail = f" ({', '.join(figures)})" if figures else ""
    return _words(f"{duration(now - change.at)} ago: {change.reason}{tail}", paint, width)


def _engine_facts(engine: EngineSummary) -> str:
    facts = [engine.model] if engine.model else []
    best = engine.baseline_tokens_per_s
    if engine.tokens_per_s is None and best is not None:
        facts.append(f"best {rate(best)}")
    if engine.tokens_per_s is not None:
        facts.append(rate(engine.tokens_per_s) + (f" (best {best:.0f})" if best is not None else ""))
    if engine.active or engine.waiting:
        waiting = f" and {engine.waiting} waiting" if engine.waiting else ""
        facts.append(counted(engine.active, "request") + waiting)
    if engine.last_gap_ms is not None:
        facts.append(f"last gap {ms(engine.last_gap_ms)}")
    return ", ".join(facts)


def _engine_words(engine: EngineSummary, paint: Paint, width: int, said: str) -> list[str]:
    """Why the engine is in its state, unless the reasons above have said it, and how its steps are run."""
    lines = []
    if engine.text and engine.text not in said:
        level = _ENGINE[engine.state]
        lines += _words(engine.text, paint, width, "dim" if level in ("good", "idle") else level)
    if engine.state is not EngineState.OFF and engine.ranks:
        lines += _words(sync_words(engine), paint, width)
        lines += _words(engine.parallel_reason, paint, width) if engine.parallel_reason else []
        lines += _words(engine.transport_reason, paint, width, "warn") if engine.transport_reason else []
    return lines


def sync_words(engine: EngineSummary) -> str:
    reason = f": {engine.sync.reason}" if engine.sync.reason else ""
    over_rdma = "ranks communicate over RDMA, " if engine.transport == "rdma" else ""
    return f"{over_rdma}{engine.sync.mode} sync{reason}"


def _ranks(engine: EngineSummary, names: dict[NodeId, str], paint: Paint) -> list[str]:
    rows = []
    for rank in engine.ranks:
        restarts = f", {counted(rank.restarts, 'restart')}" if rank.restarts else ""
        process = f"pid {rank.pid}" if rank.pid is not None else "no process"
        rows.append(
            [
                Cell(f"rank {rank.rank}"),
                Cell(names.get(rank.node, rank.node), "bold"),
                Cell(
                    layers(rank.layers)
                    + (f", part {rank.rank % rank.parts + 1} of {rank.parts}" if rank.parts > 1 else "")
                ),
                Cell(process + restarts, "warn" if rank.restarts else "dim"),
            ]
        )
    return paint.columns(rows, indent=TEXT_INDENT)


def widest(lines: list[str]) -> int:
    """Columns of the widest line."""
    return max(map(cells_of, lines), default=0)
