"""A path as the selection and the texts compare it: its state and grade, and whether what is known of it is new
enough.

Decides nothing: path_order.py orders paths, path_selection.py chooses one.
"""

from __future__ import annotations

from exod.core.probe.path import USABLE, Path
from exod.core.probe.path_order import PathRating
from exod.core.probe.probe_sender import ProbeSender
from exod.model import PathState

SLOW_ALARM = 5
"""Slow samples in a row on the selected path that make both ends look closer: jitter makes three, hardly five."""
AUDIBLE_BEATS = 1.5
AUDIBLE_IN_BURST_S = 0.12
"""In a burst of this length every live path has delivered, one over a 44 ms VPN too."""
FRESH_S = 1.5
"""A standby at 4 a second has 6 samples in this time; an alarm's burst makes it fresh at once."""


def rate_path(path: Path, probes: ProbeSender, now: float) -> PathRating:
    quiet = now - path.last_rx
    long_burst = probes.bursting(now) and now - probes.burst_since >= AUDIBLE_IN_BURST_S
    age = path.rtt.age_s(now)
    unmeasured = path.state is PathState.INIT and not path.ineligible
    unrouted = path.state in USABLE and not path.eligible and not path.ineligible
    return PathRating(
        path=path.candidate.path,
        name=path.name,
        state=path.state,
        band=path.band,
        kind=path.candidate.kind,
        eligible=path.eligible,
        undecided=unmeasured or unrouted,
        audible=quiet <= (AUDIBLE_IN_BURST_S if long_burst else AUDIBLE_BEATS * path.peer_interval_s),
        fresh=age is not None
        and age <= max(FRESH_S, 2 * path.peer_interval_s)
        and (path.state is not PathState.UP or path.rtt.slow_streak < SLOW_ALARM),
        cost_ms=path.rtt.cost_ms or 0.0,
        fit=not path.ring.unfit,
    )
