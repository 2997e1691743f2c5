"""What the status shows and no other part keeps: plans that were committed, reports of other nodes, cabling.

The composition root writes it; the builders of a status only read it. It decides nothing. `at` is
Unix seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

import msgspec

from exod.core.base.facts import Fact
from exod.daemon_api.peer_reports import NodeReport
from exod.model import MeshPlan, ModelFetch, NodeId, PullRecord, ThunderboltPort
from exod.platform.system import Platform
from exod.status.rtt_history import RttHistory

MAX_MESH_HISTORY: Final = 128
"""Plans that are remembered for `exoctl mesh`: a day of a cluster whose cable is played with."""


class PlanChange(msgspec.Struct, frozen=True):
    plan: MeshPlan
    at: float
    reason: str
    detect_ms: float | None
    agree_ms: float | None
    """None for a plan of one node: there is nobody to agree with."""


class ClusterRecord:
    """One for each daemon."""

    def __init__(self) -> None:
        self.history: deque[PlanChange] = deque(maxlen=MAX_MESH_HISTORY)
        self.thunderbolt: tuple[ThunderboltPort, ...] = ()
        """This host's receptacles."""
        self.served_model = ""
        """The model that was served last: what follows is a recovery, not a first load."""
        self.rtt = RttHistory()
        self.found: tuple[Fact, ...] = ()
        """What the last look at the host and the throughput found."""
        self.clocks: dict[NodeId, float] = {}
        """By how many seconds each peer's clock was ahead of this one when its newest report came."""
        self.files_port = 0
        """Where this node gives files of models to others; 0: nowhere."""
        self.pulls: tuple[PullRecord, ...] = ()
        self.fetches: tuple[ModelFetch, ...] = ()
        """What people asked this cluster to have, and what this node has of it."""
        self._reports: dict[NodeId, NodeReport] = {}

    async def follow_thunderbolt(self, platform: Platform, cabling_changed: asyncio.Event) -> None:
        """Asks anew when interfaces change, as they do when a cable is plugged: the question costs a second."""
        while True:
            cabling_changed.clear()
            self.thunderbolt = await platform.thunderbolt()
            await cabling_changed.wait()

    def peer_report(self, peer: NodeId, report: NodeReport) -> None:
        """A node reports for itself alone."""
        if report.sender == peer:
            self._reports[peer] = report
            if report.wall:
                self.clocks[peer] = report.wall - time.time()

    def reports(self) -> list[NodeReport]:
        """The newest of each node."""
        return list(self._reports.values())

    def report(self, peer: NodeId) -> NodeReport | None:
        """The newest of `peer`; None where none came."""
        return self._reports.get(peer)
