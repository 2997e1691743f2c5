"""What `exoctl mesh`, `engine`, `preflight`, `cluster show` and `doctor` print. Pure."""

from __future__ import annotations

from exod.cli.base.paint import Cell, Level, Paint, counted, layers, mib, ms, rate, wrap
from exod.cli.screens.links import clock
from exod.cli.screens.status import engine_level, mesh_level, node_level, sync_words
from exod.daemon_api.shapes import (
    ClusterReport,
    DoctorReport,
    EngineReport,
    EngineSummary,
    MeshReport,
    PreflightReport,
    RankDetail,
)
from exod.model import EngineState, NodeId


def mesh_screen(report: MeshReport, paint: Paint, width: int) -> list[str]:
    """The plan in force and how it came about."""
    mesh = report.mesh
    head = [paint.mark(mesh_level(mesh.state)), Cell(f" {mesh.state.value}", "bold")]
    if mesh.epoch is not None:
        coordinator = _name(mesh.coordinator, report.names)
        head.append(Cell(f"  epoch {mesh.epoch}, coordinator {coordinator}, plan {mesh.plan or 'none'}"))
    lines = [paint.line(head)]
    edges = [
        [
            Cell(f"{_name(edge.source, report.names)} → {_name(edge.target, report.names)}"),
            Cell(edge.interface, "bold"),
            Cell(edge.kind.value),
            Cell(edge.address, "dim"),
        ]
        for edge in mesh.edges
    ]
    lines += paint.columns(edges, indent=2)
    if report.history:
        lines += ["", paint.styled("history, oldest first", "dim")]
    for entry in report.history:
        ring = " → ".join(_name(node, report.names) for node in entry.ring)
        facts = [f"epoch {entry.epoch}", f"ring {ring}" if ring else "no rank"]
        if entry.detect_ms is not None:
            facts.append(f"noticed in {ms(entry.detect_ms)}")
        if entry.agree_ms is not None:
            facts.append(f"agreed in {ms(entry.agree_ms)}")
        lines.append(paint.line([Cell(clock(entry.at), "dim"), Cell(f"  {', '.join(facts)}")]))
        lines += [f"    {paint.plain(text)}" for text in wrap(entry.reason, width - 4)]
    return lines


def _name(node: NodeId | None, names: dict[NodeId, str]) -> str:
    return "none" if node is None else names.get(node, node)


def _ways(engine: EngineSummary, paint: Paint, width: int) -> list[str]:
    """How the model could be run here, what was predicted of it, and why it runs as it does."""
    lines = [f"  {paint.plain(text)}" for text in wrap(engine.parallel_reason, width - 2) if text]
    rows = []
    for one in engine.forecasts:
        name = {"alone": "one node alone", "pipeline": "pipeline", "tensor": "tensor group"}[one.way]
        figures = f"{ms(one.token_ms)} a token, 1,024 tokens of prompt in {ms(one.prefill_ms)}"
        if one.measured_token_ms is not None and one.error is not None:
            figures += f" (measured {ms(one.measured_token_ms)}, predicted {one.error:+.0%})"
        cannot = one.token_ms == 0 or (one.text and one.way != "alone")
        said = f"cannot be: {one.text}" if cannot else f"predicted {figures}"
        if one.way == "alone" and one.text:
            said += f"; {one.text}"
        rows.append([Cell(name, "bold" if one.runs else "dim"), Cell(said, "" if one.runs else "dim")])
    return lines + paint.columns(rows, indent=4)


def engine_screen(report: EngineReport, paint: Paint, width: int) -> list[str]:
    """The hosted model and every rank's process."""
    engine = report.engine
    level = engine_level(engine.state)
    head = [paint.mark(level), Cell(f" {engine.state.value}", "bold"), Cell(f"  {engine.model or ''}")]
    lines = [paint.line(head)]
    lines += [f"  {paint.styled(text, level)}" for text in wrap(engine.text, width - 2) if text]
    names = {rank.node: rank.node_name for rank in report.ranks}
    for one in engine.downloads:
        if one.total_bytes:
            of_all = f"{mib(one.done_bytes)} of {mib(one.total_bytes)} downloaded"
            lines.append(f"  {paint.plain(f'{_name(one.node, names)}: {of_all}')}")
    if report.load_total_bytes:
        done = report.load_done_bytes == report.load_total_bytes
        of_all = "" if done else f" of {mib(report.load_total_bytes)}"
        lines.append(f"  {mib(report.load_done_bytes)}{of_all} loaded")
    facts = []
    if engine.tokens_per_s is not None:
        facts.append(rate(engine.tokens_per_s))
    if engine.baseline_tokens_per_s is not None:
        facts.append(f"best {rate(engine.baseline_tokens_per_s)}")
    if engine.last_gap_ms is not None:
        facts.append(f"last gap {ms(engine.last_gap_ms)}")
    if engine.spare:
        facts.append(f"spare worker {engine.spare}")
    if report.total_layers is not None:
        facts.append(counted(report.total_layers, "layer"))
    if report.max_context_tokens:
        facts.append(f"context {counted(report.max_context_tokens, 'token')}")
    if engine.active or engine.waiting:
        facts.append(f"{counted(engine.active, 'request')}, {engine.waiting} waiting")
    if facts:
        lines.append(f"  {paint.plain(', '.join(facts))}")
    if engine.state is not EngineState.OFF:
        lines += [f"  {paint.styled(text, 'dim')}" for text in wrap(sync_words(engine), width - 2)]
    lines += [f"  {paint.styled(text, 'warn')}" for text in wrap(engine.transport_reason, width - 2) if text]
    lines += _ways(engine, paint, width)
    lines += paint.columns([_rank_row(rank) for rank in report.ranks], indent=2)
    for rank in report.ranks:
        lines += [f"    {paint.styled(text, 'warn')}" for text in wrap(rank.text, width - 4) if text]
    return lines


def _rank_row(rank: RankDetail) -> list[Cell]:
    return [
        Cell(f"rank {rank.rank}"),
        Cell(rank.node_name, "bold"),
        Cell(layers(rank.layers)),
        Cell(rank.state),
        Cell(f"pid {rank.pid}" if rank.pid is not None else "no process", "dim"),
        Cell(mib(rank.memory_bytes), "dim", right=True),
        Cell(_wired(rank), "dim"),
        Cell(counted(rank.restarts, "restart"), "warn" if rank.restarts else "dim"),
    ]


def _wired(rank: RankDetail) -> str:
    if rank.wired_bytes is None:
        return ""
    of_all = f" of {mib(rank.recommended_bytes)}" if rank.recommended_bytes is not None else ""
    return f"wires up to {mib(rank.wired_bytes)}{of_all}"


def preflight_screen(report: PreflightReport, paint: Paint, width: int) -> list[str]:
    """A line and a figure for each check; a failed one names its cure."""
    if not report.checks:
        return ["there is nothing to check: no plan is agreed"]
    rows = [
        [
            paint.mark("good" if check.ok else "bad"),
            Cell(check.name, "bold"),
            Cell(check.subject),
            Cell("  ".join(part for part in (check.figure, check.text) if part), "" if check.ok else "bad"),
        ]
        for check in report.checks
    ]
    lines = []
    for check, line in zip(report.checks, paint.marked(rows), strict=True):
        lines.append(line)
        if not check.ok and check.cure:
            lines += [f"    {paint.plain(text)}" for text in wrap(check.cure, width - 4)]
    return lines


def cluster_screen(report: ClusterReport, paint: Paint) -> list[str]:
    """The cluster, its key's fingerprint, and who belongs to it."""
    lines = [
        paint.line([Cell("cluster      ", "dim"), Cell(report.name, "bold")]),
        paint.line([Cell("fingerprint  ", "dim"), Cell(report.key_fingerprint)]),
        paint.line([Cell("key file     ", "dim"), Cell(report.key_file)]),
    ]
    rows = [
        [
            paint.mark("idle" if node.left else node_level(node.state)),
            Cell(node.name, "bold"),
            Cell(node.state.value),
            Cell(node.id, "dim"),
            Cell("this node" if node.is_self else "said goodbye" if node.left else "", "dim"),
        ]
        for node in report.nodes
    ]
    lines += paint.marked(rows)
    lines += [paint.styled(stranger, "warn") for stranger in report.strangers]
    return lines


def doctor_screen(report: DoctorReport, paint: Paint, width: int) -> list[str]:
    """What is wrong, each with the command that mends it."""
    lines = []
    for finding in report.findings:
        level: Level = "bad" if finding.severity == "error" else "warn"
        said = finding.subject in finding.text
        first, *more = wrap(finding.text if said else f"{finding.subject}: {finding.text}", width - 2)
        lines.append(paint.line([paint.mark(level), Cell(" "), Cell(first, level)]))
        lines += [f"  {paint.styled(text, level)}" for text in more]
        if finding.cure:
            lines.append(f"    {paint.plain(finding.cure)}")  # not wrapped: a command is copied whole
    if not report.findings:
        lines.append(paint.line([paint.mark("good"), Cell(" nothing is wrong")]))
    lines += [paint.styled(text, "dim") for fact in report.facts for text in wrap(fact, width)]
    looked = wrap(f"looked at: {', '.join(report.checked)}", width)
    return [*lines, *(paint.styled(text, "dim") for text in looked)]
