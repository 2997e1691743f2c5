"""Can this node serve as a rank at all? While it cannot, the coordinator plans without it.

A process that ends is started again, and a model that cannot be loaded is tried again: while that comes soon, the
others wait. Three processes in a row that ended before they held their layers, or a model that this node refuses,
are no matter of a moment: the node says on its card why it cannot serve, and the cluster goes on without it where
the others can hold the model. After a time that doubles it tries again by itself. Where processes did not live, one
is started outside of any ring, and the node is taken back when it says hello. Whether a model can be loaded only a
load shows.

Decides when a node says so, and when it tries again. Never who is left out (ring_members.py). Monotonic seconds.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_events import AnnounceUnfit
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.worker_life import WorkerLife, WorkerState
from exod.model import MeshPlan

FAILURES: Final = 3
"""Processes that ended before they held their layers. A person may kill one, or two."""

TRY_AGAIN_S: Final = 15.0
TRY_AGAIN_MAX_S: Final = 600.0
"""A try in a ring costs the others their group for as long as it takes; each failure doubles the time."""


class Fitness:
    def __init__(self) -> None:
        self.text = ""
        """Why this node cannot serve; empty where it can, as far as it knows."""
        self._told = ""
        self._failures = 0
        self._of_process = False
        self._try_at: float | None = None
        self._wait_s = TRY_AGAIN_S

    def news(self) -> list[AnnounceUnfit]:
        """What the card has to say now, once."""
        if self.text == self._told:
            return []
        self._told = self.text
        return [AnnounceUnfit(self.text)]

    def process_ended(self, text: str, now: float) -> None:
        """Nobody asked it to, and it did not hold its layers."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._unfit(f"its worker ended {self._failures} times before it held its layers: {text}", True, now)

    def model_refused(self, text: str, now: float) -> None:
        self._unfit(text, False, now)

    def greeted(self) -> None:
        """A process lives. Where processes were what failed, that is what was to be shown."""
        if self.text and self._of_process:
            self.text, self._try_at = "", None
            self._failures = FAILURES - 1  # the next failure is one too many again

    def holds_layers(self) -> None:
        self.text, self._try_at = "", None
        self._failures, self._wait_s = 0, TRY_AGAIN_S

    def wanted_anew(self) -> None:
        """Another model: what was said of the last one is void."""
        self.holds_layers()

    def rehearses(self, plan: MeshPlan | None, now: float) -> bool:
        """Is it time to start a process only to see whether it lives? For a node that `plan` gives no rank."""
        due = bool(self.text) and self._of_process and self._try_at is not None and now >= self._try_at
        return due and plan is not None and bool(plan.model)

    def handle_timer(self, now: float) -> None:
        if self.text and not self._of_process and self._try_at is not None and now >= self._try_at:
            self.text, self._try_at = "", None

    def next_deadline(self, plan: MeshPlan | None, phase: RankPhase, worker: WorkerLife) -> float | None:
        if self._try_at is None or not self._of_process:
            return self._try_at
        idle = phase is RankPhase.OFF and worker.state is WorkerState.NONE
        return max(self._try_at, worker.restart_at) if idle and plan is not None and plan.model else None

    def _unfit(self, text: str, of_process: bool, now: float) -> None:
        if self._try_at is not None and now < self._try_at:
            return  # the plan that leaves it out is on its way
        self.text, self._of_process = text, of_process
        self._try_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, TRY_AGAIN_MAX_S)
