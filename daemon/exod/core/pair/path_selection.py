"""Which path a pair uses: when to choose, when to leave, when to return, and when to keep still.

The theory. Five things move a selection, each with its own patience:
- FIRST: fresh incarnations, or a pair of which nothing was usable (the peer was away, and comes back on all paths
  within a moment). Wait until every candidate is measured, at most FIRST_PATIENCE_S after the first usable one: the
  first responder is often the slow one.
- DEATH (and a route that turned wrong): at once, to the best of those that are heard.
- RING: the ring failed on the path in use, and not on another: at once. Unfit paths come last; where all are, the
  pair stays.
- DEGRADED: after the dwell, only to a path in a better state or band that was already good, measured afresh.
- UPGRADE: a path of a better grade that stayed so for its hold-up (hold_up.py).
DEGRADED and UPGRADE each spend a token (token_bucket.py), except for the return to a path that only its death
made us leave: that is governed by the hold-up alone. Silence of everything moves nothing, because nothing is then
usable. Where every path is slow, none is in a better band, and we stay.

Decides the path; never states (path.py) or order (path_order.py), and sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from exod.core.base.config import CoreConfig
from exod.core.pair.hold_up import PathHistory
from exod.core.pair.token_bucket import TokenBucket
from exod.core.probe.path_order import PathRating, comparison, grade, order, why_best
from exod.model import PathId, PathState

FIRST_PATIENCE_S = 1.0
"""Two nodes that start together must agree on the cable directly, and a restart within 3 s (design, targets)."""
DWELL_S = 2.0
"""No voluntary switch sooner than this after the previous switch: four floor windows of the new path."""
RECORDS = 64
"""Paths remembered at most: those that are gone are forgotten beyond it."""
RECHECK_S = 0.05
"""While a good target is not measured afresh yet: one beat of the selected path."""


class Cause(StrEnum):
    FIRST = "first"
    DEATH = "death"
    ROUTE = "route"
    DEGRADED = "degraded"
    UPGRADE = "upgrade"
    PIN = "pin"
    RING = "ring"


VOLUNTARY = frozenset({Cause.DEGRADED, Cause.UPGRADE})


class PathChoice(msgspec.Struct, frozen=True):
    path: PathId | None
    cause: Cause
    reason: str
    free: bool = False
    """A voluntary switch that takes no token: the return to a path that its death made us leave."""


class PathSelector:
    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._records: dict[PathId, PathHistory] = {}
        self._first_usable_at: float | None = None
        self._anew = True
        """Nothing was usable since the last selection: the next one is as patient as the first."""
        self._switched_at: float | None = None
        self._bucket = TokenBucket()
        self._pin: tuple[PathId, float] | None = None
        self.deadline: float | None = None
        """When `decide` should be asked again although nothing changed."""

    def pin(self, path: PathId, until: float) -> None:
        self._pin = (path, until)

    def hold_up_s(self, path: PathId) -> float:
        """What a better path must hold before it is taken."""
        return (self._records.get(path) or PathHistory(self._config, 0.0)).hold_up_s

    def bucket_empty(self, now: float) -> bool:
        """Are the voluntary switches of the last ten minutes used up?"""
        return self._bucket.is_empty(now)

    def decide(self, current: PathId | None, ratings: Sequence[PathRating], now: float) -> PathChoice | None:
        """The new choice, or None to stay."""
        self.deadline = None
        self._remember(ratings, current, now)
        ranked = sorted((one for one in ratings if one.usable), key=order)
        present = next((one for one in ratings if one.path == current), None)
        choice = self._pinned(current, ranked, now)
        if choice is None and self._anew:
            choice = self._first(current, ranked, ratings, now)
        elif choice is None and (present is None or not present.usable):
            choice = self._forced(current, present, ranked, ratings)
        elif choice is None and present is not None and not self._is_pinned(present.path, now):
            choice = self._flee_unfit(present, ranked) or self._voluntary(present, ranked, now)
        if choice is not None:
            self._note(choice, current, now)
        return choice

    # --- the four movers ----------------------------------------------------------------------------------------

    def _first(
        self, current: PathId | None, ranked: list[PathRating], ratings: Sequence[PathRating], now: float
    ) -> PathChoice | None:
        if not ranked:
            self._first_usable_at = None
            return None
        if self._first_usable_at is None:
            self._first_usable_at = now
        if any(one.undecided for one in ratings) and now < self._first_usable_at + FIRST_PATIENCE_S:
            self._ask_again(self._first_usable_at + FIRST_PATIENCE_S)
            return None
        self._anew, self._first_usable_at = False, None
        if ranked[0].path == current:
            return None  # the peer is back, and so is the path in use
        return PathChoice(ranked[0].path, Cause.FIRST, why_best(ranked))

    def _forced(
        self,
        current: PathId | None,
        present: PathRating | None,
        ranked: list[PathRating],
        ratings: Sequence[PathRating],
    ) -> PathChoice | None:
        if ranked:
            best = min(ranked, key=lambda one: (not one.fit, not one.audible, order(one)))
            left = current if present is None else present.name
            if present is not None and not present.eligible and present.state in (PathState.UP, PathState.DEGRADED):
                return PathChoice(best.path, Cause.ROUTE, f"the route of {left} leaves another interface")
            return PathChoice(best.path, Cause.DEATH, f"{left} is dead")
        self._anew = True
        if current is not None and any(one.state in (PathState.UP, PathState.DEGRADED) for one in ratings):
            return PathChoice(None, Cause.ROUTE, "no path that the ring's connections would take")
        return None  # silence on all paths switches nothing

    def _flee_unfit(self, present: PathRating, ranked: list[PathRating]) -> PathChoice | None:
        if present.fit or not ranked[0].fit:
            return None
        return PathChoice(ranked[0].path, Cause.RING, f"the ring failed on {present.name}")

    def _voluntary(self, present: PathRating, ranked: list[PathRating], now: float) -> PathChoice | None:
        for better in ranked:
            if grade(better) >= grade(present) or not better.fit:
                return None
            record = self._records[better.path]
            fell = present.state is PathState.DEGRADED and grade(better)[:2] < grade(present)[:2]
            fled = fell and record.since <= self._records[present.path].since
            ready_at = record.since if fled else record.since + record.hold_up_s
            if self._switched_at is not None:
                ready_at = max(ready_at, self._switched_at + DWELL_S)
            free = record.left_by_death and not fled
            if not free and (token_at := self._bucket.ready_at()) is not None:
                ready_at = max(ready_at, token_at)
            if now < ready_at:
                self._ask_again(ready_at)
            elif not (better.fresh and better.audible):
                self._ask_again(now + RECHECK_S)
            else:
                cause = Cause.DEGRADED if fled else Cause.UPGRADE
                return PathChoice(better.path, cause, comparison(better, present), free)
        return None

    def _pinned(self, current: PathId | None, ranked: list[PathRating], now: float) -> PathChoice | None:
        if self._pin is None or not self._is_pinned(self._pin[0], now):
            return None
        path, until = self._pin
        self._ask_again(until)
        if path != current and any(one.path == path for one in ranked):
            return PathChoice(path, Cause.PIN, "pinned by hand")
        return None

    def _is_pinned(self, path: PathId, now: float) -> bool:
        return self._pin is not None and self._pin[0] == path and now < self._pin[1]

    # --- memory -------------------------------------------------------------------------------------------------

    def _remember(self, ratings: Sequence[PathRating], current: PathId | None, now: float) -> None:
        if len(self._records) > RECORDS:
            present_paths = {one.path for one in ratings}
            self._records = {path: record for path, record in self._records.items() if path in present_paths}
        for one in ratings:
            present = grade(one) if one.usable and one.fit else None
            self._of(one.path, now).graded(present, after_a_switch=self._switched_at is not None, now=now)

    def _of(self, path: PathId, now: float) -> PathHistory:
        if path not in self._records:
            self._records[path] = PathHistory(self._config, now)
        return self._records[path]

    def _note(self, choice: PathChoice, current: PathId | None, now: float) -> None:
        self._anew = choice.path is None
        if choice.cause in VOLUNTARY and not choice.free:
            self._bucket.spend(now)
        self._switched_at = now
        if current is not None and choice.cause in (Cause.FIRST, Cause.DEATH, Cause.ROUTE, Cause.RING):
            self._of(current, now).left_by_death = True
        if choice.path is not None:
            self._of(choice.path, now).left_by_death = False

    def _ask_again(self, at: float) -> None:
        if self.deadline is None or at < self.deadline:
            self.deadline = at
