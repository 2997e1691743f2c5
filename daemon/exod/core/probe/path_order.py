"""The order of a pair's paths, and the text that explains it.

The theory: a path that works comes before one that is degraded; among those, one within the latency band before one
that is slow, and a slow one before one that loses datagrams (TCP crawls on loss and merely lags on latency); inside
a band the kind decides, because the cable has the bandwidth and the RTT of a probe does not show it; only then does
the measured cost decide, and the name last, so that the order is total. `grade` is the part of the order that can
cause a switch: inside a grade, jitter changes nothing.

Decides no switch (path_selection.py does).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import msgspec

from exod.model import KIND_PREFERENCE, Kind, PathId, PathState


class Band(IntEnum):
    FAST = 0
    """Within the degraded limit."""
    SLOW = 1
    LOSSY = 2


class PathRating(msgspec.Struct, frozen=True):
    """One path as its pair sees it: both ends' states combined."""

    path: PathId
    name: str
    """For people."""
    state: PathState
    band: Band
    kind: Kind
    eligible: bool
    """Both ends found that the ring's own connection would take this path."""
    undecided: bool
    """It may still turn out usable: not measured yet, or its route not checked yet."""
    audible: bool
    """It delivered in the last moment, as far as its pace lets one tell."""
    fresh: bool
    """Its floor is new enough to compare with."""
    cost_ms: float
    fit: bool = True
    """The ring has not failed on it of late. One that is unfit is used only where none is fit."""

    @property
    def usable(self) -> bool:
        return self.eligible and self.state in (PathState.UP, PathState.DEGRADED)


Grade = tuple[int, int, int]


def grade(rating: PathRating) -> Grade:
    """(state, band, kind), smaller is better. Only for usable paths."""
    return (
        0 if rating.state is PathState.UP else 1,
        int(rating.band),
        KIND_PREFERENCE[rating.kind],
    )


def order(rating: PathRating) -> tuple[bool, Grade, float, PathId]:
    """A total order, best first."""
    return (not rating.fit, grade(rating), rating.cost_ms, rating.path)


def why_best(ranked: Sequence[PathRating]) -> str:
    """Why the first of these is the one to begin with, as text."""
    return "the only path" if len(ranked) == 1 else f"best of {len(ranked)}: {comparison(ranked[0], ranked[1])}"


def why_left(left: PathId | None, taken: PathId | None, ratings: Iterable[PathRating]) -> str | None:
    """Why the other end left one path for another, as text, as far as this end can see."""
    ranked = sorted((one for one in ratings if one.usable or one.path == left), key=order)
    old = next((one for one in ranked if one.path == left), None)
    new = next((one for one in ranked if one.path == taken), None)
    if old is not None and not old.usable:
        works = old.state in (PathState.UP, PathState.DEGRADED)
        return f"the route of {old.name} leaves another interface" if works else f"{old.name} is {old.state}"
    if new is None:
        return None
    if old is None:
        return why_best(ranked) if ranked[0] is new else None
    return comparison(new, old) if order(new) < order(old) else None


def comparison(better: PathRating, worse: PathRating) -> str:
    """Why one path comes before another, as text."""
    if better.fit is not worse.fit:
        return f"the ring failed on {worse.name}"
    if better.state is not worse.state:
        return f"{worse.state} comes after {better.state}"
    if better.band is not worse.band:
        words = {Band.FAST: "fast", Band.SLOW: "slow", Band.LOSSY: "lossy"}
        return f"{words[worse.band]} comes after {words[better.band]}"
    if better.kind is not worse.kind:
        return f"{worse.kind} comes after {better.kind}"
    if better.cost_ms != worse.cost_ms:
        return f"costs {worse.cost_ms:.2f} ms, the better one {better.cost_ms:.2f} ms"
    return "as good as the better one, and later by name"
