"""Dynamic safe sync: when may a GPU graph wait for the network?

FAST puts receive, layers and send into one graph: least overhead, but the GPU waits for the stages before, and
past a few seconds the operating system kills the process for it (the GPU watchdog). SAFE receives first, and
evaluates the graph that uses it afterwards: no command buffer ever waits for a peer.

`SyncPolicy` decides for one rank, from the waits that were measured; rank 0 makes a step safe where any rank asked
for it. What it cannot foresee, a peer that stops in the midst of a fast step, a deadline inside each wait bounds.
Pure: no MLX, no clock. `WatchdogModel` counts how long graphs waited.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from exoengine.protocol import SyncSettings

WAIT_SHARE: Final = 0.25
"""A predicted wait past this share of the watchdog's limit is too much: one bad guess is at most fourfold."""

CALM_SHARE: Final = 0.6
"""Back to fast only where the prediction is below this share of the limit for it, so that it does not flap."""

CALM_STEPS: Final = 16
"""… for this many steps in a row."""

LOOKAHEAD_STEPS: Final = 8
"""The growth of the wait is extrapolated this far: a context grows one token a step, so growth is steady."""

GROWTH_WEIGHT: Final = 0.25
"""Weight of the newest difference in the smoothed growth."""

GRAPH_WAIT_SHARE: Final = 0.75
"""Of the watchdog's limit, that one wait inside a graph may last: three times what any may be predicted to be. Then
the step is given up, before the system would end the process."""

CONTEXT_SLACK: Final = 0.95
"""A context must fall below this share of `safe_context_tokens` before its reason for safety is gone."""


def graph_wait_s(settings: SyncSettings) -> float:
    """The deadline inside each wait of a graph. Where fast steps are forced a stage may take what it takes, as a
    chunk of a prefill may.
    """
    if settings.sync == "fast":
        return settings.chunk_deadline_s
    return settings.watchdog_s * GRAPH_WAIT_SHARE


@dataclasses.dataclass(frozen=True)
class SyncChoice:
    safe: bool
    reason: str


NOTHING_MEASURED: Final = SyncChoice(safe=True, reason="no step has been measured yet")
ALONE: Final = SyncChoice(safe=False, reason="there is no other rank to wait for")
"""What one rank by itself is told to do before its first step."""


class SyncPolicy:
    """One rank's opinion on how the next step should be evaluated."""

    def __init__(self, settings: SyncSettings) -> None:
        self._settings = settings
        self._no_fast = ""
        self._better_safe = ""
        self.limit_s = settings.watchdog_s * WAIT_SHARE
        """How long a wait may be predicted to be."""
        self._last_s: float | None = None
        self._growth_s = 0.0
        self._calm = 0
        self._link = SyncChoice(safe=False, reason="")
        self._choice = NOTHING_MEASURED
        self._long_context = False
        self._careful = 0
        """So many steps more are safe because a fast one was given up in its wait."""

    @property
    def settings(self) -> SyncSettings:
        return self._settings

    def set_link(self, healthy: bool, reason: str) -> None:
        """The daemon's evidence on this rank's edges."""
        self._link = SyncChoice(safe=not healthy, reason=reason or "the link is not healthy")

    def forbid_fast(self, reason: str) -> None:
        """Every step is safe for this reason, whatever was configured; empty: no longer."""
        self._no_fast = reason

    def prefer_safe(self, reason: str) -> None:
        """Dynamic steps are safe for this reason, however short the waits are; empty: no longer."""
        self._better_safe = reason

    def observe(self, waited_s: float) -> None:
        """In a decode step this rank waited so long for its input, in a graph or before it."""
        if self._last_s is not None:
            change = waited_s - self._last_s
            self._growth_s += GROWTH_WEIGHT * (change - self._growth_s)
        self._last_s = waited_s

    def gave_up_in_a_graph(self) -> None:
        """A fast step waited for a peer up to the deadline of its graph. The next group must not lose its steps so,
        too: a machine that is busy now is busy a moment later, and a safe step's deadline follows what steps took.
        """
        self._careful = CALM_STEPS

    def forget(self) -> None:
        """Another group or another request: what was measured says little about what comes."""
        self._last_s, self._growth_s, self._calm = None, 0.0, 0
        self._choice = NOTHING_MEASURED

    @property
    def predicted_s(self) -> float | None:
        """How long a fast graph would wait a few steps from now; None before anything was measured."""
        if self._last_s is None:
            return None
        return self._last_s + max(0.0, self._growth_s) * LOOKAHEAD_STEPS

    def choose(self, kv_tokens: int) -> SyncChoice:
        """What this rank asks for in the next step, once per step."""
        if self._no_fast:
            self._choice = SyncChoice(safe=True, reason=self._no_fast)
            return self._choice
        match self._settings.sync:
            case "safe":
                self._choice = SyncChoice(safe=True, reason="configured")
            case "fast":
                self._choice = SyncChoice(safe=False, reason="configured")
            case "dynamic":
                self._choice = self._dynamic(kv_tokens)
        return self._choice

    @property
    def has_measured(self) -> bool:
        """Does the last choice say anything? The first step of a group is safe whatever comes."""
        return self._choice != NOTHING_MEASURED

    def reason_of(self, safe: bool) -> str:
        """Why the ranks chose so, after `choose`: for this rank's own reason, unless another's made it safe."""
        return self._choice.reason if safe == self._choice.safe else "another rank asked for it"

    def _dynamic(self, kv_tokens: int) -> SyncChoice:
        limit_tokens = self._settings.safe_context_tokens
        if kv_tokens > limit_tokens:
            self._long_context = True
        elif kv_tokens < limit_tokens * CONTEXT_SLACK:
            self._long_context = False
        danger = self._danger(kv_tokens)
        if danger is None and self._careful:
            self._careful -= 1
            danger = "a fast step waited too long for another rank"
        if danger is not None:
            self._calm = 0
            return SyncChoice(safe=True, reason=danger)
        if not self._choice.safe or self._last_s is None:
            return self._choice
        self._calm += 1
        if self._calm < CALM_STEPS and self._calm_needed():
            return SyncChoice(safe=True, reason=self._choice.reason)
        self._calm = 0
        return SyncChoice(safe=False, reason="the predicted wait is short")

    def _danger(self, kv_tokens: int) -> str | None:
        if self._long_context:
            return f"the context is longer than {self._settings.safe_context_tokens} tokens"
        if self._link.safe:
            return self._link.reason
        if self._better_safe:
            return self._better_safe
        predicted = self.predicted_s
        if predicted is None:
            return None
        limit = self.limit_s * (CALM_SHARE if self._choice.safe else 1.0)
        if predicted > limit:
            return f"predicted wait {predicted:.2f} s, beyond {limit:.2f} s"
        return None

    def _calm_needed(self) -> bool:
        """The first measurement of a group may be trusted at once; leaving safety after danger takes calm."""
        return self._choice != NOTHING_MEASURED


@dataclasses.dataclass
class WatchdogModel:
    """What a GPU's watchdog sees: how long the graphs that contained a receive waited in it."""

    watchdog_s: float
    longest_wait_s: float = 0.0
    violations: int = 0

    def record(self, waited_s: float) -> None:
        """`waited_s`: of one step's graph; in a safe step no graph exists meanwhile."""
        self.longest_wait_s = max(self.longest_wait_s, waited_s)
        if waited_s > self.watchdog_s:
            self.violations += 1
