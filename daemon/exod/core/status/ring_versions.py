"""Ranks that can form no group because their programs differ: named with both versions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from exod.core.base.facts import VERSION_SKEW, Fact, skew_text
from exod.core.engine.engine_messages import RankStatus
from exod.model import NodeId

RING = "ring"
"""The name of the ring's own protocol among a worker's versions."""


def version_facts(ranks: Sequence[RankStatus | None], names: Mapping[NodeId, str]) -> Iterator[Fact]:
    """Against the first rank that has said its versions."""
    told = [status for status in ranks if status is not None and status.versions]
    for other in told[1:]:
        mine, theirs = _versions(told[0]), _versions(other)
        for name in sorted(mine.keys() & theirs.keys()):
            if mine[name] == theirs[name]:
                continue
            first, second = (names.get(one.sender, one.sender) for one in (told[0], other))
            if name == RING:
                text = skew_text(second, first, "the ring", theirs[name], mine[name])
            else:
                text = (
                    f"{second} has {name} {theirs[name]}, {first} {mine[name]}: their ranks form no group; "
                    "install the same on both"
                )
            yield Fact(VERSION_SKEW, other.sender, text)
            break


def _versions(status: RankStatus) -> dict[str, str]:
    """From `mlx 0.29, mlx-lm 0.28, ring 3`."""
    pairs = (part.rpartition(" ") for part in status.versions.split(", "))
    return {name: version for name, _, version in pairs}
