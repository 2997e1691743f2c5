"""When a member reports its links to its coordinator: on news, to a new one, and again in case one was lost.

Decides when, never what.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from exod.core.base.mesh_messages import LinkReport, LinkSummary
from exod.model import NodeCard, NodeId

REPORT_EVERY_S = 1.0
"""A report that was lost with its connection is repeated by then."""
REPORT_BUSY_S = 0.2
"""While no plan is in force."""


def essence(links: Iterable[LinkSummary]) -> tuple[LinkSummary, ...]:
    """The parts of a report whose change is news. Cost only orders paths: its change alone is none."""
    return tuple(msgspec.structs.replace(one, cost_ms=0.0) for one in links)


class LinkReporter:
    def __init__(self) -> None:
        self._seq = 0
        self._said: dict[NodeId, tuple[tuple[LinkSummary, ...], float]] = {}
        """To whom what, and when."""

    def report_again(self) -> None:
        """A control connection exists again."""
        self._said.clear()

    def due(
        self,
        me: NodeCard,
        to: NodeId,
        links: Iterable[LinkSummary],
        *,
        epoch_seen: int,
        calm: bool,
        now: float,
    ) -> LinkReport | None:
        """The report to send now, if one is due."""
        links = tuple(links)
        content = essence(links)
        every = REPORT_EVERY_S if calm else REPORT_BUSY_S
        said = self._said.get(to)
        if said is not None and said[0] == content and now < said[1] + every:
            return None
        self._said[to] = (content, now)
        self._seq += 1
        return LinkReport(me.id, me.incarnation, self._seq, epoch_seen, links)
