"""What the peer says in its datagrams beside its selection: its verdict on each path, its plan, whom it hears.

The theory. A datagram carries a rising number (`order`), because datagrams may be late or doubled: only one that is
newer than all before counts. Reports are compared with the last ones, so that the usual datagram costs nothing.

Decides which statements are the newest; never what follows from them (link.py). Pure.
"""

from __future__ import annotations

from exod.core.probe.datagram import Datagram, PathReport
from exod.core.probe.path_table import PathTable


class PeerStatements:
    def __init__(self, paths: PathTable) -> None:
        self._paths = paths
        self.plan_prefix = ""
        self.misses = False
        """The peer does not hear every node that others hear."""
        self.changed = False
        """Something that a plan depends on changed since the flag was last cleared (by link.py)."""
        self._order = 0
        self._reports: tuple[PathReport, ...] | None = None

    def restart(self) -> None:
        """The peer has a new incarnation: its numbers begin again."""
        self._order = 0
        self.plan_prefix, self.misses = "", False
        self._reports = None

    def expect_reports(self) -> None:
        """There are new paths here: the peer's next reports are read even if they are the same."""
        self._reports = None

    def is_newer(self, datagram: Datagram) -> bool:
        """Does it come after all before? Then it counts."""
        if datagram.order <= self._order:
            return False
        self._order = datagram.order
        return True

    def take(self, datagram: Datagram) -> bool:
        """Of a newer datagram. Returns whether a verdict on a path changed."""
        if (datagram.plan_prefix, datagram.misses) != (self.plan_prefix, self.misses):
            self.plan_prefix, self.misses = datagram.plan_prefix, datagram.misses
            self.changed = True
        return datagram.reports != self._reports and self._take_reports(datagram.reports)

    def _take_reports(self, reports: tuple[PathReport, ...]) -> bool:
        self._reports = reports
        by_path = {report.path: report for report in reports}
        unsettled = False
        for path in self._paths:
            before = (path.peer_own, path.peer_route, path.ring.peer_unfit)
            path.told(by_path.get(path.candidate.path))
            unsettled |= before != (path.peer_own, path.peer_route, path.ring.peer_unfit)
            self.changed |= before[2] is not path.ring.peer_unfit
        return unsettled
