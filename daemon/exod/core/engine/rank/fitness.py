"""Can this node serve as a rank at all? While it cannot, the coordinator plans without it.

A process that ends is started again, and a model that cannot be loaded is tried again: while that comes soon, the
others wait. Three processes in a row that ended before they held their layers, or a model that this node refuses,
are no matter of a moment: the node says on its card why it cannot serve, and the cluster goes on without it where
the others can hold the model. After a time that doubles it tries again by itself, outside of any ring, so that the
others keep their group: where processes did not live, one is started, and the node is taken back when it says
hello; where the model's files were refused, they are looked at again; where layers could not be loaded, or a
process ended while it loaded them, the same layers are loaded once more. A node that is in the ring all the same,
because all refuse or the others cannot hold the model, says that it is well only when it holds its layers: else
each try would cost all a plan. Nobody serves then, and after a moment its status says so: nobody waits for it.

Decides when a node says so, and when it tries again. Never who is left out (ring_members.py). Monotonic seconds.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from exod.core.engine.engine_events import AnnounceUnfit, StartWorker, TellWorker
from exod.core.engine.engine_messages import RankPhase
from exod.core.engine.rank.worker_life import RESTART_PAUSE_LIMIT_S, WorkerLife, WorkerState
from exod.core.engine.rank.worker_load import WorkerLoad, load_layers
from exod.model import MeshPlan
from exoengine.protocol import Load

FAILURES: Final = 3
"""Processes that ended before they held their layers. A person may kill one, or two."""

TRY_AGAIN_S: Final = 15.0
TRY_AGAIN_MAX_S: Final = 600.0
"""A try keeps a processor and a disk busy beside the others' work; each failure doubles the time."""


GIVEN_UP_S: Final = 5.0
"""A plan without this node comes within a second or two. Where none came, nobody can take its place."""

CANNOT_SERVE: Final = "cannot_serve"


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
        self._unfit_since = 0.0
        self._failures = 0
        self._cause = FailedPart.LOAD
        self.share: Load | None = None
        """The layers that could not be loaded."""
        self._try_at: float | None = None
        self._wait_s = TRY_AGAIN_S

    def news(self) -> list[AnnounceUnfit]:
        """What the card must say from now on; given once."""
        if self.text == self._told:
            return []
        self._told = self.text
        return [AnnounceUnfit(self.text)]

    def is_new(self, now: float) -> bool:
        """Did it say so just now? A plan without this node may be on its way."""
        return bool(self.text) and now - self._unfit_since < GIVEN_UP_S

    def failure(self, now: float) -> tuple[str, str] | None:
        """Code and text of why a rank that the plan wants all the same does not come."""
        if not self.text or self.is_new(now):
            return None
        return CANNOT_SERVE, f"{self.text}; it is tried again after pauses of up to {RESTART_PAUSE_LIMIT_S:g} s"

    def process_ended(self, text: str, loading: Load | None, now: float) -> None:
        """It ended unasked, and did not hold its layers. `loading` is what it was told to load."""
        self._failures += 1
        if self._failures >= FAILURES:
            said = f"its worker ended {self._failures} times before it held its layers: {text}"
            self._unfit(said, FailedPart.PROCESS if loading is None else FailedPart.LOAD, now)
            self.share = loading or self.share

    def load_failed(self, text: str, share: Load, now: float) -> None:
        """The worker could not load its layers."""
        self._unfit(text, FailedPart.LOAD, now)
        self.share = share

    def model_refused(self, text: str, now: float) -> None:
        """Its files are not what they must be, or are not here."""
        self._unfit(text, FailedPart.FILES, now)

    def model_found(self) -> None:
        """Its files are in order. Where they had failed, this node can serve again."""
        if self.text and self._cause is FailedPart.FILES:
            self.text, self._try_at = "", None

    def greeted(self, *, in_ring: bool) -> None:
        """A process runs. Where it was tried beside the ring, this node can serve again."""
        if self.text and self._cause is FailedPart.PROCESS and not in_ring:
            self.text, self._try_at = "", None
            self._failures = FAILURES - 1  # the next failure is one too many again

    def holds_layers(self) -> None:
        self.text, self._try_at, self.share = "", None, None
        self._failures, self._wait_s = 0, TRY_AGAIN_S

    def wanted_anew(self) -> None:
        """Another model: failures of the last one no longer count."""
        self.holds_layers()

    def rehearse(
        self, plan: MeshPlan | None, worker: WorkerLife, load: WorkerLoad, now: float
    ) -> list[StartWorker] | list[TellWorker] | None:
        """The next step of a try beside the ring: a process is started only to see whether it lives, and loads
        `share` where that is what failed. For a node that `plan` gives no rank. None while it is not time.
        """
        if self._cause is FailedPart.FILES or not self._is_due(plan, now):
            return None
        if not worker.is_connected:
            return worker.start(now)
        if self.share is None or load.asked is not None:
            return []
        return load_layers(self.share, load, worker, now)

    def looks_again(self, plan: MeshPlan | None, now: float) -> bool:
        """Is it time to look at the model's files again? For a node that `plan` gives no rank. Said once."""
        if self._cause is not FailedPart.FILES or not self._is_due(plan, now):
            return False
        self._try_at = None  # what is found sets the next time
        return True

    def _is_due(self, plan: MeshPlan | None, now: float) -> bool:
        due = bool(self.text) and self._try_at is not None and now >= self._try_at
        return due and plan is not None and bool(plan.model)

    def next_deadline(self, plan: MeshPlan | None, phase: RankPhase, worker: WorkerLife) -> float | None:
        if self._try_at is None:
            return None
        idle = phase is RankPhase.OFF and worker.state is WorkerState.NONE
        if not idle or plan is None or not plan.model:
            return None
        return self._try_at if self._cause is FailedPart.FILES else max(self._try_at, worker.restart_at)

    def _unfit(self, text: str, cause: FailedPart, now: float) -> None:
        if self._try_at is not None and now < self._try_at:
            return  # the plan that leaves it out is on its way
        if not self.text:
            self._unfit_since = now
        self.text, self._cause = text, cause
        self._try_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, TRY_AGAIN_MAX_S)
