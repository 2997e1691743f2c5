"""What `exoctl links`, `ping` and `netcheck` print: each path with its figures, and why it is or is not in use.

Pure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from exod.cli.base.paint import Cell, Level, Paint, ms, percent, us, wrap
from exod.cli.screens.status import path_level
from exod.daemon_api.shapes import (
    LinkDecision,
    LinkDetail,
    LinksReport,
    NetcheckReport,
    PathDetail,
    PingReply,
)
from exod.model import NodeState, PathId, PathState


def links_screen(report: LinksReport, paint: Paint, width: int) -> list[str]:
    """Every path of every pair."""
    if not report.links:
        return ["no other node is known: there are no links"]
    lines: list[str] = []
    for link in report.links:
        lines += [""] if lines else []
        lines.append(_link_head(link, paint))
        lines += _paths(link, paint, width)
    return lines


def _link_head(link: LinkDetail, paint: Paint) -> str:
    if link.peer_state is NodeState.DOWN:
        level: Level = "idle" if link.peer_left else "bad"
        words = "has left" if link.peer_left else "is down"
        reason = Cell(f": {link.text}" if link.text else "", "dim")
        return paint.line([paint.mark(level), Cell(" "), Cell(link.peer_name, "bold"), Cell(f" {words}"), reason])
    names = {path.id: path.interface for path in link.paths}
    chosen, theirs = _interface(link.selected, names), _interface(link.peer_selected, names)
    if link.selected is None:
        words, level = "no path", "bad"
    elif link.agreed:
        words, level = f"both ends use {chosen}", _level_in_use(link)
    elif theirs == chosen:
        words, level = f"both ends have selected {chosen}, and have not agreed on it yet", "warn"
    else:
        words, level = f"this end uses {chosen}, the other end {theirs}", "warn"
    if link.peer_state is NodeState.SUSPECT:
        words, level = f"does not answer: {link.text}", "warn"
    who = "this end selects" if link.selects_here else "the other end selects"
    seqs = f"selection {link.seq}" + (f", {link.peer_seq} there" if link.peer_seq not in (None, link.seq) else "")
    return paint.line(
        [
            paint.mark(level),
            Cell(" "),
            Cell(link.peer_name, "bold"),
            Cell(f"  {words}", "" if level == "good" else level),
            Cell(f"  ({seqs}; {who})", "dim"),
        ]
    )


def _level_in_use(link: LinkDetail) -> Level:
    return next((path_level(path.state) for path in link.paths if path.id == link.selected), "bad")


def _interface(path: PathId | None, names: dict[PathId, str]) -> str:
    return "no path" if path is None else names.get(path, path)


def _paths(link: LinkDetail, paint: Paint, width: int) -> list[str]:
    rows = [_path_row(path, paint) for path in link.paths]
    lines = []
    for path, line in zip(link.paths, paint.marked(rows, indent=2, width=width), strict=True):
        lines.append(line)
        notes = [] if link.peer_state is NodeState.DOWN else _notes(path)
        lines += [f"      {paint.styled(text, 'dim')}" for text in wrap("; ".join(notes), width - 6) if text]
    return lines


def _notes(path: PathDetail) -> list[str]:
    notes = [path.why, path.fault]
    if path.score_ms is not None and path.state is not PathState.DEAD:
        notes.append(f"score {ms(path.score_ms)}")
    if path.peer_state not in (None, path.state):
        notes.append(f"{path.peer_state} as the other end sees it")
    return [note for note in notes if note]


def _path_row(path: PathDetail, paint: Paint) -> list[Cell]:
    level: Level = path_level(path.state) if path.eligible else "idle"
    cells = [
        paint.mark(level),
        Cell(path.interface, "bold" if path.selected else ""),
        Cell(path.kind.value),
        Cell(f"{path.local} → {path.remote}", "dim"),
        Cell(path.state.value if path.eligible else f"{path.state.value}, not eligible", level),
    ]
    if path.state is PathState.DEAD:  # its last figures are of the past
        return [*cells, Cell(""), Cell(""), Cell(""), Cell("")]
    return [
        *cells,
        Cell(ms(path.rtt_ms), right=True),
        Cell(f"p90 {ms(path.rtt_p90_ms)}", "dim", right=True, spare=True),
        Cell(f"loss {percent(path.loss)}", "warn" if path.loss else "dim", right=True, spare=not path.loss),
        Cell(""),
    ]


def history_screen(decisions: Sequence[LinkDecision], paint: Paint, width: int) -> list[str]:
    """Oldest first, as it happened."""
    if not decisions:
        return ["nothing was decided yet"]
    lines = []
    for decision in decisions:
        about = "" if decision.subject == decision.peer_name else f"{decision.subject}  "
        head = [Cell(clock(decision.at), "dim"), Cell(f"  {decision.peer_name}  ", "bold"), Cell(about, "dim")]
        lines.append(paint.line([*head, Cell(decision.decision)]))
        figures = "; ".join(f"{name}: {figure}" for name, figure in decision.figures.items())
        lines += [f"    {paint.styled(text, 'dim')}" for text in wrap(figures, width - 4) if text]
    return lines


def ping_line(reply: PingReply, paint: Paint) -> str:
    """One probe."""
    answer = Cell(us(reply.rtt_us), "bold") if reply.rtt_us is not None else Cell(reply.text or "no answer", "bad")
    way = f"{reply.peer_name} via {reply.interface} ({reply.kind.value}) {reply.local} → {reply.remote}: "
    return paint.line([Cell(way), Cell(f"{reply.seq}  ", "dim"), answer])


def ping_summary(replies: Sequence[PingReply]) -> dict[str, float | int | None]:
    """What a series of probes comes to; figures in µs, None where nothing was answered."""
    times = [reply.rtt_us for reply in replies if reply.rtt_us is not None]
    return {
        "sent": len(replies),
        "answered": len(times),
        "loss": 1 - len(times) / len(replies) if replies else 0.0,
        "least_us": min(times) if times else None,
        "median_us": statistics.median(times) if times else None,
        "most_us": max(times) if times else None,
    }


def ping_summary_line(summary: dict[str, float | int | None], paint: Paint) -> str:
    text = f"{summary['sent']} sent, {summary['answered']} answered, {percent(summary['loss'] or 0)} lost"
    least, median, most = summary["least_us"], summary["median_us"], summary["most_us"]
    if least is not None and median is not None and most is not None:
        text += f"; {us(least)} least, {us(median)} median, {us(most)} most"
    return paint.plain(text)


def netcheck_screen(report: NetcheckReport, paint: Paint, width: int) -> list[str]:
    """This host's interfaces, then what must work beside them."""
    rows = []
    for interface in report.interfaces:
        level: Level = "good" if interface.eligible else "idle"
        rows.append(
            [
                paint.mark(level),
                Cell(interface.name, "bold"),
                Cell(interface.kind.value),
                Cell("up" if interface.up else "down", "" if interface.up else "idle"),
                Cell(" ".join(interface.addresses) or "no IPv4 address"),
            ]
        )
    lines = [] if rows else ["this host has no interface"]
    for interface, line in zip(report.interfaces, paint.marked(rows), strict=True):
        words = f"{interface.why} (its kind: {interface.kind_source})"
        lines += [line, *(f"    {paint.styled(text, 'dim')}" for text in wrap(words, width - 4))]
    lines.append("")
    for check in report.checks:
        subject = f" {check.subject}" if check.subject else ""
        lines.append(
            paint.line([paint.mark("good" if check.ok else "bad"), Cell(f" {check.name}{subject}: {check.text}")])
        )
        if check.cure:
            lines.append(f"    {paint.plain(check.cure)}")  # not wrapped: a command is copied whole
    return lines


def clock(at: float) -> str:
    """Local time, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
