"""What `exoctl top` shows, as text: a state of the daemon goes in, lines come out. Pure.

Names come from other machines: control and direction characters are left out. Times in Unix seconds.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from exod.cli.base.paint import Paint, layers, mib, ms, percent
from exod.daemon_api.shapes import EngineReport, LinkLine, StatusReport
from exod.model import NodeId, PathSnapshot

SAMPLES: Final = 60
"""Of each path's RTT: one a second, so the last minute."""

BARS: Final = "▁▂▃▄▅▆▇█"

MAX_PATHS: Final = 64
"""Whose RTT is remembered: eight nodes with nine paths each."""

_PAINT: Final = Paint(color=False)

STYLES: Final = {
    "healthy": "bold green",
    "degraded": "bold yellow",
    "down": "bold red",
    "up": "green",
    "dead": "red",
    "init": "dim",
    "suspect": "yellow",
}


class RttMemory:
    """The last minute of every path's RTT in ms; None where it was dead."""

    def __init__(self) -> None:
        self._samples: dict[tuple[NodeId, str], deque[float | None]] = {}

    def add(self, status: StatusReport) -> None:
        present = {(link.peer, path.id): path for link in status.links for path in link.paths}
        self._samples = {key: kept for key, kept in self._samples.items() if key in present}
        for key, path in present.items():
            if key not in self._samples and len(self._samples) >= MAX_PATHS:
                continue
            samples = self._samples.setdefault(key, deque(maxlen=SAMPLES))
            samples.append(None if path.state == "dead" else path.rtt_ms)

    def line(self, link: LinkLine, path: PathSnapshot, width: int) -> str:
        """A sparkline of the newest `width` samples; a gap where there was no RTT."""
        samples = list(self._samples.get((link.peer, path.id), ()))[-width:] if width > 0 else []
        known = [one for one in samples if one is not None]
        if not known:
            return ""
        low, high = min(known), max(known)
        span = max(high - low, 0.05 * high, 0.01)  # noise of a few percent is no mountain
        return "".join(
            " " if one is None else BARS[min(len(BARS) - 1, int((one - low) / span * (len(BARS) - 1)))]
            for one in samples
        )


def head(status: StatusReport) -> Text:
    """Who this is, how it is, and why."""
    text = Text(no_wrap=False)
    text.append(f"{clean(status.cluster.name)} · {clean(status.node.name)}  ", "bold")
    text.append(status.health.value, STYLES.get(status.health.value, ""))
    epoch = "" if status.mesh.epoch is None else f", epoch {status.mesh.epoch}"
    text.append(f"  mesh {status.mesh.state.value}{epoch}  MQTT {status.mqtt.state}", "dim")
    for reason in status.reasons:
        text.append(f"\n{clean(reason.text)}", "yellow" if status.health != "down" else "red")
    return text


def mesh(status: StatusReport, memory: RttMemory, width: int) -> Table:
    """Every node, and every path to it: the one in use first."""
    table = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, None, None, None, None, None, 1):
        table.add_column(no_wrap=True, ratio=ratio, overflow="ellipsis")
    table.columns[3].justify = table.columns[4].justify = table.columns[5].justify = "right"
    spark = min(SAMPLES, max(0, width - 66))
    for node in status.nodes:
        state = "this node" if node.is_self else "left" if node.left else node.state.value
        table.add_row(Text(clean(node.name), "bold"), Text(state, STYLES.get(node.state.value, "")))
        for link in status.links:
            if link.peer == node.id:
                for path in sorted(link.paths, key=lambda one: not one.selected):
                    table.add_row(*_path_row(link, path, memory, spark))
    return table


def _path_row(link: LinkLine, path: PathSnapshot, memory: RttMemory, spark: int) -> list[Text]:
    mark = "▶" if path.selected else " "
    last = memory.line(link, path, spark) if spark >= 8 else clean(path.why)
    return [
        Text(f" {mark} {clean(path.interface)}", "bold" if path.selected else ""),
        Text(path.state.value, STYLES.get(path.state.value, "")),
        Text(path.kind.value, "dim"),
        Text(ms(path.rtt_ms)),
        Text(f"p90 {ms(path.rtt_p90_ms)}", "dim"),
        Text(f"loss {percent(path.loss)}", "red" if path.loss > 0 else "dim"),
        Text(last, "cyan" if spark >= 8 else "dim"),
    ]


def engine(report: EngineReport) -> Text:
    """The model, its ranks and how fast it is."""
    summary = report.engine
    text = Text()
    text.append(clean(summary.model or "no model"), "bold")
    text.append(f"  {summary.state.value}", "green" if summary.state in ("ready", "generating") else "yellow")
    if summary.text:
        text.append(f": {clean(summary.text)}")
    speed = "–" if summary.tokens_per_s is None else f"{summary.tokens_per_s:.1f} tokens/s"
    text.append(f"\n{speed}, {summary.active} running, {summary.waiting} waiting")
    text.append(f", last gap {ms(summary.last_gap_ms)}")
    why = f": {clean(summary.sync.reason)}" if summary.sync.reason else ""
    text.append(f"\n{summary.sync.mode} steps{why}", "dim")
    for rank in report.ranks:
        memory = "" if rank.memory_bytes is None else f", {mib(rank.memory_bytes)}"
        told = f": {clean(rank.text)}" if rank.text else ""
        text.append(
            f"\nrank {rank.rank}  {clean(rank.node_name)}  {layers(rank.layers)}{memory}  {rank.state}{told}"
        )
    return text


def event(flat: dict[str, Any], names: dict[str, str]) -> Text:
    """One line of the log."""
    stamp = flat.get("ts")
    text = Text(time.strftime("%H:%M:%S ", time.localtime(stamp if isinstance(stamp, int | float) else 0)), "dim")
    text.append(f"{clean(str(flat.get('type', '')))} ", "bold")
    subject = str(flat.get("subject", ""))
    text.append(clean(names.get(subject, subject)))
    facts = [
        f"{key} {_fact(value, names)}"
        for key, value in flat.items()
        if key not in ("ts", "type", "subject") and value is not None
    ]
    text.append("  " + ", ".join(clean(fact) for fact in facts), "dim")
    return text


def _fact(value: object, names: dict[str, str]) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list):
        return " ".join(_fact(one, names) for one in value)
    return names.get(str(value), str(value))


def clean(text: str) -> str:
    return _PAINT.plain(text)
