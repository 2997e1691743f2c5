"""The round trip of every path over the last hour, for `exoctl links history`.

Keeps one sample each EVERY_S and forgets a path that has had none for the whole window. Decides nothing about
links. Times are Unix seconds, round trips milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from exod.core.status.view import LinkView, PathView
from exod.daemon_api.shapes import PathTrace
from exod.model import NodeId, PathId, PathState

EVERY_S: Final = 5.0
"""A terminal of 120 columns shows an hour at 30 s a column: six samples each."""

SAMPLES: Final = 720
"""One hour."""

MAX_PATHS: Final = 256
"""64 nodes with four paths each: 720 samples of 17 bytes of each, 3 MB at most."""

Sample = tuple[float | None, bool]
"""The floor in ms, None where the path is dead or unmeasured; is it the one in use?"""


class RttHistory:
    def __init__(self) -> None:
        self._paths: dict[tuple[NodeId, PathId], tuple[PathTrace, deque[Sample]]] = {}

    def observe(self, links: Iterable[LinkView]) -> None:
        """One sample of each path; called every EVERY_S."""
        seen = {(link.peer, path.id): (link, path) for link in links for path in link.paths}
        for key, (link, path) in seen.items():
            if key not in self._paths and len(self._paths) < MAX_PATHS:
                self._paths[key] = (_empty(link, path), deque(maxlen=SAMPLES))
        for key, (_, samples) in list(self._paths.items()):
            samples.append(_sample(seen[key][1]) if key in seen else (None, False))
            if len(samples) == SAMPLES and all(rtt is None for rtt, _ in samples):
                del self._paths[key]

    def traces(self, peer: NodeId | None) -> tuple[PathTrace, ...]:
        """Of one peer or of all, in the order in which paths were met."""
        return tuple(
            PathTrace(
                known.peer,
                known.peer_name,
                known.path,
                known.interface,
                known.kind,
                EVERY_S,
                tuple(rtt for rtt, _ in samples),
                tuple(in_use for _, in_use in samples),
            )
            for known, samples in self._paths.values()
            if peer is None or known.peer == peer
        )


def _empty(link: LinkView, path: PathView) -> PathTrace:
    return PathTrace(link.peer, link.peer_name, path.id, path.interface, path.kind, EVERY_S, (), ())


def _sample(path: PathView) -> Sample:
    dead = path.state in (PathState.DEAD, PathState.INIT) or path.rtt_ms is None
    return None if dead or path.rtt_ms is None else round(path.rtt_ms, 3), path.selected
