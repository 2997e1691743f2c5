"""The last hour's round trips as lines of bars for a terminal: one bar a column, and which path was in use.

Bars are on a logarithmic scale from the least to the most of all paths of a peer, so that a cable and a VPN fit one
picture. A column shows the worst of its samples: what is looked for is what went wrong. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from exod.cli.base.paint import Cell, Paint, ms
from exod.daemon_api.shapes import PathTrace

BARS: Final = "▁▂▃▄▅▆▇█"
FEWEST_COLUMNS: Final = 10
FIGURES: Final = 26
"""Columns right of the bars: `0.212 ms to 44.1 ms` and a gap. A narrow terminal has the bars alone."""


def rtt_plot(traces: Sequence[PathTrace], paint: Paint, width: int) -> list[str]:
    """Nothing where nothing was measured yet."""
    lines: list[str] = []
    for (_, name), group in groupby(traces, key=lambda trace: (trace.peer, trace.peer_name)):
        paths = [trace for trace in group if any(rtt is not None for rtt in trace.rtt_ms)]
        if paths:
            lines += _peer(name, paths, paint, width)
    return lines


def _peer(name: str, paths: Sequence[PathTrace], paint: Paint, width: int) -> list[str]:
    label = max(len(trace.interface) for trace in paths) + 4
    figures_fit = width - label - FIGURES >= FEWEST_COLUMNS
    columns = max(FEWEST_COLUMNS, width - label - FIGURES * figures_fit)
    longest = max(len(trace.rtt_ms) for trace in paths)
    share = max(1, math.ceil(longest / columns))
    every_s = paths[0].every_s
    known = [rtt for trace in paths for rtt in trace.rtt_ms if rtt is not None]
    low, high = min(known), max(known)
    span = f"the last {_time(longest * every_s)}, {_time(share * every_s)} a column, {ms(low)} to {ms(high)}"
    lines = [paint.line([Cell(name, "bold"), Cell(f"  {span}", "dim")])]
    for trace in paths:
        start = longest - len(trace.rtt_ms)  # paths that are younger begin further right
        rtts = [None] * start + list(trace.rtt_ms)
        used = [False] * start + list(trace.selected)
        bars = "".join(_bar(rtts[at : at + share], low, high) for at in range(0, longest, share))
        marks = "".join("━" if any(used[at : at + share]) else " " for at in range(0, longest, share))
        own = [rtt for rtt in trace.rtt_ms if rtt is not None]
        figures = f"  {ms(min(own))} to {ms(max(own))}" if figures_fit else ""
        lines.append(paint.line([Cell(f"  {trace.interface:<{label - 2}}"), Cell(bars), Cell(figures, "dim")]))
        if marks.strip():
            words = "  in use" if figures_fit else ""
            lines.append(paint.line([Cell(" " * label), Cell(marks.rstrip(), "good"), Cell(words, "dim")]))
    return [*lines, ""]


def _bar(samples: Sequence[float | None], low: float, high: float) -> str:
    known = [rtt for rtt in samples if rtt is not None]
    if not known:
        return " "
    if high <= low or low <= 0:
        return BARS[0]
    share = math.log(max(known) / low) / math.log(high / low)
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
