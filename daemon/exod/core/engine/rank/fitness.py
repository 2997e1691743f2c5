"""Can this node serve as a rank at all? While it cannot, the coordinator plans without it.

A process that ends is started again, and a model that cannot be loaded is tried again: while that comes soon, the
others wait. Three processes in a row that ended before they held their layers, or a model that this node refuses,
are no matter of a moment: the node says on its card why it cannot serve, and the cluster goes on without it where
the others can hold the model. After a time that doubles it tries again by itself, outside of any ring, so that the
others keep their group: where processes did not live, one is started, and the node is taken back when it says
hello; where the model's files were refused, they are looked at again. Whether layers that are there can be loaded
only a load in a ring shows.

Decides when a node says so, and when it tries again. Never who is left out (ring_members.py). Monotonic seconds.
"""

from __future__ import annotations

from enum import Enum, auto
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


class FailedPart(Enum):
    """What did not work, and so what is tried again."""

    PROCESS = auto()
    FILES = auto()
    LOAD = auto()


class Fitness:
    def __init__(self) -> None:
        self.text = ""
        """Why this node cannot serve; empty where it can, as far as it knows."""
        self._told = ""
        self._failures = 0
        self._cause = FailedPart.LOAD
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
            said = f"its worker ended {self._failures} times before it held its layers: {text}"
            self._unfit(said, FailedPart.PROCESS, now)

    def load_failed(self, text: str, now: float) -> None:
        """The worker could not load its layers."""
        self._unfit(text, FailedPart.LOAD, now)

    def model_refused(self, text: str, now: float) -> None:
        """Its files are not what they must be, or are not here."""
        self._unfit(text, FailedPart.FILES, now)

    def model_found(self) -> None:
        """Its files are well. Where they were what failed, that is what was to be shown."""
        if self.text and self._cause is FailedPart.FILES:
            self.text, self._try_at = "", None

    def greeted(self) -> None:
        """A process lives. Where processes were what failed, that is what was to be shown."""
        if self.text and self._cause is FailedPart.PROCESS:
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
        return self._cause is FailedPart.PROCESS and self._is_due(plan, now)

    def looks_again(self, plan: MeshPlan | None, now: float) -> bool:
        """Is it time to look at the model's files again? For a node that `plan` gives no rank. Said once."""
        if self._cause is not FailedPart.FILES or not self._is_due(plan, now):
            return False
        self._try_at = None  # what is found sets the next time
        return True

    def _is_due(self, plan: MeshPlan | None, now: float) -> bool:
        due = bool(self.text) and self._try_at is not None and now >= self._try_at
        return due and plan is not None and bool(plan.model)

    def handle_timer(self, now: float) -> None:
        if self.text and self._cause is FailedPart.LOAD and self._try_at is not None and now >= self._try_at:
            self.text, self._try_at = "", None

    def next_deadline(self, plan: MeshPlan | None, phase: RankPhase, worker: WorkerLife) -> float | None:
        if self._try_at is None or self._cause is FailedPart.LOAD:
            return self._try_at
        idle = phase is RankPhase.OFF and worker.state is WorkerState.NONE
        if not idle or plan is None or not plan.model:
            return None
        return max(self._try_at, worker.restart_at) if self._cause is FailedPart.PROCESS else self._try_at

    def _unfit(self, text: str, cause: FailedPart, now: float) -> None:
        if self._try_at is not None and now < self._try_at:
            return  # the plan that leaves it out is on its way
        self.text, self._cause = text, cause
        self._try_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, TRY_AGAIN_MAX_S)
