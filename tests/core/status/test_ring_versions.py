"""Ranks whose programs differ are a reason with both versions and what to do."""

from __future__ import annotations

from exod.core.engine.engine_messages import RankPhase, RankStatus
from exod.core.status.ring_versions import version_facts
from exod.model import NodeId

A, B = NodeId("000000000000000a"), NodeId("000000000000000b")
NAMES = {A: "studio1", B: "studio2"}


def rank(node: NodeId, versions: str) -> RankStatus:
    return RankStatus(node, 1, 1, RankPhase.LOADED, "p", versions=versions)


def test_rings_of_two_versions_name_the_side_to_upgrade() -> None:
    ranks = [rank(A, "mlx 0.29, mlx-lm 0.28, ring 4"), rank(B, "mlx 0.29, mlx-lm 0.28, ring 3")]
    (fact,) = version_facts(ranks, NAMES)
    assert (fact.code, fact.subject) == ("version_skew", B)
    assert fact.text.startswith("studio2 speaks version 3 of the ring, studio1 version 4")
    assert fact.text.endswith("upgrade exod on studio2")


def test_another_mlx_is_named_with_both_and_what_is_the_same_or_unknown_is_nothing() -> None:
    (fact,) = version_facts([rank(A, "mlx 0.29, ring 4"), rank(B, "mlx 0.30, ring 4")], NAMES)
    assert "studio2 has mlx 0.30, studio1 0.29" in fact.text
    assert not list(version_facts([rank(A, "mlx 0.29"), rank(B, "mlx 0.29")], NAMES))
    assert not list(version_facts([rank(A, "mlx 0.29"), rank(B, ""), None], NAMES))
