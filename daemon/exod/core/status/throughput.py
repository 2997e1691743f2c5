"""Are tokens coming as fast as this model did before, under the same plan and conditions?

The theory. Seconds in which only decoding goes on are comparable when the model, the plan, the kind of steps, the
context's band and the number of sequences are the same: that is a Workload. Of each, the best median of LEARN_S is
kept as its baseline. When the median of the last LOW_S is below LOW of the baseline the throughput is low, until it
is above WELL of it. What has been low for NEW_NORMAL_S of decoding is the new baseline: someone changed the
machine, and an alert that nobody can clear helps nobody.

Decides that alone, from samples once a second. Never asks why: `status/` names what else is wrong at the time.
`now` is monotonic seconds, rates are tokens per second of all sequences together.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Literal

import msgspec

LEARN_S: Final = 10.0
"""Long enough that one burst after a pause does not become the baseline."""
LOW_S: Final = 30.0
"""A recovery, a switch of paths and a neighbour's backup of a few seconds are over by then."""
LOW: Final = 0.5
WELL: Final = 0.7
NEW_NORMAL_S: Final = 3600.0
PAUSE_S: Final = 5.0
"""Samples further apart than this belong to different stretches: their times say nothing together."""

MAX_BASELINES: Final = 128
"""Settings that are kept: 4 models x 2 kinds of steps x 4 bands x 4 numbers of sequences. About 20 KB as a file."""

BANDS: Final = (4_096, 16_384, 65_536)
"""Tokens in the KV cache. Attention costs more with each: within a band the rate changes by less than LOW."""


class Workload(msgspec.Struct, frozen=True):
    """What must be the same for two rates to be compared."""

    model: str
    plan: str
    """The nodes and their layers as text; not the plan's hash, which holds its epoch."""
    mode: Literal["fast", "safe"]
    band: int
    sequences: int


class Baseline(msgspec.Struct, frozen=True):
    setting: Workload
    tokens_per_s: float


class LowThroughput(msgspec.Struct, frozen=True):
    """The throughput is low: what it is, and what it was."""

    setting: Workload
    tokens_per_s: float
    baseline_tokens_per_s: float


def band_of(kv_tokens: int) -> int:
    """The band's upper end in tokens; 0 for what lies above all."""
    return next((end for end in BANDS if kv_tokens <= end), 0)


def median(values: list[float]) -> float:
    """The upper one of two in the middle. The library's own lies beside its random numbers, which the core may not
    load.
    """
    return sorted(values)[len(values) // 2]


class ThroughputWatch:
    """Keeps the baselines, and the samples of the present stretch."""

    def __init__(self, baselines: tuple[Baseline, ...] = ()) -> None:
        self._best = OrderedDict((one.setting, one.tokens_per_s) for one in baselines[-MAX_BASELINES:])
        self._setting: Workload | None = None
        self._samples: deque[tuple[float, float]] = deque()
        self._low_for_s = 0.0
        self.low: LowThroughput | None = None

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """In order of use, the newest last."""
        return tuple(Baseline(setting, rate) for setting, rate in self._best.items())

    def observe(self, setting: Workload | None, tokens_per_s: float, now: float) -> None:
        """Once a second. `setting` is None where nothing is decoded, or something else goes on beside it: then
        what was found stays.
        """
        if setting is None or tokens_per_s <= 0:
            return
        last = self._samples[-1][0] if self._samples else now
        if setting != self._setting or now - last > PAUSE_S:
            self._begin(setting)
            last = now
        self._samples.append((now, tokens_per_s))
        while self._samples[0][0] < now - LOW_S:
            self._samples.popleft()
        if self.low is not None:
            self._low_for_s += now - last
        self._learn(setting, now)
        self._judge(setting, now)

    def _begin(self, setting: Workload) -> None:
        if setting != self._setting:
            self.low, self._low_for_s = None, 0.0
        self._setting = setting
        self._samples.clear()

    def _learn(self, setting: Workload, now: float) -> None:
        recent = [rate for at, rate in self._samples if at >= now - LEARN_S]
        if now - self._samples[0][0] < LEARN_S:
            return
        self._best[setting] = max(median(recent), self._best.get(setting, 0.0))
        self._best.move_to_end(setting)
        while len(self._best) > MAX_BASELINES:
            self._best.popitem(last=False)

    def _judge(self, setting: Workload, now: float) -> None:
        best = self._best.get(setting)
        if best is None:
            return
        rate = median([rate for _, rate in self._samples])
        whole = now - self._samples[0][0] >= LOW_S - 2.0  # samples come once a second, not on the second
        if self._low_for_s >= NEW_NORMAL_S:
            self._best[setting], self.low, self._low_for_s = rate, None, 0.0
        elif self.low is not None and whole and rate >= WELL * best:
            self.low, self._low_for_s = None, 0.0
        elif (whole and rate < LOW * best) or self.low is not None:
            self.low = LowThroughput(setting, rate, best)


def low_text(low: LowThroughput, causes: tuple[str, ...]) -> str:
    """`causes` are what else is wrong now, the likeliest first."""
    why = "; ".join(causes) or "nothing else is known to be wrong: see what else runs on the nodes"
    setting = low.setting
    several = f"{setting.sequences} sequences" if setting.sequences > 1 else "1 sequence"
    return (
        f"{low.tokens_per_s:.3g} tokens/s, less than half of the {low.baseline_tokens_per_s:.3g} that this plan "
        f"reached before with {several} and {setting.mode} steps: {why}"
    )
