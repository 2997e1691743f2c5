"""Which groups need a new process: of one that an earlier daemon left, where that may cost it the network."""

from __future__ import annotations

import pytest

from exod.core.engine.rank.stuck_group import StuckGroup
from exoengine.protocol import Aborted, Load
from tests.core.engine.engine_samples import FOLDER, hello

ORPHAN = hello(load=Load(FOLDER, 0, 6))


def on_a_mac() -> StuckGroup:
    stuck = StuckGroup()
    stuck.doubts_orphans = True
    return stuck


def aborted(code: str) -> Aborted:
    return Aborted("plan1", 1, code, "rank 1 at 10.0.0.2:52420 has not been tried", -1)


def test_on_a_mac_an_orphan_that_reaches_no_rank_is_replaced() -> None:
    stuck = on_a_mac()
    stuck.greeted(ORPHAN)
    assert stuck.aborted(aborted("deadline"), was_generating=False)


@pytest.mark.parametrize("code", ["told", "peer_lost", "listen", "paused"])
def test_other_ends_say_nothing_about_its_network(code: str) -> None:
    stuck = on_a_mac()
    stuck.greeted(ORPHAN)
    assert not stuck.aborted(aborted(code), was_generating=False)


def test_one_that_has_stood_in_a_group_since_is_not_doubted() -> None:
    stuck = on_a_mac()
    stuck.greeted(ORPHAN)
    stuck.formed()
    assert not stuck.aborted(aborted("deadline"), was_generating=False)


def test_a_process_of_this_daemon_is_not_doubted_nor_is_one_elsewhere() -> None:
    stuck = on_a_mac()
    stuck.greeted(hello())
    assert not stuck.aborted(aborted("deadline"), was_generating=False)
    elsewhere = StuckGroup()
    elsewhere.greeted(ORPHAN)
    assert not elsewhere.aborted(aborted("deadline"), was_generating=False)


def test_its_successor_is_not_doubted() -> None:
    stuck = on_a_mac()
    stuck.greeted(ORPHAN)
    stuck.process_ended()
    assert not stuck.aborted(aborted("deadline"), was_generating=False)
