"""The paths that a pair has: made from candidates, found by address, remembered for a while when an address goes.

Decides which paths exist and when their routes are asked for; never whether they work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from exod.core.base.config import CoreConfig
from exod.core.base.events import CheckRoute
from exod.core.base.journal import Journal
from exod.core.probe.candidate_paths import Candidate
from exod.core.probe.datagram import RouteVerdict
from exod.core.probe.path import WIRED_BEAT_S, Path
from exod.core.probe.replay_window import SequenceWindow
from exod.model import NodeId, PathId, PathState

GONE_KEPT_S = 10.0
"""A path whose address went is reported DEAD for so long, then forgotten."""
WINDOWS_KEPT = 64
"""Replay windows of paths that came and went in one incarnation of the peer."""
ROUTE_RECHECK_S = 10.0
"""The route table can change without notice; a route check is one socket call."""
ROUTE_DOUBT_S = 2.0
"""A question that was not answered by then, or was answered with bad news, is asked again."""


class PathTable:
    def __init__(self, peer: NodeId, config: CoreConfig, journal: Journal) -> None:
        self._peer = peer
        self._config = config
        self._journal = journal
        self._paths: dict[PathId, Path] = {}
        self._by_address: dict[tuple[str, str], Path] = {}
        self._windows: dict[PathId, SequenceWindow] = {}
        self._refused_to = 0
        self.present: tuple[Path, ...] = ()
        """Those that can be sent on."""

    def __iter__(self) -> Iterator[Path]:
        return iter(self._paths.values())

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, path: PathId) -> bool:
        return path in self._paths

    def get(self, path: PathId | None) -> Path | None:
        return None if path is None else self._paths.get(path)

    def at(self, local: str, remote: str) -> Path | None:
        """The path between two addresses, this end's first."""
        return self._by_address.get((local, remote))

    @property
    def heard(self) -> list[Path]:
        """Those that can be sent on and were heard in the present incarnations."""
        return [path for path in self if path.heard and not path.gone]

    @property
    def alive(self) -> list[Path]:
        """Those that were heard and are not dead."""
        return [path for path in self if path.heard and path.own is not PathState.DEAD]

    # --- coming and going ---------------------------------------------------------------------------------------

    def adopt(self, candidates: Iterable[Candidate], first_seq: int, now: float) -> bool:
        """Follow the candidates of the present cards. Returns whether the peer's verdicts must be read again."""
        found = {candidate.path: candidate for candidate in candidates}
        reread = False
        for path_id, candidate in found.items():
            path = self._paths.get(path_id)
            if path is None:
                self._paths[path_id] = Path(
                    candidate, self._config, self._journal, self._window(path_id), first_seq, now
                )
                reread = True
                continue
            reread |= path.follow(candidate, now)
        for path_id, path in self._paths.items():
            if path_id not in found and not path.gone:
                path.lose_address(now)
        self._index()
        for path in self:
            self.ask_route(path, now)
        return reread

    def forget_windows(self) -> None:
        """The peer has a new incarnation: its numbers begin again."""
        self._windows.clear()
        self._refused_to = 0

    def restart(self, now: float) -> None:
        """An end has a new incarnation: what is gone is forgotten, what is there begins again."""
        self._paths = {path_id: path for path_id, path in self._paths.items() if not path.gone}
        for path_id, path in self._paths.items():
            path.restart(self._window(path_id), now)
        self._index()

    def forget_gone(self, selected: PathId | None, now: float) -> None:
        """Forget paths whose address has been gone for long; never the selected one, whose name is in use."""
        old = [
            path_id
            for path_id, path in self._paths.items()
            if path.gone and now - path.state_since > GONE_KEPT_S and path_id != selected
        ]
        for path_id in old:
            del self._paths[path_id]
        if old:
            self._index()

    def _index(self) -> None:
        self.present = tuple(path for path in self if not path.gone)
        self._by_address = {
            (path.candidate.local.address, path.candidate.remote.address): path for path in self._paths.values()
        }

    def _window(self, path_id: PathId) -> SequenceWindow:
        window = self._windows.get(path_id)
        if window is None:
            if len(self._windows) >= WINDOWS_KEPT:
                # A sender's new paths count on from its highest number, so what is forgotten here stays refused.
                forgotten = next(one for one in self._windows if one not in self._paths)
                self._refused_to = max(self._refused_to, self._windows.pop(forgotten).newest)
            window = self._windows[path_id] = SequenceWindow(self._refused_to)
        return window

    # --- routes -------------------------------------------------------------------------------------------------

    def ask_route(self, path: Path, now: float) -> None:
        if path.gone or (path.route_asked_at is not None and now - path.route_asked_at < WIRED_BEAT_S):
            return
        path.route_asked(now)
        self._journal.command(CheckRoute(self._peer, path.candidate.path, path.ends.remote, path.ends))

    def ask_due_routes(self, now: float) -> None:
        for path in self:
            asked = path.route_asked_at
            if path.gone or asked is None:
                continue
            answered = path.route_checked_at is not None and path.route_checked_at >= asked
            sure = answered and path.route is RouteVerdict.RIGHT
            if now - asked >= (ROUTE_RECHECK_S if sure else ROUTE_DOUBT_S):
                self.ask_route(path, now)

    def validate(self) -> None:
        assert len(self._windows) <= WINDOWS_KEPT
        for (local, remote), path in self._by_address.items():
            assert (path.candidate.local.address, path.candidate.remote.address) == (local, remote)
            assert path.window is self._windows[path.candidate.path]
