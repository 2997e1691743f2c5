"""How far one node's fetch of a model is, in one line. Decides nothing."""

from __future__ import annotations

from exod.cli.base.paint import duration, mib
from exod.daemon_api.model_lines import ModelLine


def fetch_text(line: ModelLine) -> str:
    """`studio2: 40 % of 12.0 GiB, 310.2 MB/s, 25 s left, from studio1`."""
    facts = (
        [f"{100 * line.done_bytes // line.total_bytes} % of {mib(line.total_bytes)}"] if line.total_bytes else []
    )
    if line.bytes_per_s:
        facts.append(f"{line.bytes_per_s / 1e6:.1f} MB/s")
    if line.left_s is not None:
        facts.append(f"{duration(line.left_s)} left")
    if line.sources:
        facts.append(f"from {', '.join(line.sources)}")
    facts.append(line.text)
    return f"{line.node_name}: {', '.join(fact for fact in facts if fact)}"
