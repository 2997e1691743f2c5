"""What a benchmark says: named figures, each beside the target that it has, as a table and as JSON.

Decides how figures are summed up (percentiles) and shown. Never measures anything.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. `target` is the most that it may be; None where there is nothing to compare it with."""

    name: str
    value: float
    unit: str
    target: float | None = None
    samples: tuple[float, ...] = ()
    """What the figure was made of, for a closer look."""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.value <= self.target else "MISSED"


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: a value that was measured, not one between two. Of 30 values, p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def summed_up(
    name: str, values: Sequence[float], unit: str, *, p50: float | None = None, p99: float | None = None
) -> list[Row]:
    """The median and the 99th percentile of one measurement, each beside its target."""
    return [
        Row(f"{name}, p50 of {len(values)}", percentile(values, 50), unit, p50, tuple(values)),
        Row(f"{name}, p99 of {len(values)}", percentile(values, 99), unit, p99),
    ]


def table(rows: Sequence[Row]) -> str:
    """Aligned columns: name, value, unit, target, verdict."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:g}"
        value = f"{row.value:.2f}" if row.value >= 1 else f"{row.value:.3f}"
        lines.append(f"  {row.name:<{width}}  {value:>9} {row.unit:<4} {target:>8}  {row.verdict}".rstrip())
    return "\n".join(lines)


def document(section: str, rows: Sequence[Row], took_s: float) -> dict[str, Any]:
    """One section's figures with what one must know to compare them with others."""
    return {
        "section": section,
        "at": round(time.time(), 1),
        "took_s": round(took_s, 1),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "rows": [asdict(row) for row in rows],
    }
