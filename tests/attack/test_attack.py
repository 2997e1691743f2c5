"""The share of the attack that every run of the tests sees; `make attack` goes on for ten minutes."""

from __future__ import annotations

from tests.attack.__main__ import run

SHARE_S = 20.0


def test_a_node_under_attack_goes_on_answering_exactly() -> None:
    report = run(SHARE_S)
    print(report.text())
    assert report.problems() == []
