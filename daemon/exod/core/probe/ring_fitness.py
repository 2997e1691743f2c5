"""Is a path fit for the ring? Evidence of the ring's own connections, kept apart from that of the probes.

The theory. A probe says whether small datagrams pass; the ring needs its port, full frames, and a rate. What the
ring suffers on a path while its probes pass is a failure of that path: after the second one within a while the path
is unfit, and the pair leaves it for one that is fit. A rate below the limit is decisive at once, because bytes were
really moved to find it. Unfitness lasts for a time that doubles with each relapse; then the path may be tried
again, and a single failure is enough. Only a transfer on the ring's own ports makes a path as good as before.

Decides fitness; never which path is used (path_selection.py), and never whether probes pass (path.py). Times are
monotonic seconds.
"""

from __future__ import annotations

from collections import deque

from exod.core.base.events import RingFault
from exod.model import Kind

FAILURES = 2
"""One may be chance: a process that was just starting, a connection that a restart reset."""
WINDOW_S = 10.0
"""Failures that are further apart have nothing to do with each other."""
APART_S = 0.5
"""What both directions of an edge suffer at once is one failure."""
UNFIT_S = 30.0
"""For the first time. Long enough for a person to see it, short enough to come back to a cable that was plugged in
again."""
UNFIT_MAX_S = 3_600.0
LASTED_S = 600.0
"""A path that carried the ring for so long has no past."""

MIN_MB_PER_S: dict[Kind, float] = {
    Kind.THUNDERBOLT: 2.0,
    Kind.ETHERNET: 1.0,
    Kind.WIFI: 0.5,
    Kind.VPN: 0.05,
    Kind.LOOPBACK: 2.0,
    Kind.OTHER: 0.05,
}
"""Below this something is wrong with such a medium: a hundredth of what a gigabit cable moves. A hidden state of 16
KiB takes 16 ms at 1 MB/s, as long as a whole step of a small model."""


def describe(fault: RingFault, address: str, moved_bytes: int, mb_per_s: float, limit_mb_per_s: float) -> str:
    """As text, after `the ring failed on it: `."""
    match fault:
        case RingFault.UNANSWERED:
            return f"nobody answered a connection to {address} (a firewall?)"
        case RingFault.REFUSED:
            return f"{address} refused the ring's connection (a firewall that rejects?)"
        case RingFault.SLOW:
            return f"it moves {mb_per_s:.2f} MB/s, {limit_mb_per_s:g} are needed (mesh.min_mb_per_s)"
        case _ if not moved_bytes:
            return f"{address} acknowledges nothing of what the ring sends (look at the MTU, or for a firewall)"
        case _:
            return f"{address} went silent after {moved_bytes:,} bytes (are full frames swallowed? look at the MTU)"


class RingFitness:
    """Of one path at this end, and what the other end says of it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Nothing is known: an end has a new life, or the path a new address."""
        self.own_unfit = False
        self.peer_unfit = False
        self.cause = ""
        """The newest failure, as text."""
        self.until = 0.0
        """When an unfit path may be tried again."""
        self._failed_at: deque[float] = deque(maxlen=FAILURES)
        self._relapses = 0
        self._probation = False
        self._worked_since: float | None = None

    @property
    def unfit(self) -> bool:
        """If either end says so: the ring needs both directions."""
        return self.own_unfit or self.peer_unfit

    def failed(self, cause: str, *, decisive: bool, now: float) -> bool:
        """Take a failure. Returns whether the path became unfit by it."""
        if self.own_unfit or (self._failed_at and now - self._failed_at[-1] < APART_S):
            return False
        self.cause, self._worked_since = cause, None
        self._failed_at.append(now)
        close = len(self._failed_at) == FAILURES and now - self._failed_at[0] <= WINDOW_S
        if not (close or decisive or self._probation):
            return False
        self.own_unfit, self._probation = True, False
        self.until = now + min(UNFIT_MAX_S, UNFIT_S * 2.0**self._relapses)
        self._relapses += 1
        self._failed_at.clear()
        return True

    def worked(self, now: float) -> None:
        """The ring moved bytes over it at a sufficient rate, on its own ports."""
        self._failed_at.clear()
        if self._worked_since is None:
            self._worked_since = now
        if now - self._worked_since >= LASTED_S:
            self._relapses, self._probation = 0, False

    def expire(self, now: float) -> bool:
        """May it be tried again? Returns whether that changed just now."""
        if not self.own_unfit or now < self.until:
            return False
        self.own_unfit, self._probation = False, True
        return True
