"""Peers whose datagrams are of another version: who, which, and which side is to be upgraded.

Told apart by the address that they come from: what else is in such a datagram is not understood. Decides how long
one counts. Times are monotonic seconds.
"""

from __future__ import annotations

from exod.core.base.facts import skew_text
from exod.core.probe.datagram import VERSION
from exod.model import NodeId

COUNTS_S = 10.0
"""A peer that is there sends at least once a second: ten in a row are missed where it is gone, or upgraded."""


class VersionSkews:
    def __init__(self) -> None:
        self._seen: dict[NodeId, tuple[int, float]] = {}

    def note(self, peer: NodeId, version: int, now: float) -> None:
        self._seen[peer] = (version, now)

    def understood(self, peer: NodeId) -> None:
        """One of ours came from it."""
        self._seen.pop(peer, None)

    def text(self, peer: NodeId, peer_name: str, my_name: str, now: float) -> str:
        """Empty where its datagrams are understood, or none come."""
        version, at = self._seen.get(peer, (VERSION, now))
        if version == VERSION or now - at > COUNTS_S:
            return ""
        return skew_text(peer_name, my_name, "the datagrams", version, VERSION)
