"""When a link must be evaluated again if no datagram comes: the next silence to judge, the next hold-up that ends.

The theory. A full evaluation is expensive and datagrams arrive all the time, so a datagram only moves the deadline.
While the selected path works, its first missed datagram is due before anything else that silence can cause. So a
datagram on it moves that one deadline; everything else keeps its own, at least one probe interval of a standby path
away.

Decides when, never what is found.
"""

from __future__ import annotations

from exod.core.pair import dead_detection
from exod.core.pair.peer_liveness import PeerLiveness
from exod.core.probe.path import USABLE, Path
from exod.core.probe.path_table import PathTable

LOOK_S = 1.0
"""Look at everything this often even where nothing is due: routes to ask, paths to forget."""
MISS_REPEAT_S = 0.1
"""While the selected path stays silent, renew the burst this often."""


class NextCheck:
    def __init__(self, paths: PathTable, peer: PeerLiveness, now: float) -> None:
        self._paths = paths
        self._peer = peer
        self._look_at = self._rest_at = now
        self.at = now

    def at_once(self, now: float) -> None:
        self.at = self._look_at = now

    def looked(self, selected: Path | None, selector_at: float | None, now: float) -> None:
        """After a look: the next deadline. What is overdue already waits for a datagram or for the next look."""
        self._look_at = now + LOOK_S
        self._rest_at = min(at for at in self._rest(selected, selector_at) if at > now)
        self.at = self._rest_at
        if selected is None or selected.own not in USABLE:
            return
        missed_at = selected.quiet_since + selected.first_miss_s
        if missed_at > now:
            self.at = min(self.at, missed_at)
        else:
            times = [now + MISS_REPEAT_S, selected.quiet_since + selected.silence_limit_s, self._peer_at()]
            self.at = min([self.at, *(at for at in times if at is not None and at > now)])

    def put_off(self, selected: Path | None, selector_at: float | None) -> None:
        """What was heard since the last look has moved its deadlines."""
        self._rest_at = min(self._rest(selected, selector_at))
        self.at = self._rest_at
        if selected is not None and selected.own in USABLE:
            self.heard(selected)

    def heard(self, selected: Path) -> None:
        """A datagram came on the selected path, which works."""
        self.at = min(self._rest_at, selected.quiet_since + selected.first_miss_s)

    def _rest(self, selected: Path | None, selector_at: float | None) -> list[float]:
        """Everything but what the first miss on a working selected path comes before."""
        watched = selected if selected is not None and selected.own in USABLE else None
        times = [self._look_at]
        times += [path.quiet_since + path.silence_limit_s for path in self._paths.alive if path is not watched]
        if selector_at is not None:
            times.append(selector_at)
        if watched is None and (peer_at := self._peer_at()) is not None:
            times.append(peer_at)
        return times

    def _peer_at(self) -> float | None:
        return self._peer.deadline(dead_detection.suspect_after_s(self._paths), dead_detection.beat_s(self._paths))
